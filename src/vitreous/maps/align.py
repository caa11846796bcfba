"""Alignment of one map to another over rotation, shift and hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core import symmetry
from vitreous.core.fourier import fourier_resize
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix, nearest_rotation, so3_grid
from vitreous.maps.registration import Registration, RegistrationCandidates, distinct
from vitreous.metrics.image import correlation

_LARGEST_SEARCH_BOX = 96
_COARSE_RADIUS = 6  # cycles per box


@dataclass(frozen=True)
class Alignment:
    """Transform of the moving map onto the reference.

    ``aligned(r) = moving(R^T (r - t))``, or ``moving(-R^T (r - t))`` when mirrored, r from the
    centre ``n // 2``.

    Args:
        rotation: ``(3, 3)`` float64 R.
        shift_angstrom: ``(3,)`` float64 t in (x, y, z), Å.
        mirrored: True if the other hand fits better.
        correlation: Pearson correlation of ``aligned`` and the reference over the box.
        aligned: ``(n, n, n)``, dtype and device of the moving map.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    mirrored: bool
    correlation: float
    aligned: Tensor


@dataclass(frozen=True)
class _SearchSpace:
    """Initial rotations, and the axes about and along which the transform is free."""

    rotations: Tensor
    rotation_axes: Tensor
    shift_axes: Tensor


def align_maps(
    moving: Tensor,
    reference: Tensor,
    *,
    pixel_size_angstrom: float,
    point_group: str = "C1",
    allow_mirror: bool = True,
    spacing_deg: float = 15.0,
) -> Alignment:
    """Align a map to another one by rotation, shift and, if it fits better, inversion of the hand.

    Searches a grid on SO(3), all shifts and both hands at low resolution with whitened spectra, and
    refines the best distinct candidates by Gauss-Newton at growing resolution, shells weighted by
    their agreement.

    With a point group that both maps obey about the same axes only transforms that keep it are
    searched: D2 6 (the cube's rotations), Dn 2 (half a step about z), T 2, O and I 1, without
    shift; Cn any angle about z, either way up, any shift along z (D1: about and along x).

    The maps ``(n, n, n)`` have the same box and pixel size; where one is constant, the result is
    the identity. ``allow_mirror`` tries the other hand too; ``spacing_deg`` is the step of the
    rotation grid.

    Raises:
        ValueError: boxes differ, a map is not cubic or not finite.
        UsageError: unknown point group.

    >>> v = torch.zeros(16, 16, 16)
    >>> v[9, 8, 5], v[4, 8, 8], v[8, 11, 9], v[12, 6, 7] = 1.0, 2.0, 3.0, 4.0
    >>> half_turn = v.flip(0, 1).roll((1, 1), (0, 1))  # about x
    >>> fit = align_maps(half_turn, v, pixel_size_angstrom=2.0)
    >>> fit.mirrored, (fit.rotation.diagonal().round() + 0.0).tolist()
    (False, [1.0, -1.0, -1.0])
    """
    n = _check(moving, reference)
    hands = (False, True) if allow_mirror else (False,)
    space = _search_space(point_group, spacing_deg, moving.device)
    small = _search_maps(moving, reference)
    if not all(float(one.std()) > 0 for one in small):
        zero = torch.zeros(3, dtype=torch.float64, device=moving.device)
        eye = torch.eye(3, dtype=torch.float64, device=moving.device)
        return Alignment(eye, zero, False, 0.0, moving.detach().clone())
    with torch.no_grad():
        engine = Registration(*small)
        engine.use(min(_COARSE_RADIUS, _top(engine)))
        candidates = engine.search(space.rotations, space.shift_axes, hands)
        least_deg = 20.0 if len(space.rotation_axes) == 3 else 1e-3
        best = _refine(engine, distinct(candidates, 40, least_deg), space, 12)
    rotation, mirrored = best.rotation[0].double(), bool(best.mirrored[0])
    shift_px = best.shift_px[0].double() * (n / len(small[0]))
    if len(space.rotation_axes):
        rotation = nearest_rotation(rotation)
    transform = -rotation if mirrored else rotation
    aligned = rotate_volume(moving.detach(), transform, shift_px if len(space.shift_axes) else None)
    score = float(correlation(aligned.double(), reference.double(), 3))
    return Alignment(rotation, shift_px * pixel_size_angstrom, mirrored, score, aligned)


def _search_maps(moving: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps as float32 at the box of the search."""
    small = min(int(moving.shape[-1]), _LARGEST_SEARCH_BOX)
    first, second = (fourier_resize(one.detach().float(), small, 3) for one in (moving, reference))
    return first, second


def align_nearby(
    moving: Tensor, reference: Tensor, *, pixel_size_angstrom: float, point_group: str = "C1"
) -> tuple[Tensor, Tensor]:
    """Align a map to another one from which it differs by a small rotation and shift.

    The maps ``(n, n, n)`` have the same box and pixel size and lie a few degrees and pixels apart;
    the symmetry ``point_group`` of both, about the same axes, is kept. Returns rotation ``(3, 3)``
    R and shift ``(3,)`` t in (x, y, z), Å, float64: ``aligned(r) = moving(R^T (r - t))``; the
    identity where the group leaves nothing free, or a map is constant.

    Raises:
        ValueError: as for :func:`align_maps`.

    >>> v = torch.zeros(16, 16, 16)
    >>> v[9, 8, 5], v[4, 8, 8], v[8, 11, 9], v[12, 6, 7] = 1.0, 2.0, 3.0, 4.0
    >>> rotation, shift = align_nearby(v.roll(1, 2), v, pixel_size_angstrom=2.0)
    >>> (shift.round() + 0.0).tolist()
    [-2.0, 0.0, 0.0]
    """
    n = _check(moving, reference)
    eye = torch.eye(3, dtype=torch.float64, device=moving.device)
    zero = torch.zeros(3, dtype=torch.float64, device=moving.device)
    space = _search_space(point_group, 120.0, moving.device)
    free = len(space.rotation_axes) + len(space.shift_axes)
    if not free or not float(moving.std()) > 0 or not float(reference.std()) > 0:
        return eye, zero
    engine = Registration(*_search_maps(moving, reference))
    engine.use(min(_COARSE_RADIUS, _top(engine)))
    one = torch.ones(1, device=moving.device)
    start = RegistrationCandidates(eye[None].float(), zero[None].float(), one < 0, 0 * one)
    best = _refine(engine, start, space, 1)
    shift = best.shift_px[0].double() * (n / engine.n * pixel_size_angstrom)
    return nearest_rotation(best.rotation[0].double()), shift


def _check(moving: Tensor, reference: Tensor) -> int:
    n = int(moving.shape[-1])
    for volume, name in ((moving, "moving"), (reference, "reference")):
        if tuple(volume.shape) != (n, n, n):
            raise ValueError(f"{name} must be {(n, n, n)}, got {tuple(volume.shape)}")
        if not bool(torch.isfinite(volume).all()):
            raise ValueError(f"{name} holds values that are not finite")
    if n < 8:
        raise ValueError(f"maps must be at least 8 voxels wide, got {n}")
    return n


def _top(engine: Registration) -> int:
    """Return the highest shell compared."""
    return max(2, int(0.9 * (engine.n // 2)))


def _refine(
    engine: Registration, best: RegistrationCandidates, space: _SearchSpace, keep: int
) -> RegistrationCandidates:
    """Refine at growing resolution from the engine's radius, with fewer candidates each time."""
    top, radius = _top(engine), engine.radius
    best = engine.refine(best, space.rotation_axes, space.shift_axes, 6)
    agreeing = radius
    while radius < top and agreeing > 0.6 * radius:
        radius = min(top, math.ceil(1.5 * radius))
        best = distinct(best, keep, 3.0 if len(space.rotation_axes) else 1e-3)
        engine.use(radius)
        agreeing = engine.weight_by_agreement(best)
        best = engine.refine(best, space.rotation_axes, space.shift_axes, 5)
        keep = max(2, keep // 2)
    engine.use(radius, cubic=True)
    best = best[:keep]
    for _ in range(2):  # the second time with the weights of the refined transform
        engine.weight_by_agreement(best)
        best = engine.refine(best, space.rotation_axes, space.shift_axes, 5)
    return best


def _search_space(name: str, spacing_deg: float, device: torch.device) -> _SearchSpace:
    """Return cosets of the group in its normaliser, and the normaliser's free directions."""
    group = symmetry.point_group(name)
    eye, none = torch.eye(3, device=device), torch.zeros(0, 3, device=device)
    if group.order == 1:
        return _SearchSpace(so3_grid(spacing_deg, device=device), eye, eye)
    if group.name[0] == "C" or group.name == "D1":
        axis = eye[:1] if group.name == "D1" else eye[2:]
        across = eye[2:] if group.name == "D1" else eye[:1]
        fold = 2 if group.name == "D1" else group.order
        count = max(4, math.ceil(360 / fold / min(spacing_deg, 4.0)))
        angle = torch.arange(count, device=device) * (2 * math.pi / fold / count)
        turns = axis_angle_to_matrix(angle[:, None] * axis)
        flip = axis_angle_to_matrix(math.pi * across)
        return _SearchSpace(torch.cat([turns, turns @ flip]), axis, axis)
    cosets = _finite_cosets(group).to(device=device, dtype=torch.float32)
    return _SearchSpace(cosets, none, none)


def _finite_cosets(group: symmetry.PointGroup) -> Tensor:
    if group.name == "D2":
        larger = symmetry.point_group("O").matrices
    elif group.name[0] == "D":
        larger = symmetry.point_group(f"D{group.order}").matrices
    elif group.name == "T":
        # a quarter turn about a 2-fold takes a tetrahedron to its dual
        trace = group.matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
        half_turn = group.matrices[(trace + 1).abs() < 1e-6][0]
        axis = torch.linalg.eigh(half_turn + half_turn.mT).eigenvectors[:, -1]
        larger = torch.stack([torch.eye(3).double(), axis_angle_to_matrix(axis * (math.pi / 2))])
    else:
        larger = group.matrices[:1]
    representatives: list[Tensor] = []
    for matrix in larger:
        coset = group.matrices @ matrix
        if not any(bool(((coset - r).abs().amax((-2, -1)) < 1e-6).any()) for r in representatives):
            representatives.append(matrix)
    return torch.stack(representatives)
