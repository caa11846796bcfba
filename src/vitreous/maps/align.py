"""Superpose one map on another: rotation, shift and hand, from any start."""

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
    """How the moving map was brought onto the reference.

    ``aligned(r) = moving(R^T (r - t))``, or ``moving(-R^T (r - t))`` when mirrored, r from the
    centre ``n // 2``.

    Args:
        rotation: ``(3, 3)`` float64 R.
        shift_angstrom: ``(3,)`` float64 t in (x, y, z), Å.
        mirrored: whether the other hand fits better.
        correlation: Pearson correlation of ``aligned`` and the reference over the box.
        aligned: ``(n, n, n)``, dtype and device of the moving map.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    mirrored: bool
    correlation: float
    aligned: Tensor


@dataclass(frozen=True)
class _Family:
    """Relative placements to be searched: start rotations and the axes free around them."""

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
    """Rotate, shift and perhaps mirror a map onto another one.

    Exhaustive over a grid on SO(3), all shifts and both hands at low resolution with whitened
    spectra; the best distinct candidates are refined by Gauss-Newton at growing resolution, shells
    weighted by their agreement. No start is needed and none is used.

    With a point group that both maps obey about the same axes only the placements that keep it
    are searched: D2 6 (the cube's rotations), Dn 2 (half a step about z), T 2, O and I 1, without
    shift; Cn any angle about z, either way up, any shift along z (D1: about and along x).

    Args:
        moving, reference: ``(n, n, n)`` of one box and pixel size.
        pixel_size_angstrom: Å.
        point_group: Schoenflies name of the common symmetry; C1 searches everything.
        allow_mirror: try the other hand.
        spacing_deg: step of the rotation grid in degrees.

    Returns:
        the best :class:`Alignment`; the identity when either map is constant. The hand is inverted
        only if that fits better.

    Raises:
        ValueError: boxes differ, a map is not cubic or not finite.
        UsageError: unknown point group.

    >>> import torch
    >>> v = torch.zeros(16, 16, 16)
    >>> v[9, 8, 5], v[4, 8, 8], v[8, 11, 9], v[12, 6, 7] = 1.0, 2.0, 3.0, 4.0
    >>> half_turn = v.flip(0, 1).roll((1, 1), (0, 1))  # about x
    >>> fit = align_maps(half_turn, v, pixel_size_angstrom=2.0)
    >>> fit.mirrored, (fit.rotation.diagonal().round() + 0.0).tolist()
    (False, [1.0, -1.0, -1.0])
    """
    n = _check(moving, reference)
    hands = (False, True) if allow_mirror else (False,)
    device = moving.device
    family = _family(point_group, spacing_deg, device)
    small = min(n, _LARGEST_SEARCH_BOX)
    moving32 = fourier_resize(moving.detach().float(), small, 3)
    reference32 = fourier_resize(reference.detach().float(), small, 3)
    if not float(moving32.std()) > 0 or not float(reference32.std()) > 0:
        zero = torch.zeros(3, dtype=torch.float64, device=device)
        eye = torch.eye(3, dtype=torch.float64, device=device)
        return Alignment(eye, zero, False, 0.0, moving.detach().clone())
    with torch.no_grad():
        best = _search(Registration(moving32, reference32), family, hands)
    rotation, mirrored = best.rotation[0].double(), bool(best.mirrored[0])
    shift_px = best.shift_px[0].double() * (n / small)
    if len(family.rotation_axes):
        rotation = nearest_rotation(rotation)
    placement = -rotation if mirrored else rotation
    aligned = rotate_volume(
        moving.detach(), placement, shift_px if len(family.shift_axes) else None
    )
    score = float(correlation(aligned.double(), reference.double(), 3))
    return Alignment(rotation, shift_px * pixel_size_angstrom, mirrored, score, aligned)


def align_nearby(
    moving: Tensor, reference: Tensor, *, pixel_size_angstrom: float, point_group: str = "C1"
) -> tuple[Tensor, Tensor]:
    """Small rotation and shift that bring a map onto another one close to it.

    Args:
        moving, reference: ``(n, n, n)`` of one box and pixel size, a few degrees and pixels apart.
        pixel_size_angstrom: Å.
        point_group: of both, about the same axes, which are kept.

    Returns:
        rotation ``(3, 3)`` R and shift ``(3,)`` t in (x, y, z), Å, float64:
        ``aligned(r) = moving(R^T (r - t))``. Identity where the group leaves nothing free, or the
        maps have nothing in common.

    Raises:
        ValueError: as :func:`align_maps`.
    """
    _check(moving, reference)
    eye = torch.eye(3, dtype=torch.float64, device=moving.device)
    zero = torch.zeros(3, dtype=torch.float64, device=moving.device)
    family = _family(point_group, 120.0, moving.device)
    free = len(family.rotation_axes) + len(family.shift_axes)
    if not free or not float(moving.std()) > 0 or not float(reference.std()) > 0:
        return eye, zero
    n = moving.shape[-1]
    small = min(n, _LARGEST_SEARCH_BOX)
    engine = Registration(
        *(fourier_resize(one.detach().float(), small, 3) for one in (moving, reference))
    )
    engine.use(min(_COARSE_RADIUS, _top(engine)))
    one = torch.ones(1, device=moving.device)
    start = RegistrationCandidates(eye[None].float(), zero[None].float(), one < 0, 0 * one)
    best = _climb(engine, start, family, 1)
    shift = best.shift_px[0].double() * (n / small * pixel_size_angstrom)
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


def _search(
    engine: Registration, family: _Family, hands: tuple[bool, ...]
) -> RegistrationCandidates:
    """Coarse search, then refinement of fewer candidates at growing resolution."""
    engine.use(min(_COARSE_RADIUS, _top(engine)))
    found = engine.search(family.rotations, family.shift_axes, hands)
    best = distinct(found, 40, 20.0 if len(family.rotation_axes) == 3 else 1e-3)
    return _climb(engine, best, family, 12)


def _top(engine: Registration) -> int:
    """Highest shell compared."""
    return max(2, int(0.9 * (engine.n // 2)))


def _climb(
    engine: Registration, best: RegistrationCandidates, family: _Family, keep: int
) -> RegistrationCandidates:
    """Refine at growing resolution from the radius that the engine uses, fewer each time."""
    top, radius = _top(engine), engine.radius
    best = engine.refine(best, family.rotation_axes, family.shift_axes, 6)
    agreeing = radius
    while radius < top and agreeing > 0.6 * radius:
        radius = min(top, math.ceil(1.5 * radius))
        best = distinct(best, keep, 3.0 if len(family.rotation_axes) else 1e-3)
        engine.use(radius)
        agreeing = engine.weigh_by_agreement(best)
        best = engine.refine(best, family.rotation_axes, family.shift_axes, 5)
        keep = max(2, keep // 2)
    engine.use(radius, cubic=True)
    best = best[:keep]
    for _ in range(2):  # the second time with weights of the improved placement
        engine.weigh_by_agreement(best)
        best = engine.refine(best, family.rotation_axes, family.shift_axes, 5)
    return best


def _family(name: str, spacing_deg: float, device: torch.device) -> _Family:
    """Cosets of the group in its normaliser, and the normaliser's continuous directions."""
    group = symmetry.point_group(name)
    eye, none = torch.eye(3, device=device), torch.zeros(0, 3, device=device)
    if group.order == 1:
        return _Family(so3_grid(spacing_deg, device=device), eye, eye)
    if group.name[0] == "C" or group.name == "D1":
        axis = eye[:1] if group.name == "D1" else eye[2:]
        across = eye[2:] if group.name == "D1" else eye[:1]
        fold = 2 if group.name == "D1" else group.order
        count = max(4, math.ceil(360 / fold / min(spacing_deg, 4.0)))
        angle = torch.arange(count, device=device) * (2 * math.pi / fold / count)
        turns = axis_angle_to_matrix(angle[:, None] * axis)
        flip = axis_angle_to_matrix(math.pi * across)
        return _Family(torch.cat([turns, turns @ flip]), axis, axis)
    cosets = _finite_cosets(group).to(device=device, dtype=torch.float32)
    return _Family(cosets, none, none)


def _finite_cosets(group: symmetry.PointGroup) -> Tensor:
    if group.name == "D2":
        larger = symmetry.point_group("O").matrices
    elif group.name[0] == "D":
        larger = symmetry.point_group(f"D{group.order}").matrices
    elif group.name == "T":
        # A quarter turn about one of its 2-folds takes a tetrahedron to its dual.
        trace = group.matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
        half_turn = group.matrices[(trace + 1).abs() < 1e-6][0]
        axis = torch.linalg.eigh(half_turn + half_turn.mT).eigenvectors[:, -1]
        larger = torch.stack([torch.eye(3).double(), axis_angle_to_matrix(axis * (math.pi / 2))])
    else:
        larger = group.matrices[:1]
    chosen: list[Tensor] = []
    for matrix in larger:
        images = group.matrices @ matrix
        if not any(bool(((images - c).abs().amax((-2, -1)) < 1e-6).any()) for c in chosen):
            chosen.append(matrix)
    return torch.stack(chosen)
