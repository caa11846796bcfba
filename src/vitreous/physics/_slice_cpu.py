"""Compiled CPU loops of the Fourier-slice projector: gather, scatter and gather of the slope.

Every routine works on the real view ``(N, N, N // 2 + 1, 2)`` of an oversampled Hermitian-half
spectrum in FFT order. A slice point reads 4 x 4 x 4 neighbours; the four neighbours along x lie
side by side, so one row is eight numbers in a line. Threads split images (gather) or z-planes of
the grid (scatter): each grid point is summed by one thread in one order, so results do not depend
on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

_POOLS: dict[int, ThreadPoolExecutor] = {}


@njit(nogil=True, cache=True, inline="always")
def _weights(f: Any, coefficients: Any, out: Any) -> None:
    """Four kernel weights at fraction ``f`` in [-0.5, 0.5): row ``j`` holds tap j's polynomial."""
    for j in range(4):
        value = coefficients[j, 0]
        for p in range(1, coefficients.shape[1]):
            value = value * f + coefficients[j, p]
        out[j] = value


@njit(nogil=True, cache=True, inline="always")
def _wrap(index: int, full: int) -> int:
    """Negative frequencies sit at the end of the axis (no division: indices never pass ``full``)."""
    return index + full if index < 0 else index


@njit(nogil=True, cache=True, inline="always")
def _column(base: int, tap: int, half: int, full: int) -> tuple[int, bool]:
    """Stored column of tap ``base + tap`` and whether it is read as a conjugate."""
    column = base + tap
    if column < 0:
        return -column, True
    if column >= half:
        return full - column, True
    return column, False


@njit(nogil=True, cache=True, fastmath=True)
def gather(
    grid: Any,
    rotations: Any,
    scale: Any,
    kx: Any,
    ky: Any,
    target: Any,
    coefficients: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Interpolate slices ``first .. last`` into ``out (b, points, 2)``."""
    full, half = grid.shape[0], grid.shape[2]
    wx, wy, wz = np.empty(4, grid.dtype), np.empty(4, grid.dtype), np.empty(4, grid.dtype)
    for b in range(first, last):
        r = rotations[b]
        for m in range(kx.shape[0]):
            px = scale * (kx[m] * r[0, 0] + ky[m] * r[1, 0])
            py = scale * (kx[m] * r[0, 1] + ky[m] * r[1, 1])
            pz = scale * (kx[m] * r[0, 2] + ky[m] * r[1, 2])
            sign = 1.0
            if px < 0:
                px, py, pz, sign = -px, -py, -pz, -1.0
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            _weights(px - ix - 0.5, coefficients, wx)
            _weights(py - iy - 0.5, coefficients, wy)
            _weights(pz - iz - 0.5, coefficients, wz)
            re, im = 0.0, 0.0
            if ix >= 1 and ix + 2 < half:
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = grid.dtype.type(0.0)
                for c in range(4):
                    z = _wrap(iz - 1 + c, full)
                    for d in range(4):
                        y = _wrap(iy - 1 + d, full)
                        w = wz[c] * wy[d]
                        row = grid[z, y]
                        a0 += w * row[ix - 1, 0]
                        a1 += w * row[ix - 1, 1]
                        a2 += w * row[ix, 0]
                        a3 += w * row[ix, 1]
                        a4 += w * row[ix + 1, 0]
                        a5 += w * row[ix + 1, 1]
                        a6 += w * row[ix + 2, 0]
                        a7 += w * row[ix + 2, 1]
                re = wx[0] * a0 + wx[1] * a2 + wx[2] * a4 + wx[3] * a6
                im = wx[0] * a1 + wx[1] * a3 + wx[2] * a5 + wx[3] * a7
            else:
                for c in range(4):
                    z = _wrap(iz - 1 + c, full)
                    for d in range(4):
                        y = _wrap(iy - 1 + d, full)
                        w = wz[c] * wy[d]
                        for e in range(4):
                            column, mirrored = _column(ix, e - 1, half, full)
                            if mirrored:
                                zz, yy = _wrap(-z, full), _wrap(-y, full)
                                re += w * wx[e] * grid[zz, yy, column, 0]
                                im -= w * wx[e] * grid[zz, yy, column, 1]
                            else:
                                re += w * wx[e] * grid[z, y, column, 0]
                                im += w * wx[e] * grid[z, y, column, 1]
            out[b, target[m], 0] = re
            out[b, target[m], 1] = sign * im


@njit(nogil=True, cache=True, fastmath=True)
def scatter(
    grid: Any,
    rotations: Any,
    scale: Any,
    kx: Any,
    ky: Any,
    target: Any,
    coefficients: Any,
    slices: Any,
    first: int,
    last: int,
) -> None:
    """Exact adjoint of :func:`gather`, adding into the planes ``first <= z < last`` of ``grid``."""
    full, half = grid.shape[0], grid.shape[2]
    wx, wy, wz = np.empty(4, grid.dtype), np.empty(4, grid.dtype), np.empty(4, grid.dtype)
    for b in range(rotations.shape[0]):
        r = rotations[b]
        for m in range(kx.shape[0]):
            px = scale * (kx[m] * r[0, 0] + ky[m] * r[1, 0])
            py = scale * (kx[m] * r[0, 1] + ky[m] * r[1, 1])
            pz = scale * (kx[m] * r[0, 2] + ky[m] * r[1, 2])
            re, im = slices[b, target[m], 0], slices[b, target[m], 1]
            if px < 0:
                px, py, pz, im = -px, -py, -pz, -im
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            inner = ix >= 1 and ix + 2 < half
            if inner:
                mine = False
                for c in range(4):
                    z = _wrap(iz - 1 + c, full)
                    mine = mine or first <= z < last
                if not mine:
                    continue
            _weights(px - ix - 0.5, coefficients, wx)
            _weights(py - iy - 0.5, coefficients, wy)
            _weights(pz - iz - 0.5, coefficients, wz)
            for c in range(4):
                z = _wrap(iz - 1 + c, full)
                if inner and not first <= z < last:
                    continue
                for d in range(4):
                    y = _wrap(iy - 1 + d, full)
                    w = wz[c] * wy[d]
                    if inner:
                        row = grid[z, y]
                        wre, wim = w * re, w * im
                        row[ix - 1, 0] += wx[0] * wre
                        row[ix - 1, 1] += wx[0] * wim
                        row[ix, 0] += wx[1] * wre
                        row[ix, 1] += wx[1] * wim
                        row[ix + 1, 0] += wx[2] * wre
                        row[ix + 1, 1] += wx[2] * wim
                        row[ix + 2, 0] += wx[3] * wre
                        row[ix + 2, 1] += wx[3] * wim
                        continue
                    for e in range(4):
                        column, mirrored = _column(ix, e - 1, half, full)
                        zz = _wrap(-z, full) if mirrored else z
                        if first <= zz < last:
                            yy = _wrap(-y, full) if mirrored else y
                            grid[zz, yy, column, 0] += w * wx[e] * re
                            grid[zz, yy, column, 1] += w * wx[e] * (-im if mirrored else im)


@njit(nogil=True, cache=True, fastmath=True)
def slope(
    grid: Any,
    rotations: Any,
    scale: Any,
    kx: Any,
    ky: Any,
    target: Any,
    coefficients: Any,
    derivatives: Any,
    slices: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Gradient of ``sum(slices * gather(grid))`` over the rotations, into ``out (b, 3, 3)``."""
    full, half = grid.shape[0], grid.shape[2]
    wx, wy, wz = np.empty(4, grid.dtype), np.empty(4, grid.dtype), np.empty(4, grid.dtype)
    dx, dy, dz = np.empty(4, grid.dtype), np.empty(4, grid.dtype), np.empty(4, grid.dtype)
    for b in range(first, last):
        r = rotations[b]
        for m in range(kx.shape[0]):
            px = scale * (kx[m] * r[0, 0] + ky[m] * r[1, 0])
            py = scale * (kx[m] * r[0, 1] + ky[m] * r[1, 1])
            pz = scale * (kx[m] * r[0, 2] + ky[m] * r[1, 2])
            sign = 1.0
            if px < 0:
                px, py, pz, sign = -px, -py, -pz, -1.0
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            _weights(px - ix - 0.5, coefficients, wx)
            _weights(py - iy - 0.5, coefficients, wy)
            _weights(pz - iz - 0.5, coefficients, wz)
            _weights(px - ix - 0.5, derivatives, dx)
            _weights(py - iy - 0.5, derivatives, dy)
            _weights(pz - iz - 0.5, derivatives, dz)
            re, im = slices[b, target[m], 0], sign * slices[b, target[m], 1]
            gx, gy, gz = 0.0, 0.0, 0.0
            for c in range(4):
                z = _wrap(iz - 1 + c, full)
                for d in range(4):
                    y = _wrap(iy - 1 + d, full)
                    for e in range(4):
                        column, mirrored = _column(ix, e - 1, half, full)
                        if mirrored:
                            zz, yy = _wrap(-z, full), _wrap(-y, full)
                            value = re * grid[zz, yy, column, 0] - im * grid[zz, yy, column, 1]
                        else:
                            value = re * grid[z, y, column, 0] + im * grid[z, y, column, 1]
                        gx += wz[c] * wy[d] * dx[e] * value
                        gy += wz[c] * dy[d] * wx[e] * value
                        gz += dz[c] * wy[d] * wx[e] * value
            factor = sign * scale
            for i, g in enumerate((gx, gy, gz)):
                out[b, 0, i] += factor * kx[m] * g
                out[b, 1, i] += factor * ky[m] * g


def in_threads(work: Callable[[int, int], None], size: int) -> None:
    """Run ``work(first, last)`` over ``range(size)`` split among as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), size))
    if threads == 1:
        work(0, size)
        return
    pool = _POOLS.setdefault(threads, ThreadPoolExecutor(threads, "vitreous-slice"))
    edges = [size * t // threads for t in range(threads + 1)]
    for future in [pool.submit(work, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]:
        future.result()
