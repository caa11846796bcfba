"""Compiled CPU loops that weigh image spectra and insert them into a Fourier grid.

Threads split images when weighing. When inserting, each works on one set of particles and on a slab
of the grid's kx planes which it alone writes, so that nothing is locked and no grid is held twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from vitreous.physics._insertion_points import SPREAD, half_disc
from vitreous.physics._slice_cpu import FAST, compiled, in_threads

_DEGREE = 6


@lru_cache(maxsize=1)
def _sine() -> NDArray[np.float32]:
    r"""P with :math:`\sin 2 \pi x = x (1 - 4 x^2) P(x^2)` for x in [-1/2, 1/2], to 2e-7."""
    x = 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 128)
    values = np.sin(2 * np.pi * x) / (x * (1 - 4 * x**2))
    fit = np.polynomial.Chebyshev.fit(x**2, values, _DEGREE)
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


@njit(nogil=True, cache=True, fastmath=FAST, inline="always")
def _ctf_row(turns: Any, fy: Any, step: Any, first: int, last: int, sine: Any, out: Any) -> None:
    """-sin(gamma) at kx = ``first .. last`` of one row; see ``vitreous.physics.ctf``."""
    a, b, c, d, e = turns[0], turns[1], turns[2], turns[3], turns[4]
    for kx in range(first, last):
        fx = kx * step
        squared = fx * fx + fy * fy
        t = a * fx * fx + b * fy * fy + c * fx * fy + d * squared * squared + e
        x = np.float32(t - np.rint(t))
        u = x * x
        p = sine[_DEGREE]
        for i in range(_DEGREE - 1, -1, -1):
            p = p * u + sine[i]
        out[kx] = -p * x * (np.float32(1) - np.float32(4) * u)


@compiled
def _weigh(
    spectra: Any,
    turns: Any,
    decay: Any,
    step: float,
    phase_x: Any,
    phase_y: Any,
    weight: Any,
    table: Any,
    sine: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """(c conj(s) y, c^2) times the weight, of images ``begin .. end``, into ``out (b, points, 3)``.

    ``table`` holds ky, first kx, last kx and place of every row.
    """
    c = np.empty(spectra.shape[2], np.float32)
    envelope = np.ones(spectra.shape[2], np.float32)
    for b in range(begin, end):
        if decay[b] != 0:
            for kx in range(len(envelope)):
                envelope[kx] = np.exp(-0.25 * decay[b] * (kx * step) ** 2)
        for row in range(table.shape[0]):
            ky, first, last, place = table[row]
            _ctf_row(turns[b], ky * step, step, first, last, sine, c)
            if decay[b] != 0:
                along = np.float32(np.exp(-0.25 * decay[b] * (ky * step) ** 2))
                for kx in range(first, last):
                    c[kx] *= along * envelope[kx]
            yr, yi = phase_y[b, ky, 0], phase_y[b, ky, 1]
            for kx in range(first, last):
                pr = yr * phase_x[b, kx, 0] - yi * phase_x[b, kx, 1]
                pi = yr * phase_x[b, kx, 1] + yi * phase_x[b, kx, 0]
                re, im = spectra[b, ky, kx, 0], spectra[b, ky, kx, 1]
                factor, to = weight[b] * c[kx], place + kx - first
                out[b, to, 0] = factor * (re * pr + im * pi)
                out[b, to, 1] = factor * (im * pr - re * pi)
                out[b, to, 2] = factor * c[kx]


@njit(nogil=True, cache=True, inline="always")
def _crossing(slope: Any, start: Any, low: Any, high: Any, first: int, last: int) -> Any:
    """The kx of ``first .. last`` for which ``slope kx + start`` may lie in [low, high]."""
    if slope < 0:
        slope, start, low, high = -slope, -start, -high, -low
    if slope * last < 1e-3:  # nearly parallel: all or none
        near = start + slope * last >= low - 0.01 and start <= high + 0.01
        return (first, last) if near else (first, first)
    begin = max(float(first), np.floor((low - start) / slope - 0.01))
    end = min(float(last), np.ceil((high - start) / slope + 0.01) + 1)
    return int(begin), int(max(begin, end))


@njit(nogil=True, cache=True, fastmath=FAST, inline="always")
def _insert_row(
    grid: Any, edge: int, low: int, high: int, along: Any, start: Any, begin: int, values: Any
) -> None:
    """Trilinear insertion of one run of points whose kx begin at ``begin``."""
    half, one = edge // 2, np.float32(1)
    step_y, step_x = 4 * edge, 4 * edge * edge
    for m in range(values.shape[0]):
        kx = begin + m
        x, y, z = kx * along[0] + start[0], kx * along[1] + start[1], kx * along[2] + start[2]
        re, im, weight = values[m, 0], values[m, 1], values[m, 2]
        if x < 0:
            x, y, z, im = -x, -y, -z, -im
        floor_x, floor_y, floor_z = np.floor(x), np.floor(y), np.floor(z)
        ix, iy, iz = int(floor_x), int(floor_y) + half, int(floor_z) + half
        outside = iy < 0 or iz < 0 or iy >= edge - 1 or iz >= edge - 1
        if ix < low or ix >= high or outside:  # another slab's, or no rotation
            continue
        fx, fy, fz = np.float32(x - floor_x), np.float32(y - floor_y), np.float32(z - floor_z)
        a0, a1, a2 = (one - fz) * re, (one - fz) * im, (one - fz) * weight
        b0, b1, b2 = fz * re, fz * im, fz * weight
        corner = np.uintp((((ix - low) * edge + iy) * edge + iz) * 4)
        for c in range(2):
            wx = fx if c else one - fx
            for d in range(2):
                w = wx * (fy if d else one - fy)
                i = corner + np.uintp(c * step_x + d * step_y)
                g0, g1, g2 = grid[i], grid[i + np.uintp(1)], grid[i + np.uintp(2)]
                g4, g5 = grid[i + np.uintp(4)], grid[i + np.uintp(5)]
                g6 = grid[i + np.uintp(6)]
                grid[i] = g0 + w * a0
                grid[i + np.uintp(1)] = g1 + w * a1
                grid[i + np.uintp(2)] = g2 + w * a2
                grid[i + np.uintp(4)] = g4 + w * b0
                grid[i + np.uintp(5)] = g5 + w * b1
                grid[i + np.uintp(6)] = g6 + w * b2


@njit(nogil=True, cache=True, inline="always")
def _runs(slope: Any, start: Any, low: int, high: int, first: int, last: int) -> Any:
    """Two runs of kx, in order and apart, outside which no abs(x) lies in [low, high)."""
    a, b = _crossing(slope, start, -high, -low, first, last)
    c, d = _crossing(slope, start, low, high, first, last)
    if slope < 0:
        a, b, c, d = c, d, a, b
    return a, b, max(c, b), max(d, b)


@compiled
def _insert(
    grid: Any, edge: int, low: int, high: int, rotations: Any, values: Any, members: Any, table: Any
) -> None:
    """Add images to the cells ``low .. high`` of kx, hence to planes up to ``high`` included."""
    along, start = np.empty(3, np.float32), np.empty(3, np.float32)
    whole = low == 0 and high == edge // 2
    for b in members:
        for m in range(rotations.shape[1]):
            r = rotations[b, m]
            for row in range(table.shape[0]):
                ky, first, last, place = table[row]
                for i in range(3):
                    along[i] = SPREAD * r[0, i]
                    start[i] = SPREAD * ky * r[1, i]
                if whole:
                    run = values[b, place : place + last - first]
                    _insert_row(grid, edge, low, high, along, start, first, run)
                    continue
                a0, a1, b0, b1 = _runs(along[0], start[0], low, high, first, last)
                run = values[b, place + a0 - first : place + a1 - first]
                _insert_row(grid, edge, low, high, along, start, a0, run)
                run = values[b, place + b0 - first : place + b1 - first]
                _insert_row(grid, edge, low, high, along, start, b0, run)


def _real(x: Tensor) -> Any:
    return torch.view_as_real(x.resolve_conj().to(torch.complex64).contiguous()).numpy()


def weigh(
    spectra: Tensor,
    turns: Tensor,
    decay: Tensor,
    step: float,
    phases: tuple[Tensor, Tensor],
    weight: Tensor,
) -> Tensor:
    """See :func:`vitreous.physics.insertion.weighted_slices`."""
    n = spectra.shape[-2]
    points = half_disc(n)
    out = torch.empty((len(spectra), len(points.kx), 3))
    phase_x, phase_y = (_real(phase) for phase in phases)
    source, target = _real(spectra), out.numpy()
    common = (
        *(source, turns.contiguous().numpy(), decay.double().numpy(), step, phase_x, phase_y),
        *(weight.float().numpy(), points.table, _sine(), target),
    )
    threads = max(1, min(torch.get_num_threads(), len(out)))
    edges = [len(out) * t // threads for t in range(threads + 1)]
    in_threads(lambda a, b: _weigh(*common, a, b), edges)
    return out


def slab_edges(n: int, sets: int) -> list[int]:
    """kx at which the grids of ``sets`` sets are cut, so that there is work for every thread."""
    slabs = max(1, min(-(-torch.get_num_threads() // sets), n // 4))
    # uniformly oriented slices have 1 - kx / n of their points beyond kx
    edges = [round(n * (1 - (1 - s / slabs) ** 0.5)) for s in range(slabs + 1)]
    return edges


def insert(
    slabs: Sequence[Sequence[Tensor]],
    edges: Sequence[int],
    values: Tensor,
    rotations: Tensor,
    sets: Tensor,
) -> None:
    """See :meth:`vitreous.physics.insertion.Accumulator.insert`; adds to ``slabs`` in place."""
    edge = slabs[0][0].shape[1]
    table = half_disc(edge // 2).table
    matrices = rotations.float().contiguous().numpy()
    members = [np.flatnonzero(sets.numpy() == s) for s in range(len(slabs))]
    tasks = [(s, slab) for s in range(len(slabs)) for slab in range(len(edges) - 1)]

    def work(first: int, last: int) -> None:
        for s, slab in tasks[first:last]:
            target = slabs[s][slab].view(-1).numpy()
            low, high = edges[slab], edges[slab + 1]
            _insert(target, edge, low, high, matrices, values.numpy(), members[s], table)

    threads = min(torch.get_num_threads(), len(tasks))
    in_threads(work, [len(tasks) * t // threads for t in range(threads + 1)])
