r"""Aberrations beyond the CTF: magnification that depends on direction, and odd and even phases.

With the magnification matrix M of its optics group, the spectrum of an image is RELION's

.. math::

    \hat y(k) = e^{i \varphi(M k)}\, \mathrm{CTF}(M k)\, \hat v(R^T M k)\, e^{-2 \pi i k \cdot t},

with odd phases :math:`\varphi` (beam tilt, trefoil) and even ones as a part of the CTF's
:math:`\gamma`. :func:`undo_distortion` returns the image with spectrum
:math:`e^{-i \varphi(q)}\, \hat y(M^{-1} q)`: one of plain optics whose shift is
:math:`t_0 = M^{-T} t` (:func:`undistorted_shift`). Both phases are polynomials:

.. math::

    \varphi(k) &= p_0 k_y + p_1 k_x + p_2 |k|^3 \sin 3\theta + p_3 |k|^2 k_y + p_4 |k|^2 k_x
        + p_5 |k|^3 \cos 3\theta \\
    \gamma(k) &\mathrel{+}= 2 \pi [e_0 k_x^2 + e_1 k_y^2 + e_2 k_x k_y + e_3 |k|^4 + e_4
        + |k|^4 (e_5 \cos 2\theta + e_6 \sin 2\theta + e_7 \cos 4\theta + e_8 \sin 4\theta)].

Source: J. Zivanov, T. Nakane, S. Scheres, IUCrJ 7 (2020) 253, and RELION 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import frequency_grid
from vitreous.core.params import Batched


@dataclass(frozen=True)
class Distortion(Batched):
    """What the microscope did to images beyond the CTF.

    Args:
        magnification: M of each image, ``(n, 2, 2)``.
        odd_phase: coefficients p of its odd phase, radians, ``(n, 6)``.
    """

    magnification: Tensor
    odd_phase: Tensor

    def groups(self) -> list[Tensor]:
        """Return the rows of images that have the same distortion, long ``(rows,)`` each."""
        both = torch.cat([self.magnification.flatten(1), self.odd_phase], dim=1)
        values, group_of = torch.unique(both, dim=0, return_inverse=True)
        return [(group_of == k).nonzero().flatten() for k in range(len(values))]


def odd_phase(kx_inv_angstrom: Tensor, ky_inv_angstrom: Tensor, coefficients: Tensor) -> Tensor:
    """Return the odd phase in radians at frequencies in 1/Å that broadcast.

    ``coefficients`` are p ``(6,)``, see the text of this module.
    """
    basis = odd_basis(kx_inv_angstrom, ky_inv_angstrom)
    return torch.tensordot(coefficients.to(basis), basis, dims=1)


def odd_basis(kx_inv_angstrom: Tensor, ky_inv_angstrom: Tensor) -> Tensor:
    """Return the terms of p at frequencies in 1/Å that broadcast, ``(6, ...)``."""
    kx = kx_inv_angstrom + torch.zeros_like(ky_inv_angstrom)
    ky = ky_inv_angstrom + torch.zeros_like(kx)
    squared = kx * kx + ky * ky
    sine = ky * (3 * kx * kx - ky * ky)  # |k|^3 sin 3 theta
    cosine = kx * (kx * kx - 3 * ky * ky)
    return torch.stack([ky, kx, sine, squared * ky, squared * kx, cosine])


def fourth_order_basis(kx_inv_angstrom: Tensor, ky_inv_angstrom: Tensor) -> Tensor:
    """Return the terms of e_5 to e_8 at frequencies in 1/Å of one shape, ``(4, ...)``."""
    kx, ky = kx_inv_angstrom, ky_inv_angstrom
    difference, product = kx * kx - ky * ky, 2 * kx * ky  # |k|^2 cos 2 theta, |k|^2 sin 2 theta
    squared = kx * kx + ky * ky
    cosine4 = difference * difference - product * product
    return torch.stack([squared * difference, squared * product, cosine4, 2 * difference * product])


def even_basis(kx_inv_angstrom: Tensor, ky_inv_angstrom: Tensor) -> Tensor:
    """Return the terms of e at frequencies in 1/Å of one shape, ``(9, ...)``."""
    kx, ky = kx_inv_angstrom, ky_inv_angstrom
    xx, yy = kx * kx, ky * ky
    low = torch.stack((xx, yy, kx * ky, (xx + yy) ** 2, torch.ones_like(xx)))
    return torch.cat([low, fourth_order_basis(kx, ky)])


def undo_distortion(
    images: Tensor,
    magnification: Tensor,
    odd_phase_coefficients: Tensor,
    pixel_size_angstrom: float,
) -> Tensor:
    """Return images ``(b, n, n)`` as plain optics would have given them.

    Args:
        images: float32, all of one distortion.
        magnification: M, ``(2, 2)``.
        odd_phase_coefficients: p, ``(6,)``.
        pixel_size_angstrom: pixel size of the images, Å.

    >>> images = torch.rand(1, 8, 8)
    >>> torch.allclose(undo_distortion(images, torch.eye(2), torch.zeros(6), 2.0), images)
    True
    """
    n = images.shape[-1]
    if not torch.equal(magnification, torch.eye(2).to(magnification)):
        images = _resampled(images, magnification.double())
    if bool((odd_phase_coefficients != 0).any()):
        kx, ky = frequency_grid(n, pixel_size_angstrom, device=images.device, dtype=torch.float64)
        phase = odd_phase(kx, ky, odd_phase_coefficients.double())
        factor = torch.polar(torch.ones_like(phase), -phase).to(torch.complex64)
        images = torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(n, n))
    return images


def _resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """Return det(M) y(M^T x) of images y by their Fourier series, one axis after the other.

    With u = a x + b y and v = c x + d y, the first pass computes y at v for every column u, by
    v = (c / a) u + (det / a) y, the second at u = a x + b y for every row y.
    """
    (a, c), (b, d) = matrix.tolist()
    determinant = a * d - b * c
    columns = _along_last(images.mT, determinant / a, c / a)  # (b, u, y)
    return determinant * _along_last(columns.mT, a, b)


def _along_last(lines: Tensor, scale: float, shear: float) -> Tensor:
    """Evaluate ``(b, m, n)`` lines at ``scale * i + shear * line``, counted from the middle."""
    n = lines.shape[-1]
    centred = torch.arange(n, dtype=torch.float64) - n // 2
    waves = torch.fft.rfftfreq(n, dtype=torch.float64)
    weight = torch.full_like(waves, 2 / n)
    weight[0] = 1 / n
    if n % 2 == 0:
        weight[-1] = 1 / n
    turns = 2 * math.pi * waves
    # the transform counts from the first pixel, everything else from the middle
    shift = torch.polar(
        weight.expand(len(centred), -1), turns * (shear * centred[:, None] + n // 2)
    )
    turned = turns[:, None] * scale * centred
    kernel = torch.polar(torch.ones_like(turned), turned)
    spectra = torch.fft.rfft(lines) * shift.to(torch.complex64)
    return (spectra @ kernel.to(torch.complex64)).real


def undistorted_shift(shift_angstrom: Tensor, magnification: Tensor) -> Tensor:
    """Return M^-T t of shifts t ``(n, 2)`` and matrices M ``(n, 2, 2)``: of undistorted images."""
    inverse = torch.linalg.inv(magnification).mT
    return (inverse @ shift_angstrom.to(inverse)[..., None])[..., 0].to(shift_angstrom)


def distorted_shift(shift_angstrom: Tensor, magnification: Tensor) -> Tensor:
    """Return M^T t: the inverse of :func:`undistorted_shift`."""
    shift = shift_angstrom.to(magnification)
    return (magnification.mT @ shift[..., None])[..., 0].to(shift_angstrom)
