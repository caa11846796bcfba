r"""Background windows of a micrograph, which hold neither particles nor contamination.

The CryoGAN paper (appendix, real data) takes the windows of least variance. This biases the noise:
few low frequencies dominate the variance of a window, and the minimum over many windows selects
those where they are small by chance. Here variance only *excludes* windows. A window is a candidate
if its low-passed variance, less a fitted plane, is within five standard deviations of the lowest
tenth of the micrograph. The deviation is that of chance,

.. math:: s = \sqrt{2 \sum_k P_k^2} / \sum_k P_k

for a stationary Gaussian texture with the power spectrum P of the quieter windows. The choice among
candidates does not depend on the pixels.
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
_TILE, _DEAD = 8, 0.05  # tiles with less than this part of the median variance hold no noise
_SAMPLE_ROWS, _SAMPLE_WINDOWS = 64, 64
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True)
class Windows:
    """Selected windows.

    ``corners (k, 2)`` are the lowest x and y of each, pixels; ``overlapping`` counts windows that
    overlap others, for lack of room.
    """

    corners: Corners
    overlapping: int

    def __len__(self) -> int:
        return len(self.corners)


class Micrograph:
    """Memory-mapped micrograph of an open file.

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
        self.median, self.deviation = self._sample_levels()

    def _sample_levels(self) -> tuple[float, float]:
        """Return median and standard deviation, from the middle 68 %, of the grey values."""
        step = max(1, self.shape[0] // _SAMPLE_ROWS)
        values = self._stack.read_region(0, slice(None, None, step), slice(None))
        self._require_finite(values)
        low, median, high = (float(v) for v in np.percentile(values, (16, 50, 84)))
        deviation = (high - low) / 2 or float(values.std(dtype=np.float64))
        if deviation == 0:
            raise InputError(f"{self.path}: data: constant; remove it from the table")
        return median, deviation

    def _require_finite(self, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.path}: data: NaN or infinite pixels; leave it out with `skip_bad`"
            )

    def _read(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Read a region, with defect pixels set to the median."""
        values = self._stack.read_region(0, rows, columns)
        self._require_finite(values)
        defect = np.abs(values - self.median) > _HOT * self.deviation
        return np.where(defect, np.float32(self.median), values)

    def low_passed(self, factor: int) -> Floats:
        """Return means of ``factor x factor`` pixels, ``(ny // factor, nx // factor)``."""
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
        """Read windows ``(k, size, size)`` at these corners; defect pixels become the median."""
        return np.stack(
            [self._read(slice(y, y + size), slice(x, x + size)) for x, y in corners.tolist()]
        )


def free_corners(
    shape: tuple[int, int], size: int, stride: int, centres: Floats, radius: float
) -> Corners:
    """Return the corners ``(k, 2)`` (x, y) of a grid of windows that no particle's disc touches.

    All in pixels: ``shape`` (ny, nx) of the micrograph, edge ``size`` of the windows, ``stride`` of
    the grid, ``centres (m, 2)`` (x, y) and ``radius`` of the particles.

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
    """Sum ``(k,)`` of an image over windows, from its integral image."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, axis=1, out=total[1:, 1:])
    np.cumsum(total, axis=0, out=total)
    x0, y0 = corners.T
    x1, y1 = x0 + size, y0 + size
    return np.asarray(total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0])


def window_variance(image: Floats, corners: Corners, size: int) -> Floats:
    """Return the variance ``(k,)`` of each window about its fitted plane.

    ``corners (k, 2)`` (x, y) and ``size``, at least 3, are in pixels of the image ``(ny, nx)``.

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
    """Mask of the windows without padding or masked areas."""
    tile = min(_TILE, size)
    tiles = _grid((image.shape[0], image.shape[1]), tile, tile // 2)
    variance = window_variance(image, tiles, tile)
    dead = np.zeros(image.shape)
    for x, y in tiles[variance <= _DEAD * np.median(variance[variance > 0])].tolist():
        dead[y : y + tile, x : x + tile] = 1
    return np.asarray(_window_sum(dead, corners, size) == 0)


def _chance_deviation(image: Floats, corners: Corners, size: int) -> float:
    """Relative deviation of the variance of windows of this texture, from its mean spectrum."""
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
    """Return the mask ``(k,)`` of the windows that hold noise only, by the module's rule.

    ``corners (k, 2)`` (x, y) and ``size`` are in pixels of the low-passed micrograph ``image``.
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
    """Choose up to ``count`` windows that do not overlap, in the given order."""
    free = np.ones(len(corners), dtype=bool)
    chosen: list[int] = []
    for row in order:
        if len(chosen) == count:
            break
        if free[row]:
            chosen.append(int(row))
            free &= (np.abs(corners - corners[row]) >= size).any(1)
    return chosen


def spread_out(corners: Corners, size: int, count: int, generator: np.random.Generator) -> Windows:
    """Choose ``count`` windows at random, overlapping only where there is no room for all.

    ``corners (k, 2)`` (x, y) of the candidates and edge ``size`` are in pixels; where there are
    fewer candidates, all are returned.

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
        chosen = max(chosen, _pack(corners, size, count, order), key=len)
        if len(chosen) == count:
            break
    apart = len(chosen)
    distance = np.full(len(corners), np.inf)
    for row in chosen:
        distance = np.minimum(distance, np.abs(corners - corners[row]).max(1))
    while len(chosen) < min(count, len(corners)):
        row = int(distance.argmax())
        chosen.append(row)
        distance = np.minimum(distance, np.abs(corners - corners[row]).max(1))
    return Windows(corners[np.sort(chosen)], len(chosen) - apart)


def choose_windows(
    micrograph: Micrograph,
    size: int,
    count: int,
    centres: Floats,
    radius: float,
    generator: np.random.Generator,
) -> Windows:
    """Choose at most ``count`` background windows that touch no particle and hold noise only.

    ``centres (m, 2)`` (x, y) and ``radius`` of the particles are in pixels, as is the edge
    ``size``.
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
