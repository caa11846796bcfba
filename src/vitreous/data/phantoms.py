"""Phantoms: protein-like densities generated from a seed.

A phantom consists of touching globular domains. Each is filled with short rods of secondary
structure that avoid one another; each rod is a chain of residues with a backbone and a side-chain
point. The power spectrum falls steeply at low frequency, has a shoulder near 1/10 Å (rod packing)
and a tail to high resolution. A point group is applied by copying one such unit, placed off the
axes so that neighbours touch without filling the axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core import symmetry
from vitreous.core.fourier import irfft_centered, resize_spectrum, rfft_centered

Array = NDArray[np.float64]

RESIDUE_VOLUME_ANGSTROM3 = 136.0
"""Mean volume of a residue: 110 Da at 0.81 Da/Å^3."""
PHANTOM_SHARE = 0.7
"""Default diameter of a phantom over the edge of its box."""
_ROD_SPACING_ANGSTROM = 8.5
_POINTS_PER_RESIDUE = 2
_SIGMA_ANGSTROM = 1.0
_MAX_RESIDUES = 9000


@dataclass(frozen=True)
class _Domain:
    centre: Array
    radius: float


def _unit_vectors(rng: np.random.Generator, count: int) -> Array:
    vectors = rng.normal(size=(count, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _seed_direction(rng: np.random.Generator, matrices: Array) -> Array:
    """Return a direction far from every symmetry element, the best of many random ones."""
    candidates = _unit_vectors(rng, 400)
    if len(matrices) == 1:
        return np.asarray(candidates[0])
    copies = np.einsum("gij,nj->ngi", matrices[1:], candidates)
    nearest = np.linalg.norm(copies - candidates[:, None], axis=-1).min(axis=1)
    return np.asarray(candidates[np.argsort(nearest)[-20 + int(rng.integers(20))]])


def _place_domains(rng: np.random.Generator, matrices: Array, count: int) -> list[_Domain]:
    """Place touching spheres of one asymmetric unit, clear of one another and of all copies."""
    gap = 0.88  # smallest distance of centres over the sum of radii
    radii = rng.uniform(0.75, 1.25, size=count)
    direction = _seed_direction(rng, matrices)
    distance = 0.0
    if len(matrices) > 1:
        nearest = np.linalg.norm(matrices[1:] @ direction - direction, axis=-1).min()
        distance = gap * 2.0 * radii[0] / max(float(nearest), 1e-3)
    domains = [_Domain(direction * distance, float(radii[0]))]
    for radius in radii[1:]:
        centres = np.concatenate([matrices @ d.centre for d in domains])
        sizes = np.repeat([d.radius for d in domains], len(matrices))
        own = rng.integers(len(domains), size=600)
        start = np.stack([domains[i].centre for i in own])
        reach = gap * (np.array([domains[i].radius for i in own]) + radius)
        trial = start + _unit_vectors(rng, 600) * reach[:, None]
        room = np.linalg.norm(trial[:, None] - centres, axis=-1) - gap * (sizes + radius)
        free = room.min(axis=1) > -1e-6
        if len(matrices) > 1:
            copies = np.einsum("gij,nj->ngi", matrices[1:], trial)
            self_room = np.linalg.norm(copies - trial[:, None], axis=-1).min(axis=1)
            free &= self_room > gap * 2.0 * radius
        if not free.any():
            continue  # no room: the unit has one domain less
        outward = np.linalg.norm(trial, axis=1) + rng.uniform(0.0, 0.8, size=600)
        domains.append(_Domain(trial[np.argmin(np.where(free, outward, np.inf))], float(radius)))
    return domains


def _rods(rng: np.random.Generator, semi_axes: Array, residues: int, scale: float) -> Array:
    """Generate residue positions of self-avoiding rods in an ellipsoid about the origin."""
    spacing = _ROD_SPACING_ANGSTROM * scale
    axis_points = np.empty((0, 3))
    chain: list[Array] = []
    placed, end = 0, np.zeros(3)
    while placed < residues:
        helix = rng.random() < 0.6
        length = min(int(rng.integers(6, 20)), max(residues - placed, 3))
        rise = (1.5 if helix else 3.3) * scale
        length = max(3, min(length, int(1.5 * semi_axes.min() / rise)))
        start = np.concatenate(
            [
                end + _unit_vectors(rng, 24) * spacing,
                _unit_vectors(rng, 24) * rng.random((24, 1)) ** (1 / 3) * semi_axes * 0.95,
            ]
        )
        direction = _unit_vectors(rng, len(start))
        along = np.linspace(0.0, rise * (length - 1), 5)
        middle = start[:, None] + direction[:, None] * along[:, None]
        outside = (((middle / semi_axes) ** 2).sum(axis=-1) > 1.0).mean(axis=1)
        crowding = np.zeros(len(start))
        if len(axis_points):
            gaps = np.linalg.norm(middle[:, :, None] - axis_points, axis=-1).min(axis=(1, 2))
            crowding = np.clip(1.0 - gaps / spacing, 0.0, 1.0)
        restart = np.repeat([0.0, 0.05], 24)  # starting at the end of the last rod is preferred
        best = int(np.argmin(4.0 * outside + 2.0 * crowding + restart))
        chain.append(_residues(rng, start[best], direction[best], length, rise, helix, scale))
        axis_points = np.concatenate([axis_points, middle[best]])
        end, placed = middle[best, -1], placed + length
    points = np.concatenate(chain)
    inside = ((points / semi_axes) ** 2).sum(axis=1) < 1.2
    return np.asarray(points[inside] if inside.any() else points)


def _residues(
    rng: np.random.Generator,
    start: Array,
    direction: Array,
    length: int,
    rise: float,
    helix: bool,
    scale: float,
) -> Array:
    """Backbone and side-chain points of one helix (100° per residue) or strand (180°)."""
    across = np.cross(direction, _unit_vectors(rng, 1)[0])
    across /= np.linalg.norm(across)
    third = np.cross(direction, across)
    step = np.arange(length)
    angle = np.deg2rad(100.0 if helix else 180.0) * step
    spoke = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * third
    axis = start + direction * (rise * step)[:, None]
    backbone = axis + spoke * (2.0 if helix else 0.8) * scale
    reach = rng.uniform(1.2, 3.6, size=(length, 1)) * scale
    side = backbone + (spoke + rng.normal(scale=0.3, size=spoke.shape)) * reach
    return np.concatenate([backbone, side])


def phantom_points(seed: int, diameter_angstrom: float, *, point_group: str = "C1") -> Tensor:
    """Return the equal point masses of a phantom: (x, y, z) in Å, float64 ``(m, 3)``.

    :func:`render_points` renders the same molecule at any box and pixel size. The sphere of the
    diameter about the origin holds every point; the points map onto themselves under the point
    group, in RELION's axes. Six globular domains make one asymmetric unit, fewer with symmetry or
    where there is no room.

    Raises:
        ValueError: diameter not positive.

    >>> points = phantom_points(3, 60.0)
    >>> bool((points.norm(dim=1) <= 30.0).all())
    True
    """
    if not diameter_angstrom > 0:
        raise ValueError(f"needs a positive diameter, got {diameter_angstrom} Å")
    parts, matrices = phantom_domains(seed, diameter_angstrom, point_group)
    points = np.einsum("gij,nj->gni", matrices, np.concatenate(parts)).reshape(-1, 3)
    return torch.from_numpy(points * shrink_factor(points, diameter_angstrom))


def phantom_domains(seed: int, diameter: float, point_group: str) -> tuple[list[Array], Array]:
    """Return the points of each domain of one asymmetric unit, Å, and the group's matrices."""
    rng = np.random.default_rng(seed)
    matrices = np.asarray(symmetry.point_group(point_group).matrices, dtype=np.float64)
    order = len(matrices)
    domains = _place_domains(rng, matrices, max(2, round(6 / order**0.5)))
    if order == 1:
        mass = [d.radius**3 for d in domains]
        centre = np.average([d.centre for d in domains], axis=0, weights=mass)
        domains = [_Domain(d.centre - centre, d.radius) for d in domains]
    extent = max(float(np.linalg.norm(d.centre)) + 1.15 * d.radius for d in domains)
    unit = 0.5 * diameter / extent  # Å per sphere-packing unit
    volume = sum(4.19 * (d.radius * unit) ** 3 for d in domains)
    wanted = 0.75 * volume * order / RESIDUE_VOLUME_ANGSTROM3
    scale = max(1.0, (wanted / _MAX_RESIDUES) ** (1 / 3))  # coarser residues when very large
    parts = []
    for domain in domains:
        ratios = np.exp(rng.normal(scale=0.12, size=3))
        semi_axes = domain.radius * unit * ratios / ratios.prod() ** (1 / 3)
        count = 0.75 * 4.19 * float(semi_axes.prod()) / (RESIDUE_VOLUME_ANGSTROM3 * scale**3)
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        local = _rods(rng, semi_axes, max(3, round(count)), scale)
        parts.append(local @ rotation.T + domain.centre * unit)
    if order == 1:
        centre = np.concatenate(parts).mean(axis=0)
        parts = [part - centre for part in parts]
    return parts, matrices


def shrink_factor(points: Array, diameter: float) -> float:
    """Return the factor, at most 1, that brings all points into the sphere of a diameter."""
    return min(1.0, 0.5 * diameter / float(np.linalg.norm(points, axis=1).max()))


def _splat(points_px: Array, size: int, sigma: float, reach: int) -> Tensor:
    """Sum Gaussians of unit mass on a grid, each truncated to ``2 * reach`` voxels per axis."""
    grid = np.zeros(size**3)
    offsets = np.arange(1 - reach, reach + 1)
    for block in np.array_split(points_px[:, ::-1], max(1, len(points_px) // 4096)):
        base = np.floor(block).astype(np.int64)
        index = base[:, :, None] + offsets  # (b, axis, w)
        weight = np.exp(-0.5 * ((index - block[:, :, None]) / sigma) ** 2)
        weight /= sigma * (2.0 * np.pi) ** 0.5
        index %= size
        z, y, x = (index[:, axis] for axis in range(3))
        flat = (z[:, :, None, None] * size + y[:, None, :, None]) * size + x[:, None, None, :]
        value = np.einsum("bi,bj,bk->bijk", weight[:, 0], weight[:, 1], weight[:, 2])
        low = int(flat.min())
        touched = np.bincount((flat - low).ravel(), weights=value.ravel())
        grid[low : low + len(touched)] += touched
    return torch.from_numpy(grid.reshape(size, size, size).astype(np.float32))


def render_points(
    points_angstrom: Tensor,
    box_size: int,
    pixel_size_angstrom: float,
    *,
    resolution_angstrom: float | None = None,
) -> Tensor:
    r"""Render equal Gaussian points as a band-limited density on a voxel grid.

    :math:`F(k) = v \sum_j e^{-2 \pi i k \cdot r_j} e^{-2 \pi^2 \sigma^2 |k|^2} w(|k|)` with
    :math:`\sigma` = 1 Å and a raised-cosine cut-off ``w`` from the resolution (Nyquist when None or
    beyond Nyquist) to a tenth beyond it. There is no aliasing. A tightly packed protein interior
    has a density of about 1. Points are ``(m, 3)``, (x, y, z) in Å about the origin, which falls on
    index ``box_size // 2`` of the float32 density in z, y, x order.

    Raises:
        ValueError: a point lies outside the box.

    >>> blob = render_points(torch.zeros(1, 3), 8, 3.0)
    >>> int(blob.argmax()) == (4 * 8 + 4) * 8 + 4
    True
    """
    points = points_angstrom.detach().cpu().double().numpy() / pixel_size_angstrom
    if np.abs(points).max(initial=0.0) > box_size / 2:
        raise ValueError(
            f"points reach {np.abs(points).max() * pixel_size_angstrom:.1f} Å from the centre, "
            f"outside half the box of {box_size * pixel_size_angstrom / 2:.1f} Å"
        )
    fine, sigma = 2 * box_size, 1.0
    spectrum = rfft_centered(_splat(points * 2.0 + fine // 2, fine, sigma, 4), 3)
    out = resize_spectrum(spectrum, box_size, 3)
    full = torch.fft.fftfreq(box_size, pixel_size_angstrom)
    k2 = full[:, None, None] ** 2 + full[:, None] ** 2 + full[: box_size // 2 + 1] ** 2
    splat_sigma = sigma * pixel_size_angstrom / 2.0
    nyquist = 0.5 / pixel_size_angstrom
    limit = nyquist if resolution_angstrom is None else min(nyquist, 1.0 / resolution_angstrom)
    window = 0.5 + 0.5 * torch.cos(torch.pi * ((k2.sqrt() / limit - 1.0) / 0.1).clamp(0, 1))
    window = window * torch.exp(2.0 * np.pi**2 * (splat_sigma**2 - _SIGMA_ANGSTROM**2) * k2)
    mass = RESIDUE_VOLUME_ANGSTROM3 / _POINTS_PER_RESIDUE / pixel_size_angstrom**3
    return irfft_centered(out * (window * mass), [box_size] * 3)


def protein_phantom(
    box_size: int,
    pixel_size_angstrom: float,
    *,
    seed: int,
    point_group: str = "C1",
    diameter_angstrom: float | None = None,
    resolution_angstrom: float | None = None,
) -> Tensor:
    """Generate the density of a protein-like molecule; equal arguments give equal densities.

    float32 ``(box_size, box_size, box_size)``, protein positive; ``point_group`` in RELION's axes.
    Give the diameter of the sphere that holds the molecule, 0.7 of the box by default, to get the
    same molecule at another box or pixel size. For the resolution see :func:`render_points`.

    Raises:
        ValueError: the diameter exceeds 0.95 of the box.

    >>> volume = protein_phantom(24, 6.0, seed=1)
    >>> volume.shape, bool(volume.mean() > 0)
    (torch.Size([24, 24, 24]), True)
    """
    extent = box_size * pixel_size_angstrom
    diameter = PHANTOM_SHARE * extent if diameter_angstrom is None else diameter_angstrom
    if diameter > 0.95 * extent:
        raise ValueError(f"diameter {diameter:.1f} Å does not fit a box of {extent:.1f} Å")
    points = phantom_points(seed, diameter, point_group=point_group)
    return render_points(
        points, box_size, pixel_size_angstrom, resolution_angstrom=resolution_angstrom
    )
