"""Surfaces of maps for the report's viewer: cropped, coarser, 8 bits, compressed.

The page's script finds the surface of each map at the level of the slider (surface nets) and draws
it with WebGL; a picture of the same surface stands in where there is none.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from vitreous.report.figures import Array, Gray
from vitreous.report.shading import looked_along, seen_surface

LARGEST_PX = 96  # edge of a map in the page; of further ones of the same particle:
SMALLER_PX = 64
HIGHEST_SIGMA = 15.0  # end of the slider
# of local resolutions, from the finest on; surface.js has the same
PALETTE = ((58, 110, 196), (84, 178, 210), (150, 208, 150), (244, 204, 96), (214, 84, 64))


@dataclass(frozen=True)
class Surface:
    """Map to show as a surface.

    Args:
        name: in the page.
        volume: ``(z, y, x)``.
        local_resolution: Å, of the same shape, 0 where unknown; colours the surface.
        shown: whether it is drawn when the page opens.
        path: maps of one shape that a slider morphs through; ``volume`` is one of them.
    """

    name: str
    volume: Array
    local_resolution: Array | None = None
    shown: bool = True
    path: Sequence[Array] = ()


def packed(data: bytes) -> str:
    """Compress bytes to base64 text that the page's script unpacks.

    >>> zlib.decompress(base64.b64decode(packed(b"map")))
    b'map'
    """
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def default_sigma(volume: Array) -> float:
    """Return the level to begin with, in standard deviations above the mean.

    Where the enclosed volume is half of that of the voxels above one standard deviation, between
    1.5 and 6.

    >>> 1.5 <= default_sigma(np.random.default_rng(0).normal(size=(16, 16, 16))) <= 6.0
    True
    """
    scaled = (volume - volume.mean()) / (volume.std() or 1.0)
    above = scaled[scaled > 1.0]
    return float(np.clip(np.median(above), 1.5, 6.0)) if above.size else 1.5


def default_level(volume: Array) -> float:
    """Return the density of :func:`default_sigma`."""
    return float(volume.mean() + default_sigma(volume) * volume.std())


def colour_limits(resolution: Array) -> tuple[float, float]:
    """Return the local resolutions, Å, at the two ends of the colours; unknown ones are 0.

    >>> colour_limits(np.array([0.0, 4.0, 4.0]))
    (3.95, 4.05)
    """
    low, high = (float(v) for v in np.percentile(resolution[resolution > 0], [5, 95]))
    return (low, high) if high > low else (low - 0.05, low + 0.05)


def surface_data(surfaces: Sequence[Surface], pixel_size_angstrom: float) -> list[dict[str, Any]]:
    """Return what the page's viewer reads, for each map that has any density above its mean.

    Raises:
        ValueError: a map or its colours are not ``(z, y, x)``.
    """
    layers = []
    for i, one in enumerate(surfaces):
        if one.volume.ndim != 3:
            raise ValueError(f"volume must be (z, y, x), got {one.volume.shape}")
        volume = _finite(one.volume)
        if float(volume.std()) == 0.0:
            continue
        largest = SMALLER_PX if one.path or (i and not one.shown) else LARGEST_PX
        layers.append(_layer(one, volume, pixel_size_angstrom, largest))
    return layers


def _layer(one: Surface, volume: Array, pixel: float, largest: int) -> dict[str, Any]:
    mean, sigma = float(volume.mean()), float(volume.std())
    maps = [_finite(one_map) for one_map in one.path] or [volume]
    region = occupied(np.abs(maps).max(axis=0))
    coarse = np.stack([_resampled(one_map[region], largest) for one_map in maps])
    top = min(float(coarse.max()), mean + HIGHEST_SIGMA * sigma)
    values = np.stack([np.pad(_bytes(grid, mean, top, 0), 1) for grid in coarse])
    values[1:] -= values[:-1].copy()  # modulo 256: neighbours on a path differ little
    shape = coarse.shape[1:]
    step = [(s.stop - s.start) / n for s, n in zip(region, shape, strict=True)]
    # position of the padded grid's first voxel, relative to the centre of the box
    first = [
        (s.start - n // 2 + 0.5 * r - 0.5 - r) * pixel
        for s, n, r in zip(region, volume.shape, step, strict=True)
    ]
    layer: dict[str, Any] = {
        "name": one.name,
        "shape": values.shape[:0:-1],
        "frames": len(values),
        "step": [round(r * pixel, 4) for r in reversed(step)],
        "first": [round(v, 3) for v in reversed(first)],
        "mean": float(f"{mean:.4g}"),
        "sigma": float(f"{sigma:.4g}"),
        "top": round((top - mean) / sigma, 3),
        "level": round(default_sigma(volume), 2),
        "shown": one.shown,
        "values": packed(values.tobytes()),
    }
    if one.local_resolution is not None and (one.local_resolution > 0).any():
        resolution = one.local_resolution[region]
        low, high = colour_limits(resolution)
        scale = np.divide(shape, resolution.shape)
        near = zoom(resolution, scale, order=0, mode="nearest", grid_mode=True)
        known = np.where(near > 0, _bytes(near, low, high, 1), 0).astype(np.uint8)
        layer["colours"] = {"low": low, "high": high, "values": packed(np.pad(known, 1).tobytes())}
    return layer


def shaded_picture(volume: Array, largest_px: int = LARGEST_PX) -> Gray:
    """Return the surface as seen along z, y upwards, as grey pixels.

    >>> shaded_picture(np.pad(np.ones((4, 4, 4)), 6)).shape
    (64, 64)
    """
    volume = _finite(volume)
    coarse = looked_along(_resampled(volume, largest_px), "z")
    seen = seen_surface(coarse, default_level(volume), coarse.shape[1:])
    gray: Gray = (255 * seen.picture(np.full((len(seen.light), 1), 0.75), 0.0)).astype(np.uint8)
    return gray[..., 0]


def _finite(volume: Array) -> Array:
    return np.nan_to_num(np.asarray(volume, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def occupied(volume: Array) -> tuple[slice, ...]:
    """Return the box of the voxels that are not zero: what a mask or sphere left."""
    filled = volume != 0
    region = []
    for axis in range(3):
        at = np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis})))
        region.append(slice(int(at[0]), int(at[-1]) + 1))
    return tuple(region)


def _resampled(volume: Array, largest_px: int) -> Array:
    """Return a map of ``SMALLER_PX`` to ``largest_px`` voxels along its longest axis."""
    longest = max(volume.shape)
    scale = min(largest_px / longest, max(1.0, SMALLER_PX / longest))
    if scale == 1.0:
        return volume
    shape = [max(1, round(scale * n)) for n in volume.shape]
    smooth = gaussian_filter(volume, 0.4 / scale) if scale < 1 else volume
    factors = np.divide(shape, volume.shape)
    order = 1 if scale < 1 else 3
    resampled: Array = zoom(smooth, factors, order=order, mode="nearest", grid_mode=True)
    return resampled


def _bytes(values: Array, low: float, high: float, first: int) -> NDArray[np.uint8]:
    """Map ``low .. high`` to ``first .. 255``."""
    share = np.clip((values - low) / (high - low), 0.0, 1.0)
    scaled: NDArray[np.uint8] = np.round(first + share * (255 - first)).astype(np.uint8)
    return scaled
