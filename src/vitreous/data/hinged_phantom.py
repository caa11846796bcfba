"""Phantoms whose outermost domain rotates about a hinge: one map for each angle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitreous.data.phantoms import (
    PHANTOM_SHARE,
    Array,
    phantom_domains,
    render_points,
    shrink_factor,
)


def hinged_points(
    seed: int, diameter_angstrom: float, angles_deg: Sequence[float]
) -> tuple[Tensor, ...]:
    """Return the points of a phantom without symmetry that bends at a hinge, for each angle.

    The domain farthest from the centre rotates about an axis through the point where it touches its
    nearest neighbour. Of the axes across, the one that keeps it farthest from the other domains is
    taken. All other domains stay. Angles are in degrees; 0 is the molecule of ``phantom_points``.
    The diameter is that of the sphere that holds every point of every state. Points are float64
    ``(m, 3)`` in Å, in the same order.

    Raises:
        ValueError: no angle, or a diameter that is not positive.

    >>> still, bent = hinged_points(3, 60.0, (0.0, 40.0))
    >>> moved = (bent - still).norm(dim=1) > 1e-9
    >>> 0.02 < float(moved.double().mean()) < 0.6
    True
    """
    if not diameter_angstrom > 0 or len(angles_deg) == 0:
        raise ValueError(
            f"needs a positive diameter and at least one angle, got {diameter_angstrom} Å and "
            f"{len(angles_deg)} angles"
        )
    parts, _ = phantom_domains(seed, diameter_angstrom, "C1")
    centres = np.stack([part.mean(axis=0) for part in parts])
    moving = int(np.linalg.norm(centres, axis=1).argmax())
    outward = centres[moving] / np.linalg.norm(centres[moving])
    others = np.delete(centres, moving, axis=0)
    neighbour = others[int(np.linalg.norm(others - centres[moving], axis=1).argmin())]
    hinge = 0.5 * (centres[moving] + neighbour)
    across = np.linalg.svd(outward[None])[2][1:]
    azimuths = np.arange(12) * (np.pi / 6)
    axes = np.cos(azimuths)[:, None] * across[0] + np.sin(azimuths)[:, None] * across[1]

    def rotated(points: Array, axis: Array, angle_deg: float) -> Array:
        return np.asarray(
            (points - hinge) @ _rotation_about(axis, np.deg2rad(angle_deg)).T + hinge,
            dtype=np.float64,
        )

    def clearance(axis: Array) -> float:
        """Smallest distance from the moving domain's centre to another centre."""
        centre = np.concatenate([rotated(centres[moving][None], axis, a) for a in angles_deg])
        return float(np.linalg.norm(centre[:, None] - others, axis=-1).min())

    axis = max(axes, key=clearance)
    fixed = np.concatenate([part for i, part in enumerate(parts) if i != moving])
    states = [np.concatenate([fixed, rotated(parts[moving], axis, a)]) for a in angles_deg]
    factor = min(shrink_factor(state, diameter_angstrom) for state in states)
    return tuple(torch.from_numpy(state * factor) for state in states)


def _rotation_about(axis: Array, angle: float) -> Array:
    """Rotation matrix of a unit axis and an angle in radians (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross)


def hinged_states(
    seed: int,
    degrees: float,
    count: int,
    *,
    box_size: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float | None = None,
) -> Tensor:
    """Return maps ``(count, n, n, n)`` of a phantom whose outermost domain rotates in steps.

    From 0 to ``degrees``; see :func:`hinged_points` and
    :func:`~vitreous.data.phantoms.render_points`.
    """
    diameter = PHANTOM_SHARE * box_size * pixel_size_angstrom
    angles = torch.linspace(0.0, degrees, count, dtype=torch.float64).tolist()
    grid, resolution = (box_size, pixel_size_angstrom), resolution_angstrom
    states = hinged_points(seed, diameter, angles)
    return torch.stack([render_points(p, *grid, resolution_angstrom=resolution) for p in states])
