"""Rotation of a symmetric atomic model to the standard setting of its point group."""

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
    """Return the rotation that superposes centred ``source`` on ``target``, and the RMSD."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    rotation = _align(a, b)
    return rotation, float(np.sqrt(((a @ rotation.T - b) ** 2).sum(axis=1).mean()))


def _trace(chain: Any) -> dict[tuple[int, str], list[float]]:
    """Position of one atom of each residue: CA of proteins, C1' of nucleic acids."""
    return {
        (residue.seqid.num, residue.name): atom.pos.tolist()
        for residue in chain
        for atom in residue
        if atom.name in ("CA", "C1'")
    }


def chain_rotations(model: Any) -> list[Array]:
    """Rotations that superpose the first of the largest set of alike chains on each of them."""
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
    """Unit axis of a rotation; the sign is arbitrary for 180 degrees."""
    values, vectors = np.linalg.eigh((rotation + rotation.T) / 2.0)
    axis = vectors[:, int(np.argmax(values))]
    skew = (rotation - rotation.T)[[2, 0, 1], [1, 2, 0]]
    return np.asarray(axis if axis @ skew >= 0 else -axis)


def _worst(rotation: Array, operators: list[Array], group: Array) -> float:
    """Largest angle from an operator of the group to the nearest rotated operator of the model."""
    rotated = rotation @ np.array(operators) @ rotation.T
    traces = np.einsum("gij,fij->gf", group, rotated)
    return math.acos(float(np.clip((traces.max(axis=1).min() - 1.0) / 2.0, -1.0, 1.0)))


def _candidates(operators: list[Array], group: Array) -> list[Array]:
    """Rotations that take one axis of the model, and a second if there is one, to the group's."""
    operators = [operator for operator in operators if _angle(operator) > _TOLERANCE]
    first = max(group[1:], key=lambda g: (round(-_angle(g), 6), abs(g[2, 2])))
    one = _axis(first)
    two = next((axis for g in group[1:] if abs(one @ (axis := _axis(g))) < 0.99), None)
    # axes of the highest fold are equivalent: one of the molecule's is enough
    of_equal_fold = [a for a in operators if abs(_angle(a) - _angle(first)) <= _TOLERANCE][:1]
    rotations = []
    for source in (sign * _axis(a) for a in of_equal_fold for sign in (1.0, -1.0)):
        if two is None:
            rotations.append(_align([source], [one]))
            continue
        for second in (sign * _axis(b) for b in operators for sign in (1.0, -1.0)):
            if abs(source @ second - one @ two) < _TOLERANCE:
                rotations.append(_align([source, second], [one, two]))
    return rotations


def _align(sources: list[Array] | Array, targets: list[Array] | Array) -> Array:
    """Return the rotation that brings vectors ``(m, 3)`` nearest to others, by singular values."""
    u, _, vt = np.linalg.svd(np.array(targets).T @ np.array(sources))
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def symmetry_rotation(model: Any, name: str, path: Path) -> Array:
    """Return the rotation ``(3, 3)`` of (x, y, z) that brings a gemmi model to a group's setting.

    The rotations that superpose alike chains are the model's symmetry operators. The result takes
    each of them to an operator of the group, within 3 degrees.

    Raises:
        InputError: the chains do not have this symmetry.
    """
    group = np.asarray(point_group(name).matrices, dtype=np.float64)
    if len(group) == 1:
        return np.eye(3)
    group = np.array(sorted(group, key=_angle))  # identity first
    operators = chain_rotations(model)
    candidates = _candidates(operators, group) if len(operators) >= len(group) else []
    best = min(candidates, key=lambda r: _worst(r, operators, group), default=None)
    if best is None or _worst(best, operators, group) > _TOLERANCE:
        raise InputError(
            f"{path}: symmetry: {len(operators)} alike chains do not have the symmetry {name}; "
            "give the whole assembly, or no symmetry"
        )
    return best
