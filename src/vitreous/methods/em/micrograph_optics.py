"""Refinement of optics beside poses: defocus, contrast and aberrations.

Defocus and contrast are estimated from a micrograph's particles of one half set under the map of
the other; see :mod:`vitreous.methods.em.ctf_refinement`. A single particle is a micrograph of its
own. Aberrations are estimated for optics groups, from both half sets together, each under the map
of the other; see :mod:`vitreous.methods.em.aberration_refinement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.images import ImageSource
from vitreous.core.params import Optics
from vitreous.methods.em.aberration_refinement import Aberrations, PhaseCorrectedImages
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import MicrographOptics, OpticsTally, image_terms
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.pose_posterior import PoseCandidates
from vitreous.physics.ctf import with_defocus_change


@dataclass(frozen=True)
class ImageGroups:
    """Groups of images that share optics.

    Args:
        micrograph_id: long ``(b,)``, number of each image's micrograph from 0 on; None: unknown.
        optics_group: long ``(b,)``, likewise of its optics group; None: all images are one group.

    >>> ImageGroups(micrograph_id=torch.tensor([0, 0, 1])).optics_group is None
    True
    """

    micrograph_id: Tensor | None = None
    optics_group: Tensor | None = None


class Micrographs:
    """Estimated defocus and contrast of the micrographs, or of single particles, by half set.

    Args:
        micrograph_id: long ``(b,)``, number of each image's micrograph; None: every image is a
            micrograph of its own.
        total: number of images.
        rows: of the images of either half set.
        config: what to refine.
        device: where to compute.

    Attributes:
        single: whether every image is a micrograph of its own.
        defocus: whether it is refined.
        contrast: whether it is refined.
        estimates: of each half set, None before the first.
    """

    def __init__(
        self,
        micrograph_id: Tensor | None,
        total: int,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._rows, self._device = rows, device
        single = self.single = micrograph_id is None
        if micrograph_id is None:
            micrograph_id = torch.zeros(total, dtype=torch.long)
            for one in rows:
                micrograph_id[one] = torch.arange(len(one))
        self._micrograph_id = micrograph_id
        self.defocus = config.refine_defocus == "particle" or (
            config.refine_defocus == "micrograph" and not single
        )
        self.contrast = config.scale == ("image" if single else "micrograph")
        self._scaled = config.scale == "image" and not single  # particles have their own
        self._range = config.defocus_range_angstrom
        self.estimates: list[MicrographOptics | None] = [None, None]

    def tally(self, refiner: PoseRefiner) -> OpticsTally:
        """Return empty sums, under a refiner of the other half's map."""
        count = int(self._micrograph_id.max()) + 1
        return OpticsTally(refiner, count, self._range if self.defocus else 0.0)

    def particle_scale(self, candidates: PoseCandidates) -> Tensor:
        """Return the scale of each particle relative to its micrograph's, ``(b,)``."""
        scale = candidates.scale[:, 0]
        return scale if self._scaled else torch.ones_like(scale)

    def members(self, rows: Tensor) -> Tensor:
        """Return the micrographs of the images ``rows``."""
        return self._micrograph_id[rows].to(self._device)

    def settle(self, half: int, tally: OpticsTally, around: Micrographs | None = None) -> None:
        """Estimate defocus and contrast of a half set from its sums.

        Args:
            half: 0 or 1.
            tally: sums of its images.
            around: micrographs of single particles, around whose defocus theirs spreads.
        """
        expected = None
        if around is not None:
            rows = self._rows[half]
            expected = around.defocus_change()[rows]  # single particles are numbered like rows
        self.estimates[half] = tally.estimates(
            defocus=self.defocus, scale=self.contrast, expected_angstrom=expected
        )

    def scale(self) -> Tensor:
        """Return the contrast of each image or its micrograph, ``(b,)``; 1 where it is unknown."""
        return self._by_image("scale", 1.0)

    def defocus_change(self) -> Tensor:
        """Return the change of each image's defocus, ``(b,)`` in Å; 0 where it is unknown."""
        return self._by_image("defocus_change_angstrom", 0.0)

    def _by_image(self, name: str, default: float) -> Tensor:
        values = torch.full((len(self._micrograph_id),), default)
        for rows, estimate in zip(self._rows, self.estimates, strict=True):
            if estimate is not None:
                by_micrograph = getattr(estimate, name).float().cpu()
                values[rows] = by_micrograph[self._micrograph_id[rows].cpu()]
        return values

    def state_dict(self) -> list[dict[str, Tensor] | None]:
        """Return the estimates of both halves."""
        return [None if one is None else dict(vars(one)) for one in self.estimates]

    def load_state_dict(self, state: list[dict[str, Tensor] | None]) -> None:
        """Continue from the estimates of an earlier run."""
        self.estimates = [
            None if one is None else MicrographOptics(**one).to(self._device) for one in state
        ]


class OpticsRefinement:
    """Refinement of optics beside poses; false where the settings ask for none.

    Args:
        given: CTF parameters of each image, as they came; None for none.
        groups: micrograph and optics group of each image.
        total: number of images.
        rows, config, device: as of :class:`Micrographs`.

    Attributes:
        micrographs: None if nothing of them is refined.
        particles: None if nothing of them is refined.
        aberrations: None if they are not refined.

    Raises:
        ValueError: no micrographs or optics where they are needed.
    """

    def __init__(
        self,
        given: Optics | None,
        groups: ImageGroups,
        total: int,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._given, self._total, self._device = given, total, device
        self._reject, defocus = config.reject, config.refine_defocus != "no"
        self.micrographs: Micrographs | None = None
        self.particles: Micrographs | None = None
        self.aberrations: Aberrations | None = None
        if defocus or config.scale == "micrograph":
            if groups.micrograph_id is None or given is None:
                raise ValueError(
                    "refine_defocus and scale='micrograph' need micrograph_id and optics"
                )
            self.micrographs = Micrographs(groups.micrograph_id, total, rows, config, device)
        if config.refine_defocus == "particle" or (config.scale == "image" and given is not None):
            self.particles = Micrographs(None, total, rows, config, device)
        if config.refine_aberrations:
            if given is None:
                raise ValueError("refine_aberrations needs optics")
            group = groups.optics_group
            group = torch.zeros(total, dtype=torch.long) if group is None else group
            self.aberrations = Aberrations(group, defocus=defocus)

    def __iter__(self) -> Iterator[Micrographs]:
        return (one for one in (self.micrographs, self.particles) if one is not None)

    def __bool__(self) -> bool:
        return self.aberrations is not None or any(True for _ in self)

    def images(self, images: ImageSource, pixel_size_angstrom: float) -> ImageSource:
        """Return the images with the odd phases undone, as estimated when they are read."""
        if self.aberrations is None:
            return images
        return PhaseCorrectedImages(images, self.aberrations, pixel_size_angstrom)

    def scale(self) -> Tensor:
        """Return the contrast of each image or its micrograph, ``(b,)``; 1 where not refined."""
        scale = torch.ones(self._total)
        for one in self:
            scale = scale * one.scale()
        return scale

    def defocus_change(self) -> Tensor | None:
        """Return the change of each image's defocus, ``(b,)`` in Å; None where not refined."""
        refined = [one for one in self if one.defocus]
        return refined[-1].defocus_change() if refined else None

    def optics_of_group(self) -> Optics | None:
        """Return the CTF parameters of each image with the even phases of its group alone."""
        if self._given is None or self.aberrations is None:
            return self._given
        return self.aberrations.optics(self._given)

    def optics(self) -> Optics | None:
        """Return the CTF parameters of each image with refined defocus and even phases."""
        optics, change = self.optics_of_group(), self.defocus_change()
        return optics if optics is None or change is None else with_defocus_change(optics, change)

    def sums(self, refiner: PoseRefiner) -> OpticsSums:
        """Return empty sums of a half set, under a refiner of the other half's map."""
        return OpticsSums(self, refiner)

    def used(self, candidates: PoseCandidates) -> Tensor:
        """Return which images the estimates are made from: not those that noise explains better."""
        return candidates.log_likelihood_ratio[:, 0] > (0 if self._reject else -torch.inf)

    def state_dict(self) -> list[Any]:
        """Return the estimates."""
        return [one.state_dict() for one in (*self, self.aberrations) if one is not None]

    def load_state_dict(self, state: list[Any]) -> None:
        """Continue from the estimates of an earlier run."""
        refined = [one for one in (*self, self.aberrations) if one is not None]
        for one, saved in zip(refined, state, strict=True):
            one.load_state_dict(saved)


class OpticsSums:
    """Sums over the images of a half set, for all optics that are refined.

    Args:
        refinement: what is refined; its present estimates are those of the images.
        refiner: of the other half's map.
    """

    def __init__(self, refinement: OpticsRefinement, refiner: PoseRefiner) -> None:
        self._refinement, self._refiner = refinement, refiner
        self._tallies = [(one, one.tally(refiner)) for one in refinement]
        self._optics, self._change = refinement.optics_of_group(), refinement.defocus_change()
        aberrations = refinement.aberrations
        self._aberrations = None if aberrations is None else aberrations.tally(refiner)
        self._squared = refiner.frequency_squared().double() / refiner.band.edge_angstrom**2

    def add(self, rows: Tensor, images: Tensor, candidates: PoseCandidates) -> None:
        """Add images with their best poses to the sums, but those that noise explains better."""
        assert self._optics is not None
        device, used = images.device, self._refinement.used(candidates)
        rows, best = rows[used.cpu()], candidates[used]
        optics = self._optics[rows].to(device)
        poses = best.rotation[:, 0], best.shift_angstrom[:, 0]
        for batch, terms in image_terms(self._refiner, images[used], optics, *poses):
            here, of = rows[batch.cpu()], best[batch]
            for one, tally in self._tallies:
                scaled = terms.slices * one.particle_scale(of)[:, None]
                tally.add(replace(terms, slices=scaled), one.members(here))
            if self._aberrations is not None:
                assert self._refinement.aberrations is not None
                present = replace(terms, slices=terms.slices * of.scale[:, :1])
                if self._change is not None:
                    change = self._change[here].to(device)
                    present = present.with_defocus_change(change, self._squared)
                group = self._refinement.aberrations.group_of[here].to(device)
                self._aberrations.add(present, group)

    def settle(self, half: int) -> None:
        """Estimate defocus and contrast of the half set; aberrations wait for the other half."""
        for one, tally in self._tallies:
            around = self._refinement.micrographs if one is self._refinement.particles else None
            around = around if one.defocus else None
            one.settle(half, tally, around)
