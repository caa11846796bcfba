r"""Background windows of a micrograph: where there is no particle and nothing else either.

The CryoGAN paper (appendix, real data) takes the windows of least variance. Taken literally this
biases the noise: the variance of a window is dominated by few low frequencies, and choosing the
least of many keeps those windows where chance made them small. Here variance only *excludes*: a
window is a candidate if its low-passed variance, less a fitted plane, is within five deviations of
the lowest tenth of the micrograph, the deviation being that of chance alone,

.. math:: s = \sqrt{2 \sum_k P_k^2} / \sum_k P_k

for a stationary Gaussian texture of power spectrum P, taken from the quieter windows themselves.
Among candidates the choice does not look at the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.mrc import MrcStack

Floats = NDArray[np.float64]
Corners = NDArray[np.int64]

_COARSE = 32  # pixels across a window in the low-passed micrograph
_STRIDES = 8  # candidate windows per window width, each way
_HOT = 8.0  # robust deviations beyond which a pixel is a defect
_BASE, _DEVIATIONS = 0.1, 5.0
_TILE, _DEAD = 8, 0.05  # tiles with less than this part of the usual variance hold no noise
_SAMPLE_ROWS, _SAMPLE_WINDOWS = 64, 64
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Levels:
    """Grey values of a micrograph: the median, and the deviation from the middle 68 %."""

    median: float
    deviation: float


@dataclass(frozen=True)
class Windows:
    """Chosen windows.

    Args:
        corners: ``(k, 2)`` lowest x and y of each, pixels.
        overlapping: how many overlap others, for want of room.
    """

    corners: Corners
    overlapping: int

    def __len__(self) -> int:
        return len(self.corners)


class Micrograph:
    """One micrograph, mapped; only windows of it enter memory.

    Args:
        stack: its file, opened.

    Raises:
        InputError: several images (a movie), constant, or values that are not finite.
    """

    def __init__(self, stack: MrcStack) -> None:
        self._stack, self.path = stack, stack.header.path
        if len(stack) != 1:
            raise InputError(
                f"{self.path}: {len(stack)} images; a micrograph has one, give the "
                "motion-corrected sum"
            )
        self.shape: tuple[int, int] = stack.shape[1:]
        self.levels = self._sample_levels()

    def _sample_levels(self) -> Levels:
        step = max(1, self.shape[0] // _SAMPLE_ROWS)
        values = self._stack.read_region(0, slice(None, None, step), slice(None))
        self._require_finite(values)
        low, median, high = (float(v) for v in np.percentile(values, (16, 50, 84)))
        deviation = (high - low) / 2 or float(values.std(dtype=np.float64))
        if deviation == 0:
            raise InputError(f"{self.path}: data: constant; remove it from the table")
        return Levels(median, deviation)

    def _require_finite(self, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.path}: data: NaN or infinite pixels; leave it out with `skip_bad`"
            )

    def _read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """A region with defect pixels set to the median."""
        values = self._stack.read_region(0, rows, columns)
        self._require_finite(values)
        median, limit = self.levels.median, _HOT * self.levels.deviation
        return np.where(np.abs(values - median) > limit, np.float32(median), values)

    def low_passed(self, factor: int) -> Floats:
        """Means of ``factor x factor`` pixels, ``(ny // factor, nx // factor)``."""
        ny, nx = (edge // factor for edge in self.shape)
        out = np.empty((ny, nx))
        step = max(1, _BLOCK_VALUES // (factor * self.shape[1]))
        for first in range(0, ny, step):
            last = min(ny, first + step)
            values = self._read(slice(first * factor, last * factor), slice(0, nx * factor))
            blocks = values.reshape(last - first, factor, nx, factor)
            out[first:last] = blocks.mean((1, 3), dtype=np.float64)
        return out

    def cut(self, corners: Corners, size: int) -> NDArray[np.float32]:
        """Windows ``(k, size, size)`` at these corners; defect pixels set to the median."""
        return np.stack(
            [self._read(slice(y, y + size), slice(x, x + size)) for x, y in corners.tolist()]
        )


def free_corners(
    shape: tuple[int, int], size: int, stride: int, centres: Floats, radius: float
) -> Corners:
    """Corners ``(k, 2)`` (x, y) of a grid of windows that no particle's disc touches.

    Args:
        shape: (ny, nx) of the micrograph.
        size: edge of the windows.
        stride: of the grid.
        centres: ``(m, 2)`` of the particles.
        radius: of their discs; all in pixels.

    >>> free_corners((10, 30), 10, 5, np.array([[4.0, 5.0]]), 3.0)[:, 0].tolist()
    [10, 15, 20]
    """
    grid = _grid(shape, size, stride)
    free = np.ones(len(grid), dtype=bool)
    for centre in centres:
        gap = np.maximum(np.maximum(grid - centre, centre - (grid + size - 1)), 0)
        free &= (gap**2).sum(1) > radius**2
    return grid[free]


def _window_sum(image: Floats, corners: Corners, size: int) -> Floats:
    """Sum ``(k,)`` of an image over windows, by its integral."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, axis=1, out=total[1:, 1:])
    np.cumsum(total, axis=0, out=total)
    x0, y0 = corners.T
    x1, y1 = x0 + size, y0 + size
    found: Floats = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return found


def window_variance(image: Floats, corners: Corners, size: int) -> Floats:
    """Variance of each window about its fitted plane.

    Args:
        image: ``(ny, nx)``.
        corners: ``(k, 2)`` x and y.
        size: edge of the windows, pixels, at least 3.

    >>> y, x = np.mgrid[:8, :8].astype(float)
    >>> bool(window_variance(3 * x - y, np.array([[1, 2]]), 5)[0] < 1e-9)
    True
    """
    ny, nx = image.shape
    flat = image - image.mean()
    y, x = np.ogrid[:ny, :nx]
    s, ss = _window_sum(flat, corners, size), _window_sum(flat * flat, corners, size)
    middle = corners + (size - 1) / 2 - np.array([nx, ny]) / 2
    sx = _window_sum(flat * (x - nx / 2), corners, size) - middle[:, 0] * s
    sy = _window_sum(flat * (y - ny / 2), corners, size) - middle[:, 1] * s
    count = size * size
    spread = count * (size * size - 1) / 12
    return np.maximum(0.0, ss - s * s / count - (sx * sx + sy * sy) / spread) / count


def _grid(shape: tuple[int, int], size: int, stride: int) -> Corners:
    """Corners ``(k, 2)`` (x, y) of all windows of a grid."""
    xs, ys = (np.arange(0, edge - size + 1, stride) for edge in shape[::-1])
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def _alive(image: Floats, corners: Corners, size: int) -> NDArray[np.bool_]:
    """Which windows have noise everywhere: no padding, no masked area."""
    tile = min(_TILE, size)
    tiles = _grid((image.shape[0], image.shape[1]), tile, tile // 2)
    variance = window_variance(image, tiles, tile)
    dead = np.zeros(image.shape)
    for x, y in tiles[variance <= _DEAD * np.median(variance[variance > 0])].tolist():
        dead[y : y + tile, x : x + tile] = 1
    return np.asarray(_window_sum(dead, corners, size) == 0)


def _chance_deviation(image: Floats, corners: Corners, size: int) -> float:
    """Relative deviation of the variance of windows of this texture, by their mean spectrum."""
    step = max(1, len(corners) // _SAMPLE_WINDOWS)
    windows = np.stack([image[y : y + size, x : x + size] for x, y in corners[::step].tolist()])
    axis = np.arange(size) - (size - 1) / 2
    windows = windows - windows.mean((1, 2), keepdims=True)
    norm = (axis**2).sum() * size
    for shape in ((1, size), (size, 1)):
        slope = axis.reshape(shape)
        windows = windows - (windows * slope).sum((1, 2), keepdims=True) / norm * slope
    power = (np.abs(np.fft.fft2(windows)) ** 2).mean(0)
    return float(math.sqrt(2 * (power**2).sum()) / power.sum())


def quiet(image: Floats, corners: Corners, size: int) -> NDArray[np.bool_]:
    """Which windows hold the usual texture and nothing more: the rule at the top of this module.

    Args:
        image: low-passed micrograph.
        corners: ``(k, 2)`` in its pixels.
        size: edge of the windows in its pixels.
    """
    variance = window_variance(image, corners, size)
    alive = _alive(image, corners, size)
    if not alive.any():
        return alive
    quarter, base = np.quantile(variance[alive], (0.25, _BASE))
    quieter = corners[alive & (variance <= quarter)]
    limit = base * math.exp(_DEVIATIONS * _chance_deviation(image, quieter, size))
    return np.asarray(alive & (variance <= limit))


def _pack(corners: Corners, size: int, count: int, order: Corners) -> list[int]:
    """Up to ``count`` windows that do not overlap, first come first served."""
    alive = np.ones(len(corners), dtype=bool)
    chosen: list[int] = []
    for place in order:
        if len(chosen) == count:
            break
        if alive[place]:
            chosen.append(int(place))
            alive &= (np.abs(corners - corners[place]) >= size).any(1)
    return chosen


def spread_out(corners: Corners, size: int, count: int, generator: np.random.Generator) -> Windows:
    """Choose windows at random, overlapping only where there is no room for all.

    Args:
        corners: ``(k, 2)`` candidates.
        size: edge of the windows.
        count: how many are wanted; fewer are returned if there are fewer candidates.
        generator: decides.

    >>> grid = np.array([[0, 0], [5, 0], [10, 0]])
    >>> spread_out(grid, 10, 2, np.random.default_rng(0)).corners[:, 0].tolist()
    [0, 10]
    >>> spread_out(grid, 10, 3, np.random.default_rng(0)).overlapping
    1
    """
    orders = [generator.permutation(len(corners)), np.lexsort((corners[:, 0], corners[:, 1]))]
    orders.append(orders[1][::-1])
    chosen: list[int] = []
    for order in orders:
        found = _pack(corners, size, count, order)
        chosen = max(chosen, found, key=len)
        if len(chosen) == count:
            break
    apart = len(chosen)
    distance = np.full(len(corners), np.inf)
    for place in chosen:
        distance = np.minimum(distance, np.abs(corners - corners[place]).max(1))
    while len(chosen) < min(count, len(corners)):
        place = int(distance.argmax())
        chosen.append(place)
        distance = np.minimum(distance, np.abs(corners - corners[place]).max(1))
    return Windows(corners[np.sort(chosen)], len(chosen) - apart)


def choose_windows(
    micrograph: Micrograph,
    size: int,
    count: int,
    centres: Floats,
    radius: float,
    generator: np.random.Generator,
) -> Windows:
    """Background windows that touch no particle and hold nothing unusual.

    Args:
        micrograph: where from.
        size: edge of the windows, px.
        count: how many are wanted.
        centres: ``(m, 2)`` of all particles (x, y), px.
        radius: of a particle, px.
        generator: decides among equals.

    Returns:
        at most ``count`` windows; none where there is no room.
    """
    factor = max(1, size // _COARSE)
    stride = factor * max(1, size // _STRIDES // factor)
    corners = free_corners(micrograph.shape, size, stride, centres, radius)
    coarse = size // factor
    corners = corners[
        (corners // factor + coarse <= np.array(micrograph.shape[::-1]) // factor).all(1)
    ]
    if not len(corners):
        return Windows(corners, 0)
    image = micrograph.low_passed(factor)
    candidates = corners[quiet(image, corners // factor, coarse)]
    return spread_out(candidates, size, count, generator)
