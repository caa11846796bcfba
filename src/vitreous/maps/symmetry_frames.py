"""Frames of point groups in a map, from pairs of axes, and their refinement.

A frame is a rotation F and a centre c: ``x -> F (x - c)`` brings the map into the group's standard
setting, and the group's rotation g is ``R = F^T g F``, ``t = c - R c`` in the map as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.rotation import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    nearest_rotation,
    so3_grid,
)
from vitreous.core.symmetry import PointGroup, point_group
from vitreous.maps.registration import Registration, RegistrationCandidates, distinct

FOLDS = (2, 3, 4, 5, 6, 7, 8, 12)
GROUPS = tuple(f"C{n}" for n in FOLDS) + tuple(f"D{n}" for n in FOLDS) + ("T", "O", "I")
_SPACING_DEG = 15.0
_MOST_ROTATIONS = 100
_MOST_AXES = 40
_LEAST_ANGLE_DEG = 24.0  # under smaller rotations any map is similar to itself
_SAME_AXIS_DEG = 8.0
_ANGLE_TOLERANCE_DEG = 8.0
_MAIN_AXES, _SIDE_AXES = 3, 10
_CHUNK = 250_000  # spectrum samples per batch, to stay in cache


@dataclass(frozen=True)
class Frame:
    """Point group with its orientation and centre in a map.

    Args:
        group: the group.
        rotation: ``(3, 3)`` float64 F.
        centre_px: ``(3,)`` float64 c in (x, y, z), pixels of the searched box, from ``n // 2``.
        score: correlation of the map with itself under the worst operator, at low resolution.
    """

    group: PointGroup
    rotation: Tensor
    centre_px: Tensor
    score: float

    def operators(self) -> tuple[Tensor, Tensor]:
        """Return rotations ``(g - 1, 3, 3)`` and shifts ``(g - 1, 3)``, without the identity."""
        turns = self.rotation.mT @ self.group.matrices[1:] @ self.rotation
        return turns, self.centre_px - turns @ self.centre_px


def find_frames(engine: Registration) -> list[Frame]:
    """Find the best frame of each of :data:`GROUPS` with axes at its angles, at low resolution."""
    axes = _candidate_axes(engine)
    by_fold = {fold: _fold_scores(engine, axes, fold) for fold in FOLDS}
    frames = []
    for name in GROUPS:
        group = point_group(name)
        turns = _frame_rotations(group, axes, by_fold)
        if len(turns):
            frames.append(_best_frame(engine, group, torch.stack(turns)))
    return frames


def refine_frames(engine: Registration, frames: list[Frame], iterations: int) -> list[Frame]:
    """Refine every operator independently, then fit the frame of each group to its axes.

    ``engine`` registers a map with itself, at the resolution and weights of the refinement;
    ``iterations`` counts the Gauss-Newton iterations of the operators.
    """
    if not frames:
        return []
    operators = [frame.operators() for frame in frames]
    turns = torch.cat([turn for turn, _ in operators]).float().to(engine.device)
    shifts = torch.cat([shift for _, shift in operators]).float().to(engine.device)
    eye = torch.eye(3, device=engine.device)
    mirrored = torch.zeros(len(turns), dtype=torch.bool, device=engine.device)
    start = RegistrationCandidates(turns, shifts, mirrored, torch.zeros_like(shifts[:, 0]))
    size = max(1, _CHUNK // len(engine.points))
    refined = [
        engine.refine(start[i : i + size], eye, eye, iterations, sort=False)
        for i in range(0, len(turns), size)
    ]
    sizes = [frame.group.order - 1 for frame in frames]
    columns = [
        torch.split(torch.cat([getattr(part, name) for part in refined]).double().cpu(), sizes)
        for name in ("rotation", "shift_px", "score")
    ]
    return [_fit(*one) for one in zip(frames, *columns, strict=True)]


def _fit(frame: Frame, turns: Tensor, shifts: Tensor, scores: Tensor) -> Frame:
    """Fit frame and centre to operators that were refined independently."""
    standard = matrix_to_axis_angle(frame.group.matrices[1:])
    angle = standard.norm(dim=-1, keepdim=True)
    standard = standard / angle
    axes = torch.nn.functional.normalize(matrix_to_axis_angle(turns), dim=-1)
    expected = standard @ frame.rotation
    axes = axes * (axes * expected).sum(-1, keepdim=True).sign()
    # the larger the angle of rotation, the more certain its axis
    weight = scores.clamp(min=0.01)[:, None] * (angle / 2).sin().square()
    overlap = (weight * standard).mT @ axes
    # directions that the axes do not fix, as with a single axis, keep their start
    rotation = nearest_rotation(overlap + 1e-3 * float(weight.sum()) * frame.rotation)
    exact = rotation.mT @ frame.group.matrices[1:] @ rotation
    system = (torch.eye(3, dtype=torch.float64) - exact).reshape(-1, 3)
    solution = torch.linalg.pinv(system, rtol=1e-6) @ shifts.reshape(-1)
    return Frame(frame.group, rotation, solution, frame.score)


def _candidate_axes(engine: Registration) -> Tensor:
    """Return candidate symmetry axes ``(a, 3)``, unit vectors of either sign, best first."""
    eye = torch.eye(3, device=engine.device)
    candidates = engine.search(so3_grid(_SPACING_DEG, device=engine.device), eye, (False,))
    best = engine.refine(distinct(candidates, _MOST_ROTATIONS, 18.0), eye, eye, 6)
    vectors = matrix_to_axis_angle(best.rotation.double().cpu())
    wide = vectors[vectors.norm(dim=-1) > math.radians(_LEAST_ANGLE_DEG)]
    axes: list[Tensor] = []
    limit = math.cos(math.radians(_SAME_AXIS_DEG))
    for vector in wide:
        axis = vector / vector.norm()
        if len(axes) < _MOST_AXES and not any(abs(float(axis @ c)) > limit for c in axes):
            axes.append(axis)
    return torch.stack(axes) if axes else torch.zeros(0, 3, dtype=torch.float64)


def _fold_scores(engine: Registration, axes: Tensor, fold: int) -> Tensor:
    """Return the self-correlation ``(a,)`` under the worst rotation of a fold about each axis."""
    if not len(axes):
        return torch.zeros(0)
    steps = torch.arange(1, fold // 2 + 1, dtype=torch.float64)  # the others are their inverses
    vectors = axes[:, None] * (steps * (2 * math.pi / fold))[:, None]
    turns = axis_angle_to_matrix(vectors.reshape(-1, 3)).float().to(engine.device)
    scores = engine.search(turns, torch.eye(3, device=engine.device), (False,)).score.cpu()
    return scores.reshape(len(axes), len(steps)).amin(-1)


def _frame_rotations(group: PointGroup, axes: Tensor, by_fold: dict[int, Tensor]) -> list[Tensor]:
    """Return frames that map a good main axis, and any side axis, to those of the group."""
    main_fold, side_fold = _folds(group)
    mains = axes[by_fold[main_fold].argsort(descending=True)[:_MAIN_AXES]] if len(axes) else axes
    main = _axes_of(group, main_fold)[0]
    if side_fold is None:
        return [_onto(a, _perpendicular(a), main, _perpendicular(main)) for a in mains]
    if group.name[0] == "D":
        main = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    side = _nearest_side(group, main, side_fold)
    expected = float(main @ side)
    sides = axes[by_fold[side_fold].argsort(descending=True)[:_SIDE_AXES]] if len(axes) else axes
    tolerance = math.radians(_ANGLE_TOLERANCE_DEG)
    turns = []
    for a in mains:
        for b in sides:
            cosine = float(a @ b)
            if abs(abs(cosine) - 1) < 1e-6:
                continue
            if abs(math.acos(min(1.0, abs(cosine))) - math.acos(abs(expected))) > tolerance:
                continue
            second = b if cosine * expected >= 0 else -b
            turns.append(_onto(a, second, main, side))
            if group.name == "T":  # the dual tetrahedron has the same axes
                turns.append(_onto(-a, -second, main, side))
    return turns


def _folds(group: PointGroup) -> tuple[int, int | None]:
    """Return the folds of the axes that fix the frame of a group."""
    special = {"T": (3, 2), "O": (4, 3), "I": (5, 3)}
    if group.name in special:
        return special[group.name]
    fold = int(group.name[1:])
    return (fold, None) if group.name[0] == "C" else (fold, 2)


def _axes_of(group: PointGroup, fold: int) -> Tensor:
    """Return unit axes of the group's rotations by exactly 1 / fold of a turn."""
    vectors = matrix_to_axis_angle(group.matrices[1:])
    angle = vectors.norm(dim=-1)
    of_fold = (angle - 2 * math.pi / fold).abs() < 1e-6
    return vectors[of_fold] / angle[of_fold][:, None]


def _nearest_side(group: PointGroup, main: Tensor, fold: int) -> Tensor:
    if group.name[0] == "D":
        return torch.tensor([1.0, 0, 0], dtype=torch.float64)
    sides = _axes_of(group, fold)
    cosines = sides @ main
    return sides[int(torch.where(cosines.abs() < 0.999, cosines, -2).argmax())]


def _perpendicular(axis: Tensor) -> Tensor:
    helper = torch.eye(3, dtype=axis.dtype)[int(axis.abs().argmin())]
    return torch.nn.functional.normalize(helper - (helper @ axis) * axis, dim=0)


def _onto(a: Tensor, b: Tensor, main: Tensor, side: Tensor) -> Tensor:
    """Return the rotation of a to ``main`` and of b into its half plane with ``side``."""

    def triad(first: Tensor, second: Tensor) -> Tensor:
        across = torch.nn.functional.normalize(second - (second @ first) * first, dim=0)
        return torch.stack([first, across, torch.linalg.cross(first, across)], dim=-1)

    return triad(main, side) @ triad(a, b).mT


def _best_frame(engine: Registration, group: PointGroup, turns: Tensor) -> Frame:
    """Return the frame whose worst operator fits best."""
    operators = turns.mT[:, None] @ group.matrices[1:] @ turns[:, None]
    eye = torch.eye(3, device=engine.device)
    results = engine.search(operators.reshape(-1, 3, 3).float().to(engine.device), eye, (False,))
    worst = results.score.cpu().reshape(len(turns), -1).amin(-1)
    best = int(worst.argmax())
    start = Frame(group, turns[best], torch.zeros(3, dtype=torch.float64), float(worst[best]))
    shifts = results.shift_px.double().cpu().reshape(len(turns), -1, 3)[best]
    scores = results.score.double().cpu().reshape(len(turns), -1)[best]
    return _fit(start, operators[best], shifts, scores)
