"""Torch version of the loops of the Fourier-slice projector, for any device.

Same packed spectrum and arithmetic as :mod:`vitreous.physics.kernels.slice_cpu`; used on GPUs, and
in tests as a reference. Sums on a GPU are atomic, so that their last bits vary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vitreous.physics.kernels.slice_kernel import (
    TAPS,
    FloatArray,
    disc,
    lines,
    polynomials,
    z_weights,
)


def tap_weights(fraction: Tensor, coefficients: FloatArray) -> Tensor:
    """Return weights ``(..., 3, TAPS)`` at fractions ``(..., 3)``, by Horner's rule."""
    table = torch.as_tensor(coefficients, device=fraction.device, dtype=fraction.dtype)
    value = table[0].expand(*fraction.shape, TAPS)
    for row in table[1:]:
        value = value * fraction[..., None] + row
    return value


class Points:
    """Cells, fractions and mirror signs of all points of a batch of slices."""

    def __init__(self, rotations: Tensor, n: int, size: int, real: torch.dtype) -> None:
        device = rotations.device
        self.size = size
        kx, ky, self.target = (torch.as_tensor(a, device=device) for a in disc(n))
        self.k = torch.stack([kx, ky], -1).to(real) * (size / n)
        first, second = (rotations.detach()[:, None, row].to(real) for row in (0, 1))
        position = self.k[:, :1] * first + self.k[:, 1:] * second  # (b, points, 3): R^T (kx, ky, 0)
        squared = position.square().sum(-1)
        inside = squared < (size // 2) ** 2
        # 0 beyond Nyquist, which no rotation reaches; NaN stays NaN
        self.inside = torch.where(inside, 1.0, 0.0 * squared).to(real)
        position = torch.where(inside[..., None], position, torch.zeros_like(position))
        self.sign = torch.where(position[..., 0] < 0, -1.0, 1.0).to(real)
        position = position * self.sign[..., None]
        base = position.floor()
        self.base, self.fraction = base.long(), position - base - 0.5
        self.middle = torch.as_tensor(lines(size).middle, device=device)

    def neighbours(self) -> Iterator[tuple[Tensor, tuple[int, int, int]]]:
        """Yield flat indices into the packed spectrum and taps (x, y, z) of the 64 neighbours."""
        x, y, z = self.base.unbind(-1)
        for c in range(TAPS):
            line = self.middle[x + c] + y - 1
            for d in range(TAPS):
                start = (line + d) * self.size
                for e in range(TAPS):
                    yield start + (z + (self.size // 2 - 1 + e)) % self.size, (c, d, e)

    def mirror(self, values: Tensor) -> Tensor:
        """Conjugate values read at the opposite point, and set those beyond Nyquist to zero."""
        return torch.complex(values.real * self.inside, values.imag * self.sign * self.inside)


def gather(grid: Tensor, rotations: Tensor, n: int) -> Tensor:
    """Read slices ``(b, n * (n // 2 + 1))`` off a packed spectrum."""
    real = grid.real.dtype
    points = Points(rotations, n, grid.shape[1], real)
    w = tap_weights(points.fraction, polynomials(np.float64)[0])
    flat = grid.reshape(-1)
    total = torch.zeros(points.sign.shape, dtype=grid.dtype, device=grid.device)
    for index, (c, d, e) in points.neighbours():
        total += (w[..., 0, c] * w[..., 1, d] * w[..., 2, e]) * flat[index]
    shape = (rotations.shape[0], n * (n // 2 + 1))
    out = torch.zeros(shape, dtype=grid.dtype, device=grid.device)
    out[:, points.target] = points.mirror(total)
    return out


def scatter_into(grid: Tensor, slices: Tensor, rotations: Tensor, n: int) -> None:
    """Add the transpose of :func:`gather` to a packed spectrum ``(lines, size)`` in place."""
    real, size = slices.real.dtype, grid.shape[1]
    points = Points(rotations, n, size, real)
    w = tap_weights(points.fraction, polynomials(np.float64)[0])
    source = torch.view_as_real(points.mirror(slices[:, points.target]))
    out = torch.view_as_real(grid).view(-1, 2)
    for index, (c, d, e) in points.neighbours():
        value = (w[..., 0, c] * w[..., 1, d] * w[..., 2, e])[..., None] * source
        out.index_add_(0, index.reshape(-1), value.reshape(-1, 2))


def rotation_gradient(grid: Tensor, rotations: Tensor, n: int, upstream: Tensor) -> Tensor:
    """Return the gradient ``(b, 3, 3)`` of slices over rotations, contracted with ``upstream``."""
    real = grid.real.dtype
    points = Points(rotations, n, grid.shape[1], real)
    values, slopes = polynomials(np.float64)
    w, dw = tap_weights(points.fraction, values), tap_weights(points.fraction, slopes)
    above, flat = points.mirror(upstream[:, points.target]), grid.reshape(-1)
    total = torch.zeros_like(points.fraction)
    for index, (c, d, e) in points.neighbours():
        product = (above.conj() * flat[index]).real
        total[..., 0] += dw[..., 0, c] * w[..., 1, d] * w[..., 2, e] * product
        total[..., 1] += w[..., 0, c] * dw[..., 1, d] * w[..., 2, e] * product
        total[..., 2] += w[..., 0, c] * w[..., 1, d] * dw[..., 2, e] * product
    out = torch.zeros((rotations.shape[0], 3, 3), dtype=real, device=grid.device)
    out[:, :2] = torch.einsum("pk,bpi->bki", points.k, total * points.sign[..., None])
    return out


@lru_cache(maxsize=16)
def _line_tables(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the flat (ky, kx) source of every line, and a mask of the conjugated lines."""
    table = lines(size)
    columns = size // 2 + 1
    kx = np.repeat(np.arange(-1, columns + 1), 2 * table.reach + 1)
    ky = np.arange(table.count) - np.repeat(table.middle, 2 * table.reach + 1)
    mirrored = (kx < 0) | (kx >= columns)
    x = np.where(kx < 0, -kx, np.where(kx >= columns, size - kx, kx))
    y = np.where(mirrored, -ky, ky) % size
    index = torch.as_tensor(y * columns + x, device=device)
    return index, torch.as_tensor(mirrored, device=device)


def _z_weights(n: int, like: Tensor) -> Tensor:
    return torch.as_tensor(z_weights(n), device=like.device).to(like.real.dtype)


def pack(planes: Tensor) -> Tensor:
    """Return zero-padded, weighted lines ``(lines, N)`` over z of planes ``(n, N, N / 2 + 1)``."""
    n, size, _ = planes.shape
    index, mirrored = _line_tables(size, planes.device)
    x = (planes * _z_weights(n, planes)[:, None, None]).reshape(n, -1)[:, index].T
    x = torch.where(mirrored[:, None], x.conj(), x)
    out = x.new_zeros((x.shape[0], size))
    out[:, : n - n // 2] = x[:, n // 2 :]
    out[:, size - n // 2 :] = x[:, : n // 2]
    return out


def unpack(grid: Tensor, n: int) -> Tensor:
    """Transpose of :func:`pack`."""
    size = grid.shape[1]
    index, mirrored = _line_tables(size, grid.device)
    x = torch.cat([grid[:, size - n // 2 :], grid[:, : n - n // 2]], 1) * _z_weights(n, grid)
    x = torch.where(mirrored[:, None], x.conj(), x)
    out = torch.zeros((size * (size // 2 + 1), n, 2), dtype=x.real.dtype, device=x.device)
    out.index_add_(0, index, torch.view_as_real(x.resolve_conj()))
    return torch.view_as_complex(out).T.reshape(n, size, size // 2 + 1)
