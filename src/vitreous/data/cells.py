"""Cell phantoms for tilt series of sections, generated from a seed.

The model is the flagellar pocket of a trypanosome: a cell in a field of empty resin, its membrane,
a pocket with a flagellum (nine doublets of microtubules around a central pair) that leaves the
cell, vesicles, microtubules, ribosome-like granules, and cytoplasm that varies smoothly. Sizes are
realistic where the field is large enough; in smaller fields they shrink with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Array = NDArray[np.float64]
Grey = NDArray[np.float32]
Distance = Callable[[Grey, Grey, Grey], Grey]

_MEMBRANE, _CYTOPLASM, _LUMEN, _TUBULE, _GRANULE = 0.9, 0.25, 0.04, 0.85, 1.0
_MEMBRANE_ANGSTROM = 90.0
_TUBULE_ANGSTROM = 125.0  # outer radius of a microtubule
_WALL_ANGSTROM = 55.0
_FLAGELLUM_ANGSTROM = 1250.0  # radius
_VESICLES, _TUBULES, _GRANULES = 40.0, 14.0, 1200.0  # in a cell of 1 x 1 x 0.5 micrometres
_FIELD_ANGSTROM3 = 10240.0 * 10240.0 * 5120.0


@dataclass
class _Canvas:
    """Density, with the position of each voxel in Å from the centre."""

    grey: Grey
    pixel: float

    def axis(self, dim: int, first: int = 0, last: int | None = None) -> Grey:
        n = self.grey.shape[dim]
        positions = (np.arange(n) - n // 2) * self.pixel
        shape = [-1 if d == dim else 1 for d in range(3)]
        return np.asarray(positions[first:last].reshape(shape), dtype=np.float32)

    def near(self, centre: Array, reach: float) -> tuple[slice, slice, slice]:
        """Return the box of voxels within ``reach`` of ``centre`` (z, y, x)."""
        parts = []
        for dim, n in enumerate(self.grey.shape):
            middle = centre[dim] / self.pixel + n // 2
            width = reach / self.pixel + 1
            parts.append(slice(max(0, int(middle - width)), min(n, int(middle + width) + 2)))
        return parts[0], parts[1], parts[2]

    def distances(self, box: tuple[slice, slice, slice], distance: Distance) -> Grey:
        """Return the signed distance in Å of every voxel of a box from a surface."""
        z, y, x = (self.axis(dim, part.start, part.stop) for dim, part in enumerate(box))
        return distance(z, y, x)

    def paint(
        self, box: tuple[slice, slice, slice], distance: Distance, inside: float, wall: float = 0.0,
        thickness: float = 0.0,
    ) -> None:  # fmt: skip
        """Fill the inside of a surface and draw a wall of ``thickness`` in it, with soft edges."""
        region = self.grey[box]
        if not region.size:
            return
        d = self.distances(box, distance)
        _blend(region, d, self.pixel, inside)
        if thickness:
            thick = max(thickness, 1.5 * self.pixel)
            _blend(region, np.abs(d + thick / 2) - thick / 2, self.pixel, wall)


def _blend(region: Grey, d: Grey, pixel: float, value: float) -> None:
    """Set the inside (d < 0) to a value, with an edge one pixel wide."""
    share = np.clip(0.5 - d / pixel, 0, 1)
    region += share * (value - region)


def _everywhere(canvas: _Canvas) -> tuple[slice, slice, slice]:
    nz, ny, nx = canvas.grey.shape
    return slice(0, nz), slice(0, ny), slice(0, nx)


def _ellipsoid(centre: Array, axes: Array) -> Distance:
    """Return the distance from an ellipsoid, to first order near its surface."""

    def distance(z: Grey, y: Grey, x: Grey) -> Grey:
        level: Grey | float = 0.0
        slope: Grey | float = 0.0
        for p, c, a in zip((z, y, x), centre, axes, strict=True):
            square = ((p - np.float32(c)) / np.float32(a)) ** 2
            level, slope = level + square, slope + square / np.float32(a) ** 2
        radius = np.sqrt(level)
        return np.asarray((radius - 1) * radius / np.sqrt(slope + np.float32(1e-12)))

    return distance


def _capsule(start: Array, end: Array, radius: float) -> Distance:
    """Return the distance from a segment with round ends."""
    along = (end - start).astype(np.float32)
    squared = np.float32(max(float(along @ along), 1e-9))

    def distance(z: Grey, y: Grey, x: Grey) -> Grey:
        dz, dy, dx = (p - np.float32(c) for p, c in zip((z, y, x), start, strict=True))
        t = np.clip((dz * along[0] + dy * along[1] + dx * along[2]) / squared, 0, 1)
        square = (dz - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dx - t * along[2]) ** 2
        return np.asarray(np.sqrt(square) - np.float32(radius))

    return distance


def _tube(canvas: _Canvas, start: Array, end: Array, radius: float, wall: float) -> None:
    """Draw a hollow tubule piece by piece, visiting nearby voxels only."""
    pieces = max(1, int(np.linalg.norm(end - start) / (6 * radius)))
    reach = np.linalg.norm(end - start) / pieces / 2 + radius
    for k in range(pieces):
        middle = start + (end - start) * (k + 0.5) / pieces
        box = canvas.near(middle, float(reach))
        canvas.paint(box, _capsule(start, end, radius), _CYTOPLASM, _TUBULE, wall)


def _direction(rng: np.random.Generator, flatness: float) -> Array:
    vector = rng.normal(size=3) * np.array([flatness, 1.0, 1.0])
    return np.asarray(vector / np.linalg.norm(vector))


def _frame(along: Array) -> tuple[Array, Array]:
    """Return two unit vectors normal to a unit vector and to each other."""
    other = np.cross(along, np.array([1.0, 0.0, 0.0]))
    other = other / np.linalg.norm(other)
    return other, np.cross(along, other)


def _flagellum(
    canvas: _Canvas, rng: np.random.Generator, base: Array, size: float, length: float
) -> None:
    """Draw a membrane around nine doublets and a central pair, from the pocket outwards."""
    along = _direction(rng, 0.25)
    start, end = base - 0.4 * length * along, base + 1.5 * length * along
    canvas.paint(_everywhere(canvas), _capsule(start, end, size), 0.15, _MEMBRANE, size * 0.08)
    tubule = min(_TUBULE_ANGSTROM, 0.1 * size)
    wall = min(_WALL_ANGSTROM, 0.045 * size)
    side, up = _frame(along)
    first_angle = rng.uniform(0, 2 * np.pi)
    begin = start + 0.2 * length * along
    offsets = [0.09 * size * side, -0.14 * size * side]
    for k in range(9):
        angle = first_angle + 2 * np.pi * k / 9
        outward = np.cos(angle) * side + np.sin(angle) * up
        across = np.cos(angle) * up - np.sin(angle) * side
        offsets += [0.66 * size * outward, 0.66 * size * outward + 1.8 * tubule * across]
    for offset in offsets:
        _tube(canvas, begin + offset, end + offset, tubule, wall)


def _place_spheres(
    rng: np.random.Generator,
    canvas: _Canvas,
    free: NDArray[np.bool_],
    count: int,
    radii: tuple[float, float],
) -> list[tuple[Array, float]]:
    """Return centres in free voxels and radii of spheres that do not overlap."""
    candidates = np.argwhere(free)
    placed: list[tuple[Array, float]] = []
    if not len(candidates):
        return placed
    middle = np.array(canvas.grey.shape) // 2
    spheres = np.empty((count, 4))  # centres and radii
    for index in rng.integers(len(candidates), size=4 * count):
        centre = (candidates[index] - middle) * canvas.pixel
        radius = float(rng.uniform(*radii))
        others = spheres[: len(placed)]
        gaps = np.linalg.norm(others[:, :3] - centre, axis=1) - others[:, 3] - radius
        if bool((gaps > 0).all()):
            spheres[len(placed)] = *centre, radius
            placed.append((centre, radius))
        if len(placed) == count:
            break
    return placed


def _texture(canvas: _Canvas, rng: np.random.Generator) -> Grey:
    """Smooth noise of unit deviation; its finest details are a twelfth of the field wide."""
    coarse = rng.normal(size=tuple(max(3, min(12, n)) for n in canvas.grey.shape))
    factors = [n / c for n, c in zip(canvas.grey.shape, coarse.shape, strict=True)]
    return np.asarray(ndimage.zoom(coarse.astype(np.float32), factors, order=3))


def cell_phantom(
    shape: tuple[int, int, int], pixel_size_angstrom: float = 40.0, *, seed: int
) -> Tensor:
    """Generate the density of a piece of a cell; equal arguments give equal densities.

    float32 ``(z, y, x)``, dense matter positive, between 0 (resin) and 1. (128, 256, 256) voxels of
    40 Å show all of the cell; half the pixel size with twice the shape is the same cell.

    Raises:
        ValueError: an axis shorter than 8 voxels, a pixel size that is not positive.

    >>> cell = cell_phantom((16, 24, 24), 400.0, seed=1)
    >>> cell.shape, 0 <= float(cell.min()) < float(cell.max()) <= 1
    (torch.Size([16, 24, 24]), True)
    """
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must be (z, y, x) of 8 voxels or more each, got {tuple(shape)}")
    if not pixel_size_angstrom > 0:
        raise ValueError(f"pixel size must be positive, got {pixel_size_angstrom}")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(np.zeros(shape, np.float32), pixel_size_angstrom)
    field = np.array(shape) * pixel_size_angstrom
    shrink = min(1.0, float(field.min()) / 5120.0)
    _draw(canvas, rng, field, shrink)
    return torch.from_numpy(np.clip(canvas.grey, 0, 1))


def _draw(canvas: _Canvas, rng: np.random.Generator, field: Array, shrink: float) -> None:
    membrane = _MEMBRANE_ANGSTROM * shrink
    everywhere = _everywhere(canvas)
    body = _ellipsoid(0.01 * field * rng.uniform(-1, 1, 3), field * np.array([0.46, 0.47, 0.47]))
    canvas.paint(everywhere, body, _CYTOPLASM, _MEMBRANE, membrane)
    inside = canvas.distances(everywhere, body) < -1.5 * max(membrane, canvas.pixel)
    canvas.grey += inside * np.float32(0.03) * _texture(canvas, rng)

    centre = field * rng.uniform(-0.08, 0.08, 3)
    axes = field * np.array([0.27, 0.2, 0.24]) * rng.uniform(0.85, 1.15, 3)
    pocket = _ellipsoid(centre, axes)
    canvas.paint(everywhere, pocket, _LUMEN, _MEMBRANE, membrane)
    size = min(_FLAGELLUM_ANGSTROM * shrink, 0.13 * float(field.min()) * 2)
    _flagellum(canvas, rng, centre, size, float(axes.max()))

    share = float(np.prod(field)) / (_FIELD_ANGSTROM3 * shrink**3)
    vesicle = (200.0 * shrink, 600.0 * shrink)
    free = inside & (canvas.distances(everywhere, pocket) > vesicle[1])
    free &= np.abs(canvas.grey - _CYTOPLASM) < 0.15  # not in the flagellum either
    for centre, radius in _place_spheres(rng, canvas, free, round(_VESICLES * share), vesicle):
        value = float(rng.uniform(0.05, 0.6))
        box = canvas.near(centre, radius)
        ball = _ellipsoid(centre, np.full(3, radius))
        canvas.paint(box, ball, value, _MEMBRANE, membrane)
    for centre, _ in _place_spheres(rng, canvas, free, round(_TUBULES * share), (0.0, 0.0)):
        along = _direction(rng, 0.3) * rng.uniform(0.15, 0.3) * field.max()
        tubule, wall = _TUBULE_ANGSTROM * shrink, _WALL_ANGSTROM * shrink
        _tube(canvas, centre - along / 2, centre + along / 2, tubule, wall)
    granule = (90.0 * shrink, 130.0 * shrink)
    empty = inside & (np.abs(canvas.grey - _CYTOPLASM) < 0.12)
    for centre, radius in _place_spheres(rng, canvas, empty, round(_GRANULES * share), granule):
        box = canvas.near(centre, radius)
        canvas.paint(box, _ellipsoid(centre, np.full(3, radius)), _GRANULE)
