"""Turn a symmetric atomic model so that its axes are those of a point group's standard setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.symmetry import point_group

Array = NDArray[np.float64]

_TOLERANCE = math.radians(3.0)
_MIN_SHARED_ATOMS = 20


def _kabsch(source: Array, target: Array) -> tuple[Array, float]:
    """Rotation that best takes centred ``source`` to centred ``target``, and its RMSD."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, np.linalg.det(u @ vt)])
    rotation = u @ sign @ vt
    return rotation, float(np.sqrt(((a @ rotation.T - b) ** 2).sum(axis=1).mean()))


def _trace(chain: Any) -> dict[tuple[int, str], list[float]]:
    """One atom for each residue: CA of proteins, C1' of nucleic acids."""
    return {
        (residue.seqid.num, residue.name): atom.pos.tolist()
        for residue in chain
        for atom in residue
        if atom.name in ("CA", "C1'")
    }


def chain_rotations(model: Any) -> list[Array]:
    """Rotations that take the largest group of alike chains' first member to each of them."""
    traces = [trace for chain in model if len(trace := _trace(chain)) >= _MIN_SHARED_ATOMS]
    best: list[Array] = []
    for first in traces:
        rotations = []
        for other in traces:
            shared = [key for key in first if key in other]
            if len(shared) < max(_MIN_SHARED_ATOMS, 0.8 * max(len(first), len(other))):
                continue
            rotation, rmsd = _kabsch(
                np.array([first[key] for key in shared]), np.array([other[key] for key in shared])
            )
            if rmsd < 3.0:
                rotations.append(rotation)
        if len(rotations) > len(best):
            best = rotations
    return best


def _angle(rotation: Array) -> float:
    return math.acos(min(1.0, max(-1.0, (float(np.trace(rotation)) - 1.0) / 2.0)))


def _axis(rotation: Array) -> Array:
    """Unit axis of a rotation; its sign is arbitrary for a half turn."""
    values, vectors = np.linalg.eigh((rotation + rotation.T) / 2.0)
    axis = vectors[:, int(np.argmax(values))]
    skew = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    return np.asarray(axis if axis @ skew >= 0 else -axis)


def _worst(turn: Array, found: list[Array], group: Array) -> float:
    """Largest angle between an operator of the group and the nearest turned found one."""
    turned = turn @ np.array(found) @ turn.T
    traces = np.einsum("gij,fij->gf", group, turned)
    return math.acos(float(np.clip((traces.max(axis=1).min() - 1.0) / 2.0, -1.0, 1.0)))


def _frames(found: list[Array], group: Array) -> list[Array]:
    """Turns that take one found axis, and where there is one a second, to the group's."""
    operators = [rotation for rotation in found if _angle(rotation) > _TOLERANCE]
    first = max(group[1:], key=lambda g: (round(-_angle(g), 6), abs(g[2, 2])))
    one = _axis(first)
    two = next((axis for g in group[1:] if abs(one @ (axis := _axis(g))) < 0.99), None)
    # axes of the highest fold are equivalent, so one of the molecule's is enough
    matching = [a for a in operators if abs(_angle(a) - _angle(first)) <= _TOLERANCE][:1]
    turns = []
    for source in (sign * _axis(a) for a in matching for sign in (1.0, -1.0)):
        if two is None:
            turns.append(_align([source], [one]))
            continue
        for second in (sign * _axis(b) for b in operators for sign in (1.0, -1.0)):
            if abs(source @ second - one @ two) < _TOLERANCE:
                turns.append(_align([source, second], [one, two]))
    return turns


def _align(sources: list[Array], targets: list[Array]) -> Array:
    u, _, vt = np.linalg.svd(np.array(targets).T @ np.array(sources))
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def symmetry_turn(model: Any, name: str, path: Path) -> Array:
    """Rotation ``(3, 3)`` of (x, y, z) that brings a model into the setting of a point group.

    The rotations that superpose alike chains are the molecule's own operators; a turn is sought
    that makes them the group's, each within 3 degrees.

    Args:
        model: a gemmi model.
        name: Schoenflies name.
        path: the file, for messages.

    Raises:
        InputError: the chains do not have this symmetry.
    """
    group = np.asarray(point_group(name).matrices, dtype=np.float64)
    if len(group) == 1:
        return np.eye(3)
    group = np.array(sorted(group, key=_angle))  # identity first
    found = chain_rotations(model)
    turns = _frames(found, group) if len(found) >= len(group) else []
    best = min(turns, key=lambda turn: _worst(turn, found, group), default=None)
    if best is None or _worst(best, found, group) > _TOLERANCE:
        raise InputError(
            f"{path}: symmetry: {len(found)} alike chains do not have the symmetry {name}; give "
            "the whole assembly, or no symmetry"
        )
    return best
