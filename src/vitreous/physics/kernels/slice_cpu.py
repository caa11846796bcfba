"""Compiled CPU loops of the Fourier-slice projector.

All loops work on the packed spectrum of :mod:`vitreous.physics.kernels.slice_kernel`. A slice point
reads four neighbours, eight consecutive numbers, from each of 4 x 4 lines. Threads split images
(gather, gradient) or columns kx of the grid (scatter): each number is summed by one thread in one
order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitreous.core.jit import njit
from vitreous.core.threads import compiled, even_edges, in_threads
from vitreous.physics.kernels.slice_kernel import disc, lines, polynomials, z_weights

_BLOCK = 16  # z values moved together when lines are packed: two cache lines of complex64


class PackedSpectrum(NamedTuple):
    """Packed spectrum: flat real and imaginary parts, length of a line, index of each line kx."""

    values: Any
    size: int
    middle: Any


class SlicePoints(NamedTuple):
    """Points of slices: rotations, spectrum points per cycle, frequencies, index in the slice."""

    rotations: Any
    scale: Any
    kx: Any
    ky: Any
    target: Any


@njit(nogil=True, inline="always")
def tap_weights(f: Any, table: Any) -> Any:
    """Return four kernel weights at fraction ``f``, by Horner's rule on all taps at once."""
    a, b, c, d = table[0, 0], table[0, 1], table[0, 2], table[0, 3]
    for p in range(1, table.shape[0]):
        a = a * f + table[p, 0]
        b = b * f + table[p, 1]
        c = c * f + table[p, 2]
        d = d * f + table[p, 3]
    return a, b, c, d


@njit(nogil=True, inline="always")
def point_position(points: Any, b: int, m: int) -> Any:
    """Return R^T (kx, ky, 0) of point ``m`` of slice ``b``, in points of the spectrum."""
    r, x, y = points.rotations[b], points.kx[m], points.ky[m]
    px = points.scale * (x * r[0, 0] + y * r[1, 0])
    py = points.scale * (x * r[0, 1] + y * r[1, 1])
    pz = points.scale * (x * r[0, 2] + y * r[1, 2])
    return px, py, pz


@compiled
def _gather(grid: Any, points: Any, table: Any, out: Any, first: int, last: int) -> None:
    """Interpolate slices ``first .. last`` into ``out (b, points, 2)``."""
    values, size, middle = grid.values, grid.size, grid.middle
    zero, half = values.dtype.type(0), size // 2
    limit = values.dtype.type(half * half)
    wx, wy = np.empty(4, values.dtype), np.empty(4, values.dtype)
    for b in range(first, last):
        for m in range(points.kx.shape[0]):
            px, py, pz = point_position(points, b, m)
            to = points.target[m]
            squared = px * px + py * py + pz * pz
            if not squared < limit:  # beyond Nyquist: no rotation; NaN stays NaN
                out[b, to, 0] = out[b, to, 1] = zero * squared
                continue
            mirrored = px < 0
            if mirrored:
                px, py, pz = -px, -py, -pz
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = px - ix - 0.5, py - iy - 0.5, pz - iz - 0.5
            wx[0], wx[1], wx[2], wx[3] = tap_weights(values.dtype.type(fx), table)
            wy[0], wy[1], wy[2], wy[3] = tap_weights(values.dtype.type(fy), table)
            u0, u1, u2, u3 = tap_weights(values.dtype.type(fz), table)
            z = iz - 1 + half
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero
            if 0 <= z <= size - 4:
                for c in range(4):
                    line = middle[ix + c] + iy - 1
                    for d in range(4):
                        w = wx[c] * wy[d]
                        i = np.uintp(2 * ((line + d) * size + z))
                        a0 += w * values[i]
                        a1 += w * values[i + np.uintp(1)]
                        a2 += w * values[i + np.uintp(2)]
                        a3 += w * values[i + np.uintp(3)]
                        a4 += w * values[i + np.uintp(4)]
                        a5 += w * values[i + np.uintp(5)]
                        a6 += w * values[i + np.uintp(6)]
                        a7 += w * values[i + np.uintp(7)]
            else:
                z0, z1, z2, z3 = z % size, (z + 1) % size, (z + 2) % size, (z + 3) % size
                for c in range(4):
                    line = middle[ix + c] + iy - 1
                    for d in range(4):
                        w = wx[c] * wy[d]
                        i = (line + d) * size
                        a0 += w * values[2 * (i + z0)]
                        a1 += w * values[2 * (i + z0) + 1]
                        a2 += w * values[2 * (i + z1)]
                        a3 += w * values[2 * (i + z1) + 1]
                        a4 += w * values[2 * (i + z2)]
                        a5 += w * values[2 * (i + z2) + 1]
                        a6 += w * values[2 * (i + z3)]
                        a7 += w * values[2 * (i + z3) + 1]
            im = u0 * a1 + u1 * a3 + u2 * a5 + u3 * a7
            out[b, to, 0] = u0 * a0 + u1 * a2 + u2 * a4 + u3 * a6
            out[b, to, 1] = -im if mirrored else im


@compiled
def _scatter(grid: Any, points: Any, table: Any, slices: Any, first: int, last: int) -> None:
    """Transpose of :func:`_gather` into the columns ``first .. last`` (counted from kx = -1)."""
    values, size, middle = grid.values, grid.size, grid.middle
    half = size // 2
    limit = values.dtype.type(half * half)
    wx, wy = np.empty(4, values.dtype), np.empty(4, values.dtype)
    for b in range(points.rotations.shape[0]):
        for m in range(points.kx.shape[0]):
            px, py, pz = point_position(points, b, m)
            if not px * px + py * py + pz * pz < limit:
                continue
            re, im = slices[b, points.target[m], 0], slices[b, points.target[m], 1]
            if px < 0:
                px, py, pz, im = -px, -py, -pz, -im
            ix = int(np.floor(px))
            if ix + 3 < first or ix >= last:
                continue
            iy, iz = int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = px - ix - 0.5, py - iy - 0.5, pz - iz - 0.5
            wx[0], wx[1], wx[2], wx[3] = tap_weights(values.dtype.type(fx), table)
            wy[0], wy[1], wy[2], wy[3] = tap_weights(values.dtype.type(fy), table)
            u0, u1, u2, u3 = tap_weights(values.dtype.type(fz), table)
            v0, v1, v2, v3 = u0 * re, u0 * im, u1 * re, u1 * im
            v4, v5, v6, v7 = u2 * re, u2 * im, u3 * re, u3 * im
            z = iz - 1 + half
            inner = 0 <= z <= size - 4
            for c in range(max(0, first - ix), min(4, last - ix)):
                line = middle[ix + c] + iy - 1
                for d in range(4):
                    w = wx[c] * wy[d]
                    if inner:
                        i = np.uintp(2 * ((line + d) * size + z))
                        g0, g1 = values[i], values[i + np.uintp(1)]
                        g2, g3 = values[i + np.uintp(2)], values[i + np.uintp(3)]
                        g4, g5 = values[i + np.uintp(4)], values[i + np.uintp(5)]
                        g6, g7 = values[i + np.uintp(6)], values[i + np.uintp(7)]
                        values[i] = g0 + w * v0
                        values[i + np.uintp(1)] = g1 + w * v1
                        values[i + np.uintp(2)] = g2 + w * v2
                        values[i + np.uintp(3)] = g3 + w * v3
                        values[i + np.uintp(4)] = g4 + w * v4
                        values[i + np.uintp(5)] = g5 + w * v5
                        values[i + np.uintp(6)] = g6 + w * v6
                        values[i + np.uintp(7)] = g7 + w * v7
                    else:
                        for e, v in enumerate(((v0, v1), (v2, v3), (v4, v5), (v6, v7))):
                            j = 2 * ((line + d) * size + (z + e) % size)
                            values[j] += w * v[0]
                            values[j + 1] += w * v[1]


@compiled
def _rotation_gradient(
    grid: Any, points: Any, tables: Any, upstream: Any, out: Any, first: int, last: int
) -> None:
    """Gradient of ``sum(upstream * _gather(grid))`` over the rotations, into ``out (b, 3, 3)``."""
    values, size, middle = grid.values, grid.size, grid.middle
    table, slopes = tables
    real, half = values.dtype.type, size // 2
    limit = real(half * half)
    wx, wy, wz = np.empty(4, values.dtype), np.empty(4, values.dtype), np.empty(4, values.dtype)
    dx, dy, dz = np.empty(4, values.dtype), np.empty(4, values.dtype), np.empty(4, values.dtype)
    for b in range(first, last):
        for m in range(points.kx.shape[0]):
            px, py, pz = point_position(points, b, m)
            if not px * px + py * py + pz * pz < limit:
                continue
            factor = points.scale
            re, im = upstream[b, points.target[m], 0], upstream[b, points.target[m], 1]
            if px < 0:
                px, py, pz, im, factor = -px, -py, -pz, -im, -factor
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = real(px - ix - 0.5), real(py - iy - 0.5), real(pz - iz - 0.5)
            wx[0], wx[1], wx[2], wx[3] = tap_weights(fx, table)
            wy[0], wy[1], wy[2], wy[3] = tap_weights(fy, table)
            wz[0], wz[1], wz[2], wz[3] = tap_weights(fz, table)
            dx[0], dx[1], dx[2], dx[3] = tap_weights(fx, slopes)
            dy[0], dy[1], dy[2], dy[3] = tap_weights(fy, slopes)
            dz[0], dz[1], dz[2], dz[3] = tap_weights(fz, slopes)
            gx = gy = gz = real(0)
            for c in range(4):
                line = middle[ix + c] + iy - 1
                for d in range(4):
                    value = change = real(0)
                    for e in range(4):
                        i = 2 * ((line + d) * size + (iz - 1 + half + e) % size)
                        product = re * values[i] + im * values[i + 1]
                        value += wz[e] * product
                        change += dz[e] * product
                    gx += dx[c] * wy[d] * value
                    gy += wx[c] * dy[d] * value
                    gz += wx[c] * wy[d] * change
            for i, g in enumerate((gx, gy, gz)):
                out[b, 0, i] += factor * points.kx[m] * g
                out[b, 1, i] += factor * points.ky[m] * g


@compiled
def _pack(
    planes: Any, weights: Any, reach: Any, middle: Any, out: Any, first: int, last: int
) -> None:
    """Write planes ``(n, N, N / 2 + 1)`` as weighted lines, for ky in ``first .. last``."""
    n, size, columns = planes.shape
    centre = n // 2
    for ky in range(first, last):
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            for column in range(reach.shape[0]):
                if abs(ky) > reach[column]:
                    continue
                kx, y, mirrored = column - 1, ky, False
                if kx < 0 or kx >= columns:  # the other half of the spectrum is the conjugate
                    kx, y, mirrored = (-kx if kx < 0 else size - kx), -ky, True
                y = y % size
                line = middle[column] + ky
                for z in range(start, stop):
                    value = weights[z] * planes[z, y, kx]
                    to = z - centre if z >= centre else z - centre + size
                    out[line, to] = value.conjugate() if mirrored else value


@compiled
def _unpack(
    grid: Any, weights: Any, reach: Any, middle: Any, out: Any, first: int, last: int
) -> None:
    """Transpose of :func:`_pack` for the rows ``first .. last`` of the planes (FFT order)."""
    n, size, columns = out.shape
    centre = n // 2
    for row in range(first, last):
        ky = row - size if 2 * row >= size else row
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            for column in range(reach.shape[0]):
                kx, sign, mirrored = column - 1, 1, False
                if kx < 0 or kx >= columns:
                    kx, sign, mirrored = (-kx if kx < 0 else size - kx), -1, True
                # up to three stored ky belong to this row: ky and its aliases beyond the edges
                for alias in range(-1, 2):
                    stored = sign * ky + alias * size
                    if abs(stored) > reach[column]:
                        continue
                    line = middle[column] + stored
                    for z in range(start, stop):
                        at = z - centre if z >= centre else z - centre + size
                        value = weights[z] * grid[line, at]
                        out[z, row, kx] += value.conjugate() if mirrored else value


def _column_edges(columns: int) -> list[int]:
    """Split columns into equal shares of the points of uniform slices, 1 - kx / (N / 2)."""
    threads = max(1, min(torch.get_num_threads(), columns // 4))
    return [round(columns * (1 - (1 - t / threads) ** 0.5)) for t in range(threads + 1)]


def _real_view(x: Tensor) -> Any:
    return torch.view_as_real(x.detach().resolve_conj().contiguous()).numpy()


def packed_spectrum(grid: Tensor) -> PackedSpectrum:
    """Return the arguments of the loops for a packed spectrum ``(lines, size)``."""
    size = grid.shape[1]
    return PackedSpectrum(_real_view(grid).reshape(-1), size, lines(size).middle)


def slice_points(
    rotations: Tensor, n: int, size: int, real: Any, points: tuple[Any, Any, Any] | None = None
) -> SlicePoints:
    """Return the arguments of the loops for points (kx, ky, target), all of a slice by default."""
    kx, ky, target = points or disc(n)
    matrices = np.ascontiguousarray(rotations.detach().numpy(), dtype=real)
    return SlicePoints(matrices, real(size / n), kx.astype(real), ky.astype(real), target)


def gather(grid: Tensor, rotations: Tensor, n: int) -> Tensor:
    """Read slices ``(b, n * (n // 2 + 1))`` off a packed spectrum."""
    out = torch.zeros((rotations.shape[0], n * (n // 2 + 1)), dtype=grid.dtype)
    source, target = packed_spectrum(grid), _real_view(out)
    real = target.dtype.type
    points, table = slice_points(rotations, n, source.size, real), polynomials(real)[0]
    in_threads(lambda a, b: _gather(source, points, table, target, a, b), even_edges(0, len(out)))
    return out


def scatter_into(grid: Tensor, slices: Tensor, rotations: Tensor, n: int) -> None:
    """Add the transpose of :func:`gather` to a packed spectrum ``(lines, size)`` in place."""
    target, source = packed_spectrum(grid), _real_view(slices)
    real = source.dtype.type
    points, table = slice_points(rotations, n, target.size, real), polynomials(real)[0]
    work = partial(_scatter, target, points, table, source)
    in_threads(work, _column_edges(len(target.middle)))


def rotation_gradient(grid: Tensor, rotations: Tensor, n: int, upstream: Tensor) -> Tensor:
    """Return the gradient ``(b, 3, 3)`` of slices over rotations, contracted with ``upstream``."""
    source, above = packed_spectrum(grid), _real_view(upstream)
    real = above.dtype.type
    out = torch.zeros((rotations.shape[0], 3, 3), dtype=grid.real.dtype)
    points = slice_points(rotations, n, source.size, real)
    tables, target = polynomials(real), out.numpy()
    work = partial(_rotation_gradient, source, points, tables, above, target)
    in_threads(work, even_edges(0, len(out)))
    return out


def pack(planes: Tensor) -> Tensor:
    """Return zero-padded, weighted lines ``(lines, N)`` over z of planes ``(n, N, N / 2 + 1)``."""
    n, size, _ = planes.shape
    table = lines(size)
    out = torch.zeros((table.count, size), dtype=planes.dtype)
    source, target = planes.detach().contiguous().numpy(), out.numpy()
    weights = z_weights(n).astype(source.real.dtype)
    work = partial(_pack, source, weights, table.reach, table.middle, target)
    in_threads(work, even_edges(-(size // 2) - 1, size // 2 + 2))
    return out


def unpack(grid: Tensor, n: int) -> Tensor:
    """Transpose of :func:`pack`."""
    size = grid.shape[1]
    table = lines(size)
    out = torch.zeros((n, size, size // 2 + 1), dtype=grid.dtype)
    source, target = grid.detach().contiguous().numpy(), out.numpy()
    weights = z_weights(n).astype(source.real.dtype)
    work = partial(_unpack, source, weights, table.reach, table.middle, target)
    in_threads(work, even_edges(0, size))
    return out
