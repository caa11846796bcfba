"""Compiled CPU loops that weight image spectra and insert them into a Fourier grid.

When weighting, threads split the images. When inserting, each thread handles one set of particles
and one slab of kx planes of the grid, to which no other thread writes: no locks, one grid a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.jit import njit
from vitreous.core.threads import FAST_MATH, compiled, even_edges, in_threads
from vitreous.physics.kernels.insertion_points import SPREAD, half_disc

_DEGREE = 6


class CtfTerms(NamedTuple):
    """CTFs of images: phase coefficients, B factors, frequency step (1/Å), sine polynomial."""

    phase: Any
    b_factor: Any
    step: float
    sine: Any


@lru_cache(maxsize=1)
def _sine() -> NDArray[np.float32]:
    r"""Fit P in :math:`\sin 2 \pi x = x (1 - 4 x^2) P(x^2)` for x in [-1/2, 1/2], to 2e-7."""
    x = 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 128)
    values = np.sin(2 * np.pi * x) / (x * (1 - 4 * x**2))
    fit = np.polynomial.Chebyshev.fit(x**2, values, _DEGREE)
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


@njit(nogil=True, fastmath=FAST_MATH, inline="always")
def _ctf_row(phase: Any, fy: Any, step: Any, first: int, last: int, sine: Any, out: Any) -> None:
    """-sin(gamma) at kx = ``first .. last`` of one row; see ``vitreous.physics.ctf``."""
    a, b, c, d, e = phase[0], phase[1], phase[2], phase[3], phase[4]
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
def _weight(
    spectra: Any, ctf: Any, shifts: Any, weight: Any, table: Any, out: Any, begin: int, end: int
) -> None:
    """(c conj(s) y, c^2) times the weight, of images ``begin .. end``, into ``out (b, points, 3)``.

    ``spectra`` holds these images only; ``table`` is that of :class:`HalfDisc`.
    """
    step, b_factor = ctf.step, ctf.b_factor
    phase_x, phase_y = shifts
    c = np.empty(spectra.shape[2] // 2, np.float32)
    envelope = np.ones(len(c), np.float32)
    for b in range(begin, end):
        if b_factor[b] != 0:
            for kx in range(len(envelope)):
                envelope[kx] = np.exp(-0.25 * b_factor[b] * (kx * step) ** 2)
        for row in range(table.shape[0]):
            ky, first, last, place = table[row]
            _ctf_row(ctf.phase[b], ky * step, step, first, last, ctf.sine, c)
            if b_factor[b] != 0:
                along = np.float32(np.exp(-0.25 * b_factor[b] * (ky * step) ** 2))
                for kx in range(first, last):
                    c[kx] *= along * envelope[kx]
            yr, yi = phase_y[b, ky, 0], phase_y[b, ky, 1]
            for kx in range(first, last):
                pr = yr * phase_x[b, kx, 0] - yi * phase_x[b, kx, 1]
                pi = yr * phase_x[b, kx, 1] + yi * phase_x[b, kx, 0]
                re, im = spectra[b - begin, ky, 2 * kx], spectra[b - begin, ky, 2 * kx + 1]
                factor, to = weight[b] * c[kx], place + kx - first
                out[b, to, 0] = factor * (re * pr + im * pi)
                out[b, to, 1] = factor * (im * pr - re * pi)
                out[b, to, 2] = factor * c[kx]


@njit(nogil=True, inline="always")
def _crossing(slope: Any, start: Any, low: Any, high: Any, first: int, last: int) -> Any:
    """Return the kx of ``first .. last`` for which ``slope kx + start`` may lie in [low, high]."""
    if slope < 0:
        slope, start, low, high = -slope, -start, -high, -low
    if slope * last < 1e-3:  # nearly parallel: all or none
        near = start + slope * last >= low - 0.01 and start <= high + 0.01
        return (first, last) if near else (first, first)
    begin = max(float(first), np.floor((low - start) / slope - 0.01))
    end = min(float(last), np.ceil((high - start) / slope + 0.01) + 1)
    return int(begin), int(max(begin, end))


@njit(nogil=True, fastmath=FAST_MATH, inline="always")
def _cells(
    edge: int, low: int, high: int, along: Any, start: Any, begin: int, end: int, buffers: Any
) -> int:
    """Write cells and fractions of points ``begin .. end`` in the slab to ``buffers``, counted."""
    cell, source, fraction = buffers
    half, count = edge // 2, 0
    for kx in range(begin, end):
        x, y, z = kx * along[0] + start[0], kx * along[1] + start[1], kx * along[2] + start[2]
        sign = np.float32(-1) if x < 0 else np.float32(1)
        x, y, z = sign * x, sign * y, sign * z
        floor_x, floor_y, floor_z = np.floor(x), np.floor(y), np.floor(z)
        ix, iy, iz = np.int32(floor_x), np.int32(floor_y) + half, np.int32(floor_z) + half
        outside = iy < 0 or iz < 0 or iy >= edge - 1 or iz >= edge - 1
        if ix < low or ix >= high or outside:  # in another slab, or not a rotation
            continue
        cell[count] = ((ix - low) * edge + iy) * edge + iz
        source[count] = kx - begin
        fraction[count, 0] = x - floor_x
        fraction[count, 1] = y - floor_y
        fraction[count, 2] = z - floor_z
        fraction[count, 3] = sign
        count += 1
    return count


@njit(nogil=True, fastmath=FAST_MATH, inline="always")
def _add(grid: Any, edge: int, values: Any, buffers: Any, count: int) -> None:
    """Insert the points of :func:`_cells` by trilinear weights."""
    cell, source, fraction = buffers
    step_y, step_x, one = 3 * edge, 3 * edge * edge, np.float32(1)
    for m in range(count):
        v = values[source[m]]
        fx, fy, fz = fraction[m, 0], fraction[m, 1], fraction[m, 2]
        re, im, weight = v[0], fraction[m, 3] * v[1], v[2]
        a0, a1, a2 = (one - fz) * re, (one - fz) * im, (one - fz) * weight
        b0, b1, b2 = fz * re, fz * im, fz * weight
        corner = np.uintp(3 * cell[m])
        for c in range(2):
            wx = fx if c else one - fx
            for d in range(2):
                w = wx * (fy if d else one - fy)
                i = corner + np.uintp(c * step_x + d * step_y)
                g0, g1, g2 = grid[i], grid[i + np.uintp(1)], grid[i + np.uintp(2)]
                g3, g4, g5 = grid[i + np.uintp(3)], grid[i + np.uintp(4)], grid[i + np.uintp(5)]
                grid[i] = g0 + w * a0
                grid[i + np.uintp(1)] = g1 + w * a1
                grid[i + np.uintp(2)] = g2 + w * a2
                grid[i + np.uintp(3)] = g3 + w * b0
                grid[i + np.uintp(4)] = g4 + w * b1
                grid[i + np.uintp(5)] = g5 + w * b2


@njit(nogil=True, inline="always")
def _runs(slope: Any, start: Any, low: int, high: int, first: int, last: int) -> Any:
    """Return two disjoint runs of kx, in order, outside which no abs(x) lies in [low, high)."""
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
    longest = edge // 4 + 2
    buffers = (
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty((longest, 4), np.float32),
    )
    whole = low == 0 and high == edge // 2
    for b in members:
        for m in range(rotations.shape[1]):
            r = rotations[b, m]
            for row in range(table.shape[0]):
                ky, first, last, place = table[row]
                for i in range(3):
                    along[i] = SPREAD * r[0, i]
                    start[i] = SPREAD * ky * r[1, i]
                a0, a1, b0, b1 = first, last, last, last
                if not whole:
                    a0, a1, b0, b1 = _runs(along[0], start[0], low, high, first, last)
                count = _cells(edge, low, high, along, start, a0, a1, buffers)
                run = values[b, place + a0 - first : place + last - first]
                _add(grid, edge, run, buffers, count)
                if b1 > b0:
                    count = _cells(edge, low, high, along, start, b0, b1, buffers)
                    run = values[b, place + b0 - first : place + last - first]
                    _add(grid, edge, run, buffers, count)


def weight(
    images: Tensor,
    optics: tuple[Tensor, Tensor, float],
    phases: tuple[Tensor, Tensor],
    factor: Tensor,
    n: int,
    threads: int | None,
) -> Tensor:
    """Implement :func:`vitreous.physics.insertion.weighted_slices`.

    ``optics`` holds phase coefficients, B factors, and the frequency step of kx in 1/Å.
    """
    points = half_disc(n)
    out = torch.empty((len(images), len(points.kx), 3))
    source, target = images.numpy(), out.numpy()
    phase, b_factor, step = optics
    ctf = CtfTerms(phase.numpy(), b_factor.double().numpy(), step, _sine())
    phase_x, phase_y = (torch.view_as_real(p.to(torch.complex64)).numpy() for p in phases)
    common = ctf, (phase_x, phase_y), factor.float().numpy(), points.table, target

    def work(first: int, last: int) -> None:
        spectra = scipy.fft.rfft2(source[first:last], workers=1).view(np.float32)
        _weight(spectra, *common, first, last)

    in_threads(work, even_edges(0, len(out), threads))
    return out


def slab_edges(n: int, slabs: int) -> list[int]:
    """Return the kx that cut a grid into about ``slabs`` parts with equal shares of the points."""
    slabs = max(1, min(slabs, n // 4))
    # uniformly oriented slices have 1 - kx / n of their points beyond kx
    return [round(n * (1 - (1 - s / slabs) ** 0.5)) for s in range(slabs + 1)]


def insert(
    slabs: Sequence[Sequence[Tensor]],
    edges: Sequence[int],
    values: Tensor,
    rotations: Tensor,
    sets: Tensor,
) -> None:
    """Implement :meth:`vitreous.physics.insertion.Accumulator.insert`; changes ``slabs``."""
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

    in_threads(work, range(len(tasks) + 1))
