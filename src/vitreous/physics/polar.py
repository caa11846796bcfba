r"""Images in polar Fourier coordinates, where rotations are cyclic shifts of angles.

At radius r and angle :math:`\varphi` an image y of n pixels, origin at ``n // 2``, has the spectrum

.. math::

    \hat y(r, \varphi) = \sum_p y(p)\, e^{-2 \pi i\, r (\cos\varphi, \sin\varphi) \cdot p / n},

an exact sum over its pixels: no interpolation. Half of the circle suffices for a real image.

.. math::

    s(\varphi) = \mathrm{Re}\,\hat y + \mathrm{Im}\,\hat y

is a real signal over the whole circle. Its even harmonics are those of the real part and its odd
harmonics those of the imaginary part, so that

.. math::

    \int \mathrm{Re}\,[\hat y\, \overline{\hat p}]\, d\varphi = \int s_y\, s_p\, d\varphi,

and one real cyclic correlation, by harmonics, gives the correlation at all in-plane angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolarGrid:
    r"""Grid of circles of radius 1, 2, ..., ``radius`` cycles per box with equal angles.

    Args:
        box_size: n, edge of the images in pixels.
        radius: K, the largest circle, below ``n / 2``.
        angles: A, on a whole circle, a multiple of 4; the default :math:`6 K` samples images fully
            up to :math:`0.48\,n` from their centre.

    Raises:
        ValueError: circles beyond Nyquist, angles that are not a multiple of 4.

    >>> PolarGrid(32, 8).angles
    48
    """

    box_size: int
    radius: int
    angles: int = 0

    def __post_init__(self) -> None:
        if self.angles == 0:
            object.__setattr__(self, "angles", 4 * math.ceil(1.5 * self.radius))
        if not 1 <= self.radius < self.box_size / 2:
            raise ValueError(
                f"radius must be from 1 to below half of the box, got {self.radius} for a box of "
                f"{self.box_size}; give a larger box"
            )
        if self.angles < 4 or self.angles % 4:
            raise ValueError(f"angles must be a positive multiple of 4, got {self.angles}")

    @property
    def angle_rad(self) -> Tensor:
        """Angles of a whole circle, float64 ``(A,)``."""
        return torch.arange(self.angles, dtype=torch.float64) * (2 * math.pi / self.angles)

    @property
    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Frequencies (kx, ky) in cycles per box over half circles, float64 ``(K, A / 2)``."""
        radius = torch.arange(1, self.radius + 1, dtype=torch.float64)[:, None]
        angle = self.angle_rad[: self.angles // 2]
        return radius * angle.cos(), radius * angle.sin()

    @property
    def quadrature(self) -> Tensor:
        r"""Weight :math:`2 \pi r / A` of a point, float64 ``(K,)``.

        The weighted sum over whole circles approximates the sum over all integer frequencies.
        """
        radius = torch.arange(1, self.radius + 1, dtype=torch.float64)
        return radius * (2 * math.pi / self.angles)


@lru_cache(maxsize=8)
def _transform(grid: PolarGrid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return cosines and negative sines ``(n^2, 2 K A / 2)``."""
    axis = torch.arange(grid.box_size, dtype=torch.float64) - grid.box_size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    kx, ky = (k.flatten() for k in grid.frequencies)
    angle = (x.flatten()[:, None] * kx + y.flatten()[:, None] * ky) * (-2 * math.pi / grid.box_size)
    return torch.cat([angle.cos(), angle.sin()], 1).to(device=device, dtype=dtype)


def to_polar(images: Tensor, grid: PolarGrid) -> Tensor:
    """Return exact spectra ``(b, K, A / 2)`` of real images on half circles, by one matrix product.

    Raises:
        ValueError: images of another box.

    >>> image = torch.zeros(1, 8, 8); image[0, 4, 4] = 1.0
    >>> bool((to_polar(image, PolarGrid(8, 3)) == 1).all())
    True
    """
    n = grid.box_size
    if tuple(images.shape[1:]) != (n, n):
        raise ValueError(f"images must be (b, {n}, {n}) for this grid, got {tuple(images.shape)}")
    flat = images.flatten(1) @ _transform(grid, images.device, images.dtype)
    real, imaginary = flat.view(len(images), 2, grid.radius, grid.angles // 2).unbind(1)
    return torch.complex(real, imaginary)


def from_polar(values: Tensor, grid: PolarGrid) -> Tensor:
    r"""Return images of zero mean from spectra on half circles: the inverse of :func:`to_polar`.

    Over whole circles, with the weights q of :attr:`PolarGrid.quadrature`, :math:`y(p) = n^{-2}
    \sum_k q_k\, \hat y(k)\, e^{2 \pi i\, k \cdot p / n}`. For images without frequencies beyond the
    circles the error is 2 % of their range up to ``n / 4`` from the centre and 5 % up to ``n / 2``.

    Raises:
        ValueError: values of another grid.

    >>> grid = PolarGrid(16, 7)
    >>> axis = torch.arange(16.0) - 8
    >>> dot = torch.exp(-(axis[:, None] ** 2 + (axis - 1) ** 2) / 8)[None]
    >>> restored = from_polar(to_polar(dot - dot.mean(), grid), grid)
    >>> bool((restored - dot + dot.mean())[0, 4:13, 4:13].abs().max() < 0.05)
    True
    """
    n, half = grid.box_size, grid.angles // 2
    if tuple(values.shape[1:]) != (grid.radius, half):
        raise ValueError(
            f"values must be (b, {grid.radius}, {half}) for this grid, got {tuple(values.shape)}"
        )
    weight = (2 / n**2) * grid.quadrature.to(device=values.device, dtype=values.real.dtype)
    weighted = values * weight[:, None]
    flat = torch.cat([weighted.real.flatten(1), weighted.imag.flatten(1)], 1)
    return (flat @ _transform(grid, values.device, flat.dtype).mT).view(-1, n, n)


def rotate_polar(values: Tensor, steps: Tensor) -> Tensor:
    r"""Rotate images in their plane: :math:`\hat y(r, \varphi_j)` becomes that at :math:`j + s`.

    ``values (b, K, A / 2)`` are complex spectra of real images on half circles, or real values such
    as CTFs; ``steps`` is s, long ``(b,)``, in steps of the grid's angles, from 0 to A - 1.

    >>> spectrum = torch.tensor([[[1 + 1j, 2 + 2j]]])
    >>> rotate_polar(spectrum, torch.tensor([1])).tolist()
    [[[(2+2j), (1-1j)]]]
    """
    half = values.shape[-1]
    index = torch.arange(half, device=values.device) + steps[:, None]
    rotated = values.gather(-1, (index % half)[:, None].expand(values.shape))
    if not values.is_complex():
        return rotated
    opposite = (index // half % 2 == 1)[:, None]  # the other half circle
    return torch.where(opposite, rotated.conj(), rotated)


def angular_derivative(values: Tensor) -> Tensor:
    """Return the derivative over the angle, per radian, of spectra ``(..., K, A / 2)``.

    >>> grid = PolarGrid(16, 3)
    >>> kx, ky = grid.frequencies
    >>> bool(torch.allclose(angular_derivative(kx * ky + 0j).real, kx**2 - ky**2))
    True
    """
    half = values.shape[-1]
    harmonics = torch.fft.fft(torch.cat([values, values.conj()], -1))
    m = torch.fft.fftfreq(2 * half, 1 / (2 * half), device=values.device, dtype=values.real.dtype)
    m[half] = 0.0  # the highest harmonic has no sine
    return torch.fft.ifft(1j * m * harmonics)[..., :half]


@lru_cache(maxsize=8)
def _fourier(points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return exp(-2 pi i m j / A) for even and odd m, ``(2, A / 2, 2 M)``, real part first."""
    j = torch.arange(points, dtype=torch.float64)[:, None]
    even = 2 * torch.arange(points // 2 + 1, dtype=torch.float64)
    odd = even[:-1] + 1
    tables = []
    for m in (even, odd):
        angle = j * m * (math.pi / points)
        tables.append(torch.stack([angle.cos(), -angle.sin()], -1))
    tables[1] = torch.cat([tables[1], torch.zeros_like(tables[1][:, :1])], 1)
    return torch.stack(tables).flatten(2).to(device=device, dtype=dtype)


def _pairs(flat: Tensor) -> Tensor:
    """Reshape interleaved parts ``(..., 2 M)`` to ``(..., M, 2)``."""
    return flat.view(*flat.shape[:-1], -1, 2)


def _harmonics_first(parts: Tensor) -> Tensor:
    """Reorder ``(..., K, m, 2)`` to ``(m, ..., 2 K)``, doubled for the other half circle."""
    order = (parts.ndim - 2, *range(parts.ndim - 3), parts.ndim - 1, parts.ndim - 3)
    return (2 * parts.permute(order)).flatten(-2)


def circle_harmonics(values: Tensor) -> Tensor:
    r"""Return the harmonics of the real signal s of spectra ``(..., K, A / 2)`` on half circles.

    :math:`\hat s_m = \sum_{j < A} s(\varphi_j) e^{-i m \varphi_j}`, m from 0 to A / 2: real ``(A /
    2 + 1, ..., 2 K)``, for each harmonic the real parts of all radii, then the imaginary parts.

    >>> circle_harmonics(torch.ones(5, 3, 8, dtype=torch.complex64)).shape
    torch.Size([9, 5, 6])
    """
    half = values.shape[-1]
    table = _fourier(half, values.device, values.real.dtype)
    even = _pairs(values.real @ table[0])
    odd = _pairs(values.imag @ table[1])
    return _harmonics_first(torch.stack([even, odd], -2).flatten(-3, -2)[..., : half + 1, :])


def half_turn_harmonics(values: Tensor) -> Tensor:
    """Return the even harmonics 0, 2, ... of real values that repeat after half a turn.

    ``values (..., K, A / 2)`` over half circles give sums over whole circles, real ``(A / 4 + 1,
    ..., 2 K)``, laid out as by :func:`circle_harmonics`.
    """
    table = _fourier(values.shape[-1], values.device, values.dtype)[0]
    return _harmonics_first(_pairs(values @ table))


@lru_cache(maxsize=16)
def synthesis_matrix(angles: int, parity: int, device: torch.device) -> Tensor:
    r"""Return the matrix from products of even or odd harmonics to their part of the correlation.

    :math:`X(\alpha_j) = \frac1A \sum_m \epsilon_m \mathrm{Re}[\hat s_m \overline{\hat p_m}\, e^{i m
    \alpha_j}]`, over half of the angles A: half a turn later the even part is the same and the odd
    part changes sign. ``parity`` 0 takes m = 0, 2, ..., A / 2; 1 takes m = 1, 3, ... The matrix is
    float32 ``(A / 2, 2 M)``: columns for the real parts, then for the imaginary parts of the M
    products.
    """
    m = torch.arange(parity, angles // 2 + 1, 2, dtype=torch.float64)
    count = torch.where((m == 0) | (m == angles // 2), 1.0, 2.0) / angles
    j = torch.arange(angles // 2, dtype=torch.float64)[:, None]
    turn = j * m * (2 * math.pi / angles)
    return torch.cat([turn.cos() * count, -turn.sin() * count], 1).to(
        device=device, dtype=torch.float32
    )


def conjugate_harmonics(harmonics: Tensor) -> Tensor:
    """Arrange harmonics of templates so that one matrix product gives those of the correlation.

    ``(M, v, 2 K)``, from :func:`circle_harmonics`, becomes ``(2 M, 2 K, v)``: in products with the
    images' harmonics ``(M, rows, 2 K)`` the first M give the real and the others the imaginary
    parts of image times conjugate template.
    """
    real, imaginary = harmonics.chunk(2, -1)
    first = torch.cat([real, imaginary], -1)
    second = torch.cat([-imaginary, real], -1)
    return torch.cat([first, second]).mT.contiguous()
