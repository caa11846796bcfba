"""Compiled CPU loops of the tilt-series projector.

Slices perpendicular to the tilt axis are independent, so the innermost loop runs along the tilt
axis: volumes and images are held as blocks of slices, ``(blocks, z or tilt, x, lanes)``. For one
tilt and one plane z, projection and back-projection are banded matrices: every line of the target
gathers a few successive lines of the source. Threads split the blocks in both directions, so that
no two write to the same place and every number is summed in one order, however many there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.threads import FAST_MATH, compiled, in_threads

_DEPTH = 8  # planes z that one tilt is done for before the next one
_GROUP = 4  # lines gathered at once
_LANES = 64  # slices of a block, at most


@njit(nogil=True, cache=True, fastmath=FAST_MATH)
def _bands(
    weights: Any, places: Any, slope: Any, offset: Any, reach: Any, stretch: Any, size: int,
    table: Any, steps: int,
) -> None:  # fmt: skip
    """Rows of a banded matrix: row i is centred on ``slope * i + offset`` of the source.

    Args:
        weights: ``(rows, taps)``, filled.
        places: ``(rows,)``, filled with the first line of the source that each row reads.
        slope, offset: see above.
        reach: lines of the source that a row reads to either side.
        stretch: pixels that a line of the source is wide.
        size: lines of the source.
        table, steps: footprint, and its entries per pixel.
    """
    taps, last, half = weights.shape[1], table.shape[0] - 2.0, table.shape[0] // 2
    for i in range(weights.shape[0]):
        centre = slope * i + offset
        place = min(max(int(np.floor(centre - reach)) + 1, 0), size - taps)
        places[i] = place
        start = (place - centre) * stretch * steps + half
        for k in range(taps):
            at = min(max(start + k * stretch * steps, 0.0), last)
            j = int(at)
            weights[i, k] = table[j] + (at - j) * (table[j + 1] - table[j])


@njit(nogil=True, cache=True, fastmath=FAST_MATH, inline="always")
def _gather(target: Any, source: Any, weights: Any, places: Any, taps: int) -> None:
    """Add a banded matrix times ``source (lines, lanes)`` to ``target (rows, lanes)``."""
    for i in range(target.shape[0]):
        for k in range(0, taps, _GROUP):
            w0, w1, w2, w3 = weights[i, k], weights[i, k + 1], weights[i, k + 2], weights[i, k + 3]
            p = places[i] + k
            for y in range(target.shape[1]):
                target[i, y] += (
                    w0 * source[p, y]
                    + w1 * source[p + 1, y]
                    + w2 * source[p + 2, y]
                    + w3 * source[p + 3, y]
                )


@compiled
def _project(
    volume: Any,
    angles: Any,
    centres: Any,
    table: Any,
    steps: int,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Add the images of blocks ``first .. last`` to ``out (blocks, tilts, x', lanes)``."""
    depth, n, width = volume.shape[1], volume.shape[2], out.shape[2]
    support = (table.shape[0] // 2 - 1) / steps
    weights = np.empty(_DEPTH * width * n, volume.dtype)
    places = np.empty((_DEPTH, width), np.int64)
    lows, highs = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, np.int64)
    for start in range(0, depth, _DEPTH):
        planes = min(_DEPTH, depth - start)
        for t in range(angles.shape[0]):
            cosine, sine = angles[t, 0], angles[t, 1]
            reach = support / cosine
            taps = min(_GROUP * int(np.ceil(2 * reach / _GROUP)), n)
            band = weights[: _DEPTH * width * taps].reshape((_DEPTH, width, taps))
            for p in range(planes):
                # the centre of the volume's first line on the detector, and of its last
                left = centres[2] - centres[1] * cosine + (start + p - centres[0]) * sine
                low = max(int(np.floor(left - support)) + 1, 0)
                high = max(min(int(np.ceil(left + (n - 1) * cosine + support)), width), low)
                offset = (low - left) / cosine
                _bands(
                    band[p, : high - low], places[p], 1 / cosine, offset, reach, cosine, n, table,
                    steps,
                )  # fmt: skip
                lows[p], highs[p] = low, high
            for b in range(first, last):
                for p in range(planes):
                    low, high = lows[p], highs[p]
                    _gather(out[b, t, low:high], volume[b, start + p], band[p], places[p], taps)


@compiled
def _back_project(
    images: Any,
    angles: Any,
    centres: Any,
    table: Any,
    steps: int,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Transpose of :func:`_project`: add to ``out (blocks, z, x, lanes)``."""
    depth, n, width = out.shape[1], out.shape[2], images.shape[2]
    support = (table.shape[0] // 2 - 1) / steps
    taps = min(_GROUP * int(np.ceil(2 * support / _GROUP)), width)
    weights = np.empty((_DEPTH, n, taps), images.dtype)
    places = np.empty((_DEPTH, n), np.int64)
    for start in range(0, depth, _DEPTH):
        planes = min(_DEPTH, depth - start)
        for t in range(angles.shape[0]):
            cosine, sine = angles[t, 0], angles[t, 1]
            for p in range(planes):
                left = centres[2] - centres[1] * cosine + (start + p - centres[0]) * sine
                _bands(weights[p], places[p], cosine, left, support, 1.0, width, table, steps)
            for b in range(first, last):
                for p in range(planes):
                    _gather(out[b, start + p], images[b, t], weights[p], places[p], taps)


def _lanes(slices: int) -> int:
    """Slices of a block: at least two blocks where there are slices for them, whole vectors."""
    share = math.ceil(slices / max(2, math.ceil(slices / _LANES)))
    return 8 * math.ceil(share / 8)


def _blocks(x: Tensor) -> NDArray[Any]:
    """``(k, y, x)`` as ``(blocks, k, x, lanes)``, y and x (to whole groups) padded with zeros."""
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


def _edges(count: int) -> list[int]:
    threads = max(1, min(torch.get_num_threads(), count))
    return [count * t // threads for t in range(threads + 1)]


def project(
    x: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], width: int, table: Tensor,
    steps: int,
) -> Tensor:  # fmt: skip
    """Images ``(tilts, y, width)`` of coefficients ``(z, y, x)``.

    Args:
        x: coefficients.
        cosines_sines: float64 ``(tilts, 2)``.
        centres: indices z and x of the tilt axis in the volume, and x' in images.
        width: of the images.
        table: float64 footprint, ``steps`` entries a pixel, distance 0 in the middle, zeros at the
            first and the last two.
        steps: entries of the table per pixel.
    """
    volume = _blocks(x)
    blocks, _, _, lanes = volume.shape
    out = np.zeros((blocks, len(cosines_sines), width + -width % _GROUP, lanes), volume.dtype)
    common = (volume, cosines_sines.numpy(), np.array(centres, np.float64), table.numpy(), steps)
    in_threads(lambda a, b: _project(*common, out, a, b), _edges(blocks))
    return _unblocked(out, x.shape[1], width)


def back_project(
    y: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], shape: tuple[int, int],
    table: Tensor, steps: int,
) -> Tensor:  # fmt: skip
    """Transpose of :func:`project`: coefficients ``(z, y, x)``, ``shape`` being (z, x)."""
    images, (depth, n) = _blocks(y), shape
    blocks, _, _, lanes = images.shape
    out = np.zeros((blocks, depth, n + -n % _GROUP, lanes), images.dtype)
    common = (images, cosines_sines.numpy(), np.array(centres, np.float64), table.numpy(), steps)
    in_threads(lambda a, b: _back_project(*common, out, a, b), _edges(blocks))
    return _unblocked(out, y.shape[1], n)
