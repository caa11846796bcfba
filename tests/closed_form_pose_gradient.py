r"""The data term of one image and its gradient over pose and shift, in closed form.

Theorem 3: with :math:`\psi = h * P\varphi` the imaged window and M the first two rows of R,

.. math::

    J_p = \tfrac12 c^T (w * c) - c^T H^T b + \tfrac12 \|b\|^2, \qquad
    w_d = (\psi * \psi^\vee)(M d), \quad (H^T b)_k = (b * \psi^\vee)(M k + t),

    \frac{\partial J_p}{\partial v} = \tfrac12 c^T (r_v * c - 2 q_v), \qquad
    r_v = \Big(\frac{\partial M}{\partial v} d\Big)^T \nabla(\psi * \psi^\vee)(M d), \quad
    q_v = \Big(\frac{\partial M}{\partial v} k\Big)^T \nabla(b * \psi^\vee)(M k + t)

for angles; for shifts :math:`r_v = 0` and :math:`q_v` is the gradient alone. Derivatives fall on
the window's X-ray transform, whose slope is known (A.25). Nothing is interpolated: sums over the
window's footprint, on pixels refined until it has no spectrum left to alias. That takes seconds
for a box of 16; it is what faster gradients are tested against.

Source: L. Donati, PhD thesis, EPFL 2020, equations (4.35) to (4.41), (A.12) to (A.25).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize, irfft_centered, rfft_centered
from vitreous.core.grid import nyquist_disc
from vitreous.physics.kaiser_bessel.projector import window_transfer
from vitreous.physics.kaiser_bessel.window import KaiserBessel

_BLOCK = 4096  # lattice points at a time


@dataclass(frozen=True)
class PoseGradient:
    """J_p and its derivatives.

    Args:
        value: :math:`\\frac12 \\|b - H c\\|^2`.
        rotation: ``(3, 3)``, over the entries of R; the third row, which no image sees, is zero.
            Any angles follow by the chain rule: ``(rotation * dR_dv).sum()``.
        shift_px: ``(2,)``, over (x, y) in pixels.
    """

    value: Tensor
    rotation: Tensor
    shift_px: Tensor


def pose_gradient(
    coefficients: Tensor,
    image: Tensor,
    rotation: Tensor,
    shift_px: Tensor,
    transfer: Tensor | None,
    window: KaiserBessel,
    scale: int = 1,
    *,
    finer: int = 4,
) -> PoseGradient:
    """Return the misfit of one image and its gradient by theorem 3, in double precision.

    Args:
        coefficients: ``(N, N, N)`` with N = ceil(n / s), of a lattice of spacing s.
        image: ``(n, n)``.
        rotation: ``(3, 3)``, volume to particle coordinates.
        shift_px: ``(2,)`` displacement (x, y) of the particle in the image, pixels.
        transfer: CTF, real ``(n, n // 2 + 1)`` in FFT order; None for none.
        window: the basis.
        scale: s, in pixels.
        finer: pixels along a pixel, for the sums over the window's footprint.
    """
    n, c = image.shape[-1], coefficients.double()
    m, t = rotation[:2].double(), shift_px.double()
    inside = nyquist_disc(n, device=c.device).double()
    h = inside if transfer is None else inside * transfer.double()
    # h * b and h * h * P phi, to be correlated with windows
    matched = irfft_centered(rfft_centered(image.double(), 2) * h, (n, n))
    blurred = irfft_centered(
        h.square() * window_transfer(n, window, scale, dtype=torch.float64, device=c.device), (n, n)
    )
    k, d = _lattice(len(c), scale).to(c), _lattice(2 * len(c) - 1, scale).to(c)
    # opposite lags have the same share
    weights = _autocorrelation(c).flatten()[: len(d) // 2 + 1]
    weights[:-1] *= 2
    d = d[: len(weights)]
    sums, slopes = _correlate(fourier_resize(blurred, finer * n, 2), d @ m.T, window, scale, finer)
    quadratic = 0.5 * (weights @ sums)
    to_m = 0.5 * (weights[:, None] * slopes).T @ d
    sums, slopes = _correlate(
        fourier_resize(matched, finer * n, 2), k @ m.T + t, window, scale, finer
    )
    to_t = -(c.flatten() @ slopes)
    to_m = to_m - (c.flatten()[:, None] * slopes).T @ k
    value = quadratic - c.flatten() @ sums + 0.5 * image.double().square().sum()
    return PoseGradient(value, torch.cat([to_m, torch.zeros_like(to_m[:1])]), to_t)


def _lattice(size: int, scale: int) -> Tensor:
    """Return points (x, y, z) of a lattice around index ``size // 2``, ``(size^3, 3)``, px."""
    axis = (torch.arange(size, dtype=torch.float64) - size // 2) * scale
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def _autocorrelation(c: Tensor) -> Tensor:
    """Sum of ``c_k c_{k + d}`` over k, for all lags: ``(2 N - 1,) * 3``."""
    edge = 2 * len(c) - 1
    spectrum = torch.fft.rfftn(c, s=(edge,) * 3).abs().square()
    return torch.fft.fftshift(torch.fft.irfftn(spectrum, s=(edge,) * 3))


def _correlate(
    fine: Tensor, points: Tensor, window: KaiserBessel, scale: int, finer: int
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`(u * P\varphi^\vee)(y)` of a periodic image at points y, and its gradient.

    Args:
        fine: u on refined pixels, ``(finer n, finer n)``.
        points: (x, y) in pixels from the centre, ``(p, 2)``.

    Returns:
        ``(p,)`` and ``(p, 2)``.
    """
    edge = len(fine)
    reach = math.ceil(window.support * scale * finer) + 1
    steps = torch.arange(-reach, reach + 1, device=fine.device)
    values, slopes = [], []
    for y in torch.split(points, _BLOCK):
        near = (y * finer).round()
        away = [(near[:, i, None] + steps) / finer - y[:, i, None] for i in (0, 1)]  # x - y
        column, row = ((near[:, i, None].long() + steps + edge // 2) % edge for i in (0, 1))
        u = fine[row[:, :, None], column[:, None, :]] / finer**2
        radius = (away[0][:, None, :].square() + away[1][:, :, None].square()).sqrt()
        values.append((u * (scale * window.xray(radius / scale))).sum((1, 2)))
        # (A.25): component j of the gradient is y_j / r of the slope, over y with a minus
        share = -u * window.xray_slope(radius / scale) / radius.clamp_min(1e-300)
        slopes.append(
            torch.stack(
                [
                    (share * away[0][:, None, :]).sum((1, 2)),
                    (share * away[1][:, :, None]).sum((1, 2)),
                ],
                1,
            )
        )
    return torch.cat(values), torch.cat(slopes)
