"""Compiled CPU loops of the tilt-series projector.

Slices perpendicular to the tilt axis are independent, so the innermost loop runs along the tilt
axis: volumes and images are held as blocks of slices, ``(blocks, z or tilt, x, lanes)``. For one
tilt and one plane z, projection and back-projection are banded matrices: every line of the target
gathers successive lines of the source. Threads split the blocks in both directions: no two write to
the same place, and the order of summation does not depend on their number.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.jit import njit
from vitreous.core.threads import FAST_MATH, compiled, even_edges, in_threads

_DEPTH = 8  # planes z processed for one tilt before the next tilt
_GROUP = 4  # lines gathered together
_LANES = 64  # largest number of slices in a block


class Footprint(NamedTuple):
    """Footprint of a voxel: table of values, and its entries per pixel."""

    table: Any
    steps: int


@njit(nogil=True, fastmath=FAST_MATH)
def _bands(
    weights: Any, firsts: Any, slope: Any, offset: Any, reach: Any, stretch: Any, size: int,
    footprint: Any,
) -> None:  # fmt: skip
    """Write the rows of a banded matrix; row i is centred on ``slope * i + offset`` of the source.

    ``weights (rows, taps)`` and ``firsts (rows,)``, the first line of the source that each row
    reads, are filled; ``reach`` counts the lines of the source that a row reads to either side,
    ``stretch`` is the width of a line in pixels and ``size`` the number of lines.
    """
    table, steps = footprint.table, footprint.steps
    taps, last, half = weights.shape[1], table.shape[0] - 2.0, table.shape[0] // 2
    for i in range(weights.shape[0]):
        centre = slope * i + offset
        first = min(max(int(np.floor(centre - reach)) + 1, 0), size - taps)
        firsts[i] = first
        start = (first - centre) * stretch * steps + half
        for k in range(taps):
            at = min(max(start + k * stretch * steps, 0.0), last)
            j = int(at)
            weights[i, k] = table[j] + (at - j) * (table[j + 1] - table[j])


@njit(nogil=True, fastmath=FAST_MATH, inline="always")
def _gather(target: Any, source: Any, weights: Any, firsts: Any, taps: int) -> None:
    """Add a banded matrix times ``source (lines, lanes)`` to ``target (rows, lanes)``."""
    for i in range(target.shape[0]):
        for k in range(0, taps, _GROUP):
            w0, w1, w2, w3 = weights[i, k], weights[i, k + 1], weights[i, k + 2], weights[i, k + 3]
            p = firsts[i] + k
            for y in range(target.shape[1]):
                target[i, y] += (
                    w0 * source[p, y]
                    + w1 * source[p + 1, y]
                    + w2 * source[p + 2, y]
                    + w3 * source[p + 3, y]
                )


@compiled
def _project(
    volume: Any, angles: Any, centres: Any, footprint: Any, out: Any, first: int, last: int
) -> None:
    """Add the images of blocks ``first .. last`` to ``out (blocks, tilts, x', lanes)``."""
    depth, n, width = volume.shape[1], volume.shape[2], out.shape[2]
    support = (footprint.table.shape[0] // 2 - 1) / footprint.steps
    weights = np.empty(_DEPTH * width * n, volume.dtype)
    firsts = np.empty((_DEPTH, width), np.int64)
    lows, highs = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, np.int64)
    for start in range(0, depth, _DEPTH):
        planes = min(_DEPTH, depth - start)
        for t in range(angles.shape[0]):
            cosine, sine = angles[t, 0], angles[t, 1]
            reach = support / cosine
            taps = min(_GROUP * int(np.ceil(2 * reach / _GROUP)), n)
            band = weights[: _DEPTH * width * taps].reshape((_DEPTH, width, taps))
            for p in range(planes):
                # centre on the detector of the volume's first line
                origin = centres[2] - centres[1] * cosine + (start + p - centres[0]) * sine
                low = max(int(np.floor(origin - support)) + 1, 0)
                high = max(min(int(np.ceil(origin + (n - 1) * cosine + support)), width), low)
                offset, rows = (low - origin) / cosine, band[p, : high - low]
                _bands(rows, firsts[p], 1 / cosine, offset, reach, cosine, n, footprint)
                lows[p], highs[p] = low, high
            for b in range(first, last):
                for p in range(planes):
                    low, high = lows[p], highs[p]
                    _gather(out[b, t, low:high], volume[b, start + p], band[p], firsts[p], taps)


@compiled
def _back_project(
    images: Any, angles: Any, centres: Any, footprint: Any, out: Any, first: int, last: int
) -> None:
    """Transpose of :func:`_project`: add to ``out (blocks, z, x, lanes)``."""
    depth, n, width = out.shape[1], out.shape[2], images.shape[2]
    support = (footprint.table.shape[0] // 2 - 1) / footprint.steps
    taps = min(_GROUP * int(np.ceil(2 * support / _GROUP)), width)
    weights = np.empty((_DEPTH, n, taps), images.dtype)
    firsts = np.empty((_DEPTH, n), np.int64)
    for start in range(0, depth, _DEPTH):
        planes = min(_DEPTH, depth - start)
        for t in range(angles.shape[0]):
            cosine, sine = angles[t, 0], angles[t, 1]
            for p in range(planes):
                origin = centres[2] - centres[1] * cosine + (start + p - centres[0]) * sine
                _bands(weights[p], firsts[p], cosine, origin, support, 1.0, width, footprint)
            for b in range(first, last):
                for p in range(planes):
                    _gather(out[b, start + p], images[b, t], weights[p], firsts[p], taps)


def _lanes(slices: int) -> int:
    """Return the slices of a block: whole vectors, and at least two blocks if there are enough."""
    share = math.ceil(slices / max(2, math.ceil(slices / _LANES)))
    return 8 * math.ceil(share / 8)


def _blocks(x: Tensor) -> NDArray[Any]:
    """Reorder ``(k, y, x)`` to ``(blocks, k, x, lanes)``, y and x zero-padded to whole groups."""
    k, slices, n = x.shape
    lanes = _lanes(slices)
    count = math.ceil(slices / lanes)
    padded = F.pad(x.detach(), (0, -n % _GROUP, 0, count * lanes - slices))
    tiles = padded.reshape(k, count, lanes, -1).permute(1, 0, 3, 2)
    return np.asarray(tiles.contiguous().numpy())


def _unblocked(tiles: NDArray[Any], slices: int, n: int) -> Tensor:
    """Transpose of :func:`_blocks`."""
    count, k, _, lanes = tiles.shape
    whole = torch.from_numpy(tiles)[:, :, :n].permute(1, 0, 3, 2).reshape(k, count * lanes, n)
    return whole[:, :slices].contiguous()


def project(
    x: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], width: int, table: Tensor,
    steps: int,
) -> Tensor:  # fmt: skip
    """Project coefficients ``(z, y, x)`` to images ``(tilts, y, width)``.

    ``cosines_sines`` is float64 ``(tilts, 2)``; ``centres`` are the indices z and x of the tilt
    axis in the volume, and x' in images; ``table`` is the float64 footprint, ``steps`` entries a
    pixel, distance 0 in the middle, zeros at the first and the last two.
    """
    volume = _blocks(x)
    blocks, _, _, lanes = volume.shape
    out = np.zeros((blocks, len(cosines_sines), width + -width % _GROUP, lanes), volume.dtype)
    footprint = Footprint(table.numpy(), steps)
    common = (volume, cosines_sines.numpy(), np.array(centres, np.float64), footprint)
    in_threads(lambda a, b: _project(*common, out, a, b), even_edges(0, blocks))
    return _unblocked(out, x.shape[1], width)


def back_project(
    y: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], shape: tuple[int, int],
    table: Tensor, steps: int,
) -> Tensor:  # fmt: skip
    """Transpose of :func:`project`: coefficients ``(z, y, x)``, ``shape`` being (z, x)."""
    images, (depth, n) = _blocks(y), shape
    blocks, _, _, lanes = images.shape
    out = np.zeros((blocks, depth, n + -n % _GROUP, lanes), images.dtype)
    footprint = Footprint(table.numpy(), steps)
    common = (images, cosines_sines.numpy(), np.array(centres, np.float64), footprint)
    in_threads(lambda a, b: _back_project(*common, out, a, b), even_edges(0, blocks))
    return _unblocked(out, y.shape[1], n)
