"""Surfaces of maps as still pictures: where each line of sight first meets the level, lit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from vitreous.report.figures import Array

_AXES = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
_LIGHT, _SHINE = (-0.3, 0.4, 0.85), (-0.15, 0.2, 0.95)  # to the right, up, to the viewer


def looked_along(volume: Array, axis: str) -> Array:
    """Return a map ``(z, y, x)`` as (depth, row, column) of a picture, the nearest plane first.

    The viewer is on the positive ``z`` axis with y upwards, on the negative ``y`` axis or on the
    positive ``x`` axis with z upwards.

    >>> looked_along(np.arange(8).reshape(2, 2, 2), "z")[0].tolist()
    [[6, 7], [4, 5]]
    """
    seen = volume.transpose(_AXES[axis])[:, ::-1]
    return seen if axis == "y" else seen[::-1]


@dataclass(frozen=True)
class SeenSurface:
    """Surface of a map, for each pixel of a picture ``(rows, columns)``.

    Args:
        hit: whether there is any.
        position: ``(3, hits)`` depth, row and column of the surface in voxels.
        light: ``(hits,)`` share of the light that is scattered to the viewer.
        shine: ``(hits,)`` what is mirrored.
    """

    hit: NDArray[np.bool_]
    position: Array
    light: Array
    shine: Array

    def sampled(self, volume: Array) -> Array:
        """Return the values at the surface, ``(hits,)``, of a map that is zero where unknown."""
        values, known = (
            map_coordinates(one.astype(np.float32), self.position, order=1, mode="nearest")
            for one in (volume, volume != 0)
        )
        return np.divide(values, known, out=np.zeros_like(values), where=known > 0)

    def picture(self, colours: Array, background: float) -> Array:
        """Return pixels ``(rows, columns, k)``, 0 to 1, of a surface of colours ``(hits, k)``."""
        pixels = np.full((*self.hit.shape, colours.shape[-1]), background)
        pixels[self.hit] = colours * self.light[:, None] + self.shine[:, None]
        return pixels.clip(0, 1)


def seen_surface(density: Array, level: float, shape: tuple[int, int]) -> SeenSurface:
    """Find and light the surface of a map at a level.

    Args:
        density: ``(depth, row, column)``, from :func:`looked_along`, at least two voxels each.
        level: density of the surface.
        shape: rows and columns of the picture; the map is interpolated.

    >>> int(seen_surface(np.pad(np.ones((4, 4, 4)), 4), 0.5, (24, 24)).hit.sum())  # 8 by 8
    64
    """
    density = np.ascontiguousarray(density, np.float32)
    rows, columns = (_enlarging(n, m) for n, m in zip(density.shape[1:], shape, strict=True))
    depth, hit = np.full(shape, float(len(density)), np.float32), np.zeros(shape, bool)
    before = np.full(shape, -np.inf, np.float32)
    for number, plane in enumerate(density):
        values = rows @ plane @ columns.T
        new = (values > level) & ~hit
        depth[new] = number - (values[new] - level) / (values[new] - before[new])
        hit |= new
        before = values
    pixels = np.argwhere(hit).T
    scale = np.divide(density.shape[1:], shape)[:, None]
    position = np.concatenate([depth[hit][None], (pixels + 0.5) * scale - 0.5])
    slopes = np.stack(
        [
            map_coordinates(one, position, order=1, mode="nearest")
            for one in np.gradient(gaussian_filter(density, 0.7))
        ]
    )
    normal = np.stack([-slopes[2], slopes[1], slopes[0]])
    normal *= np.where(normal[2] < 0, -1, 1) / np.maximum(np.linalg.norm(normal, axis=0), 1e-12)
    lit, mirrored = (
        np.maximum(np.divide(one, np.linalg.norm(one)) @ normal, 0) for one in (_LIGHT, _SHINE)
    )
    hollow = ((depth - gaussian_filter(depth, shape[1] / 40))[hit] / (0.1 * len(density))).clip(
        0, 1
    )
    shade = (1 - 0.3 * depth[hit] / len(density)) * (1 - 0.5 * hollow)
    return SeenSurface(hit, position, (0.3 + 0.7 * lit) * shade, 0.2 * mirrored**24 * shade)


def _enlarging(voxels: int, pixels: int) -> Array:
    """Return the matrix of cubic interpolation from voxels to pixels."""
    matrix: Array = zoom(np.eye(voxels), (pixels / voxels, 1), mode="nearest", grid_mode=True)
    return matrix.astype(np.float32)
