"""Settings of refinement, of random starts and of the search for an initial model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from vitreous.core.symmetry import point_group
from vitreous.optim.admm_config import STRICT

# of starts at finer shells: shells of the diameter, runs, their rounds, degrees reversed
_FINER_SHELLS, _FINER_STARTS, _FINER_ROUNDS, _FINER_DEGREES = 10, 3, 6, 2
_FINER_BLOBS, _FINER_REACH = 96, 0.42  # number of blobs with their mates
SHIFT_SHARE = 0.08  # of the box: largest shift by default


@validated(frozen=True, config=STRICT)
class Batches:
    """Rounds that use a part of the images each.

    Their maps change more from round to round than maps of all images, which would take many times
    the work to leave a wrong map.

    Args:
        parts: number of random parts of the images, divided anew when all were used.
        rounds: number of rounds, from the first on, that use one part; later ones use all images.
        radius: highest shell of these rounds' bands, in cycles per box.
    """

    parts: int = Field(default=4, ge=1)
    rounds: int = Field(default=30, ge=1)
    radius: int = Field(default=7, ge=2)


@validated(frozen=True, config=STRICT)
class RefinementConfig:
    """Settings of :class:`~vitreous.methods.em.refinement.Refinement`; see ``docs/refine.md``.

    Args:
        start_resolution_angstrom: end of the first round's band: the resolution to which the start
            is good. None: that of the initial model.
        symmetry: point group of the map, about RELION's axes.
        shift_range_angstrom: largest shift of a particle; None: 8 % of the box.
        rounds: most rounds.
        searches: number of rounds, from the first on, that search all poses; after the first
            round only for images that are not certain. The others refine the candidates kept.
        certain: posterior of its best pose from which on an image is not searched again.
        search_radius: highest shell that a search compares, in cycles per box.
        spacing: between the views of a search, in units of one over its highest shell, radians.
        candidates: poses of an image that a search hands on; fewer are kept for the next round.
        steps: most Gauss-Newton steps at each band.
        assignment: "hard": the best pose; "soft": ``draws`` poses sampled from the likelihood.
        draws: number of samples.
        seed: of the samples.
        scale: contrast "one" for all images, or one for each "micrograph" or "image", by which
            images are weighted.
        refine_defocus: refine the mean defocus of every "micrograph", or of every "particle", those
            of a micrograph being similar, from the round after the searches.
        defocus_range_angstrom: largest change of defocus.
        refine_aberrations: refine odd (beam tilt, trefoil) and even phases to the fourth order of
            every optics group, from the same round on.
        tolerance: a candidate is dropped when its posterior is below e to the power of minus this,
            relative to the best of its image.
        growth: bound of the band's growth, from round to round (at least by a shell) and from one
            refinement to the next.
        reject: leave images out of the maps that noise alone explains better than the particle,
            from the round after the searches.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
        prior: of the maps that poses are found under and of the last map: "wiener", by the FSC
            between the half maps, or "tv", total variation in rounds where it fits better
            (:mod:`vitreous.methods.em.regularised_maps`).
        one_map: find the poses of both half sets under one map of all images. Nothing of the half
            maps is independent then, and their FSC is too high: for starts alone, which come much
            further with twice the images behind their map.
        batches: rounds that use a part of the images each; none by default.

    >>> RefinementConfig(symmetry="D2", start_resolution_angstrom=30.0).rounds
    20
    """

    start_resolution_angstrom: float | None = Field(default=None, gt=0)
    symmetry: str = "C1"
    shift_range_angstrom: float | None = Field(default=None, ge=0)
    rounds: int = Field(default=20, ge=1)
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
    refine_defocus: Literal["no", "micrograph", "particle"] = "no"
    defocus_range_angstrom: float = Field(default=500.0, gt=0)
    refine_aberrations: bool = False
    tolerance: float = Field(default=10.0, gt=0)
    growth: float = Field(default=1.5, gt=1)
    reject: bool = False
    diameter_angstrom: float | None = Field(default=None, gt=0)
    prior: Literal["wiener", "tv"] = "wiener"
    one_map: bool = False
    batches: Batches | None = None

    def shift_range(self, edge_angstrom: float) -> float:
        """Return the largest shift in Å of a particle in a box of this edge.

        >>> RefinementConfig().shift_range(100.0)
        8.0
        """
        given = self.shift_range_angstrom
        return SHIFT_SHARE * edge_angstrom if given is None else given

    def start_radius(self, edge_angstrom: float, last_shell: int) -> int:
        """Return the highest shell of the first round, for a box of this edge in Å.

        Raises:
            ValueError: no start resolution, or one that leaves nothing to compare.
        """
        resolution, most = self.start_resolution_angstrom, edge_angstrom / 2
        if resolution is None:
            raise ValueError(
                f"start_resolution_angstrom: say to which resolution, at most {most:.0f} Å, the "
                "start is good"
            )
        radius = min(last_shell, round(edge_angstrom / resolution))
        if radius < 2:
            raise ValueError(
                f"start_resolution_angstrom {resolution} leaves no shells of a box of "
                f"{edge_angstrom:.0f} Å; it must be at most {most:.0f}"
            )
        return radius

    def radii(self, radius: int, *, search: bool) -> list[int]:
        """Return the highest shells of the bands of a round that ends at ``radius``, growing."""
        first = min(radius, self.search_radius) if search else radius
        radii = [radius]
        while radii[0] > first:
            radii.insert(0, max(first, math.floor(radii[0] / self.growth)))
        return radii


@validated(frozen=True, config=STRICT)
class RandomStartConfig:
    """Settings of :class:`~vitreous.methods.em.random_start.RandomStart`.

    Args:
        shift_range_angstrom: largest shift of a particle; None: 8 % of the box.
        images: number of images used, chosen at random.
        starts: number of runs from different blobs.
        batches: rounds of each run, after which comes one of all images, and the best goes on.
        rounds: of all images, for the best run.
        box_radius: highest shell to which images are cropped.
        start_radius: highest shell of the first round's band, in cycles per box.
        blobs: number of Gaussian blobs that a run begins with, each with its symmetry mates.
        reach: largest distance of a blob from the centre, a share of the diameter.
        degrees: number of angular degrees, the strongest first, whose sign is tried: the best map
            and the same with the degree reversed begin a run each.
        seed: of the images, the blobs and the samples.
        one_map: use one map for all images, instead of one for each half of them.
        symmetry, search_radius, growth, diameter_angstrom: as of :class:`RefinementConfig`.
    """

    symmetry: str = "C1"
    shift_range_angstrom: float | None = Field(default=0.0, ge=0)
    images: int = Field(default=1000, ge=4)
    starts: int = Field(default=2, ge=1)
    batches: Batches = Batches()
    rounds: int = Field(default=8, ge=1)
    start_radius: int = Field(default=3, ge=2)
    blobs: int = Field(default=40, ge=1)
    reach: float = Field(default=0.3, gt=0, le=0.5)
    degrees: int = Field(default=0, ge=0, le=6)
    search_radius: int = Field(default=10, ge=2)
    box_radius: int = Field(default=21, ge=8)
    growth: float = Field(default=1.2, gt=1)
    seed: int = Field(default=0, ge=0)
    diameter_angstrom: float | None = Field(default=None, gt=0)
    one_map: bool = True


@validated(frozen=True, config=STRICT)
class InitialModelConfig(RandomStartConfig):
    """Settings of the search for an initial model of each half set, and of its random starts.

    Args:
        images: number of each half set in the first try; every further try takes twice as many.
        tries: most tries until both half sets come to the same map.
        shift_range_angstrom: largest shift of a particle; None: 8 % of the box.

    >>> InitialModelConfig(symmetry="D2", seed=1).tries
    3
    """

    tries: int = Field(default=3, ge=1)
    shift_range_angstrom: float | None = Field(default=None, ge=0)

    def at_finer_shells(self, edge_angstrom: float, last_shell: int) -> InitialModelConfig:
        """Return settings of starts that begin at ten shells of the particle's diameter.

        See ``docs/refine.md``, "Starts at finer shells".

        Args:
            edge_angstrom: of the box.
            last_shell: highest of the images.

        >>> octahedral = InitialModelConfig(symmetry="O", diameter_angstrom=150.0)
        >>> finer = octahedral.at_finer_shells(240.0, 39)
        >>> finer.start_radius, finer.blobs
        (16, 4)
        """
        shells = _FINER_SHELLS * edge_angstrom / (self.diameter_angstrom or edge_angstrom)
        radius = min(round(shells), last_shell)
        return replace(
            self,
            starts=max(self.starts, _FINER_STARTS),
            batches=Batches(self.batches.parts, _FINER_ROUNDS, radius),
            start_radius=radius,
            search_radius=round(self.growth * radius),
            box_radius=math.ceil(self.growth**2 * radius),
            blobs=math.ceil(_FINER_BLOBS / point_group(self.symmetry).order),
            reach=_FINER_REACH,
            degrees=_FINER_DEGREES,
        )
