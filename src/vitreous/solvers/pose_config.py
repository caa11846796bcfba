"""Settings of pose assignment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from vitreous.solvers.admm_config import STRICT


@validated(frozen=True, config=STRICT)
class PoseConfig:
    """How poses are searched for, weighed and refined; see ``docs/pose-assignment.md``.

    Args:
        start_resolution_angstrom: end of the first round's band; what the start map is good for.
        symmetry: point group of the map, in RELION's axes.
        shift_range_angstrom: farthest shift of a particle.
        rounds: of assignment and reconstruction.
        searches: how many rounds, from the first on, search among all poses, after the first for
            images that are not certain; all refine what the one before has kept.
        certain: posterior of its best pose from which on an image is not searched for again.
        search_radius: highest shell that a search compares, in cycles per box.
        spacing: between the views of a search, in units of one over its highest shell, radians.
        candidates: poses of an image that a search hands on; fewer are kept for the next round.
        steps: Gauss-Newton steps at each band.
        assignment: "hard": the best pose; "soft": every candidate with its posterior probability,
            as ``draws`` poses of the likelihood around it.
        draws: see ``assignment``.
        seed: of the draws.
        scale: "one" for all images, or each "image" its own.
        tolerance: a candidate is dropped when its posterior is below e to the power of minus this,
            relative to the best of its image.
        growth: bound of the band's growth, from round to round (at least by a shell) and from one
            refinement to the next.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
    """

    start_resolution_angstrom: float = Field(gt=0)
    symmetry: str = "C1"
    shift_range_angstrom: float = Field(default=0.0, ge=0)
    rounds: int = Field(default=8, ge=1)
    searches: int = Field(default=2, ge=1)
    certain: float = Field(default=0.99, ge=0)
    search_radius: int = Field(default=10, ge=2)
    spacing: float = Field(default=1.0, gt=0)
    candidates: int = Field(default=8, ge=1)
    steps: int = Field(default=3, ge=1)
    assignment: Literal["hard", "soft"] = "soft"
    draws: int = Field(default=4, ge=1)
    seed: int = 0
    scale: Literal["one", "image"] = "one"
    tolerance: float = Field(default=10.0, gt=0)
    growth: float = Field(default=1.5, gt=1)
    diameter_angstrom: float | None = Field(default=None, gt=0)
