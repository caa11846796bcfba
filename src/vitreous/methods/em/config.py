"""Settings of pose assignment."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from vitreous.optim.admm_config import STRICT


@validated(frozen=True, config=STRICT)
class Batches:
    """Rounds that use a part of the images each.

    Their maps change more from round to round than those of all images, which would take many
    times the work to leave a wrong one.

    Args:
        parts: that the images are dealt into at random, and anew when all were used.
        rounds: how many rounds, from the first on, use one part; later ones use all images.
        radius: highest shell of these rounds' bands, in cycles per box.
    """

    parts: int = Field(default=4, ge=1)
    rounds: int = Field(default=30, ge=1)
    radius: int = Field(default=7, ge=2)


@validated(frozen=True, config=STRICT)
class RefinementConfig:
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
        steps: most Gauss-Newton steps at each band.
        assignment: "hard": the best pose; "soft": ``draws`` poses drawn from the likelihood.
        draws: see ``assignment``.
        seed: of the draws.
        scale: "one" for all images, or each "micrograph" or "image" its own, by which images are
            weighted.
        refine_defocus: whether the defocus of every micrograph is refined, from the round after
            the searches on.
        defocus_range_angstrom: farthest change of it.
        tolerance: a candidate is dropped when its posterior is below e to the power of minus this,
            relative to the best of its image.
        growth: bound of the band's growth, from round to round (at least by a shell) and from one
            refinement to the next.
        reject: whether images that are explained better by noise alone than by the particle are
            left out of the maps, from the round after the searches on.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
        one_map: whether both half sets are assigned under the one map of all images. Nothing of
            them is independent then and their FSC is too high: for starts alone, which come much
            further with twice the images behind their map.
        batches: rounds that use a part of the images each; none by default.
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
    seed: int = Field(default=0, ge=0)
    scale: Literal["one", "micrograph", "image"] = "one"
    refine_defocus: bool = False
    defocus_range_angstrom: float = Field(default=500.0, gt=0)
    tolerance: float = Field(default=10.0, gt=0)
    growth: float = Field(default=1.5, gt=1)
    reject: bool = False
    diameter_angstrom: float | None = Field(default=None, gt=0)
    one_map: bool = False
    batches: Batches | None = None

    def radii(self, radius: int, *, search: bool) -> list[int]:
        """Highest shells of the bands of a round that ends at ``radius``, growing."""
        first = min(radius, self.search_radius) if search else radius
        radii = [radius]
        while radii[0] > first:
            radii.insert(0, max(first, math.floor(radii[0] / self.growth)))
        return radii


@validated(frozen=True, config=STRICT)
class RandomStartConfig:
    """How a map is found without a start; see :mod:`vitreous.methods.em.random_start`.

    Args:
        symmetry: point group of the map, in RELION's axes.
        shift_range_angstrom: farthest shift of a particle.
        images: how many are used, at random.
        starts: runs from different blobs.
        batches: rounds of each, after which comes one of all images, and the best goes on.
        rounds: of all images, the best run's.
        start_radius: highest shell of the first round's band, in cycles per box.
        search_radius: highest shell that a search compares.
        box_radius: highest shell that images are kept to.
        growth: bound of the band's growth from round to round (at least by a shell).
        seed: of the images, the blobs and the draws.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
        one_map: whether all images share a map, or each half of them has one.
    """

    symmetry: str = "C1"
    shift_range_angstrom: float = Field(default=0.0, ge=0)
    images: int = Field(default=1000, ge=4)
    starts: int = Field(default=2, ge=1)
    batches: Batches = Batches()
    rounds: int = Field(default=8, ge=1)
    start_radius: int = Field(default=3, ge=2)
    search_radius: int = Field(default=10, ge=2)
    box_radius: int = Field(default=21, ge=8)
    growth: float = Field(default=1.2, gt=1)
    seed: int = Field(default=0, ge=0)
    diameter_angstrom: float | None = Field(default=None, gt=0)
    one_map: bool = True


SHIFT_SHARE = 0.08  # of the box: how far particles are looked for, by default
