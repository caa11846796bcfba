"""Defocus and contrast of micrographs and particles during refinement, half set by half set.

They are estimated from a micrograph's particles of one half set under the map of the other; see
:mod:`vitreous.methods.em.ctf_refinement`. A single particle is a micrograph of its own, of which
only the contrast is estimated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import MicrographOptics, OpticsTally
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.pose_posterior import PoseCandidates
from vitreous.physics.ctf import with_defocus_change


class Micrographs:
    """Estimated defocus and contrast of the micrographs, or of single particles, by half set.

    Args:
        given: CTF parameters of each image, as they came.
        micrograph_id: long ``(b,)``, number of each image's micrograph; None: every image is a
            micrograph of its own.
        rows: of the images of either half set.
        config: what to refine; of single images the contrast alone.
        device: where to compute.

    Attributes:
        defocus: whether it is refined.
        contrast: whether it is refined.
        estimates: of each half set, None before the first.
    """

    def __init__(
        self,
        given: Optics,
        micrograph_id: Tensor | None,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._given, self._rows, self._device = given, rows, device
        self._single = micrograph_id is None
        every = torch.arange(len(given))
        self._micrograph_id = every if micrograph_id is None else micrograph_id
        self.defocus = config.refine_defocus and not self._single
        self.contrast = self._single or config.scale == "micrograph"
        self._scaled = config.scale == "image" and not self._single  # particles have their own
        self._reject, self._range = config.reject, config.defocus_range_angstrom
        self.estimates: list[MicrographOptics | None] = [None, None]

    def tally(self, refiner: PoseRefiner) -> OpticsTally:
        """Return empty sums, under a refiner of the other half's map."""
        count = int(self._micrograph_id.max()) + 1
        return OpticsTally(refiner, count, self._range if self.defocus else 0.0)

    def add(
        self, tally: OpticsTally, rows: Tensor, images: Tensor, candidates: PoseCandidates
    ) -> None:
        """Add images with their best poses to the sums, but those that noise explains better."""
        used = candidates.log_likelihood_ratio[:, 0] > (0 if self._reject else -torch.inf)
        scale = candidates.scale[:, 0] if self._scaled else torch.ones_like(used).float()
        tally.add(
            images[used],
            self._given[rows].to(self._device)[used],
            candidates.rotation[used, 0],
            candidates.shift_angstrom[used, 0],
            scale[used],
            self._micrograph_id[rows].to(self._device)[used],
        )

    def settle(self, half: int, tally: OpticsTally) -> None:
        """Estimate defocus and contrast of a half set from its sums."""
        self.estimates[half] = tally.estimates(defocus=self.defocus, scale=self.contrast)

    def scale(self) -> Tensor:
        """Return the contrast of each image or its micrograph, ``(b,)``; 1 where it is unknown."""
        return self._by_image("scale", 1.0)

    def optics(self) -> Optics:
        """Return the CTF parameters of each image with refined defocus."""
        return with_defocus_change(self._given, self._by_image("defocus_change_angstrom", 0.0))

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
    """Refinement of defocus and contrast beside poses; false where the settings ask for neither.

    Args:
        given: CTF parameters of each image, as they came; None for none.
        micrograph_id: long ``(b,)``, number of each image's micrograph, if it is known.
        total: number of images.
        rows, config, device: as of :class:`Micrographs`.

    Attributes:
        micrographs: None if nothing of them is refined.
        particles: None if nothing of them is refined.

    Raises:
        ValueError: no micrographs or optics where they are needed.
    """

    def __init__(
        self,
        given: Optics | None,
        micrograph_id: Tensor | None,
        total: int,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._given, self._total = given, total
        self.micrographs: Micrographs | None = None
        self.particles: Micrographs | None = None
        if config.refine_defocus or config.scale == "micrograph":
            if micrograph_id is None or given is None:
                raise ValueError(
                    "refine_defocus and scale='micrograph' need micrograph_id and optics"
                )
            self.micrographs = Micrographs(given, micrograph_id, rows, config, device)
        if config.scale == "image" and given is not None:
            self.particles = Micrographs(given, None, rows, config, device)

    def __iter__(self) -> Iterator[Micrographs]:
        return (one for one in (self.micrographs, self.particles) if one is not None)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def scale(self) -> Tensor:
        """Return the contrast of each image or its micrograph, ``(b,)``; 1 where not refined."""
        scale = torch.ones(self._total)
        for one in self:
            scale = scale * one.scale()
        return scale

    def optics(self) -> Optics | None:
        """Return the CTF parameters of each image with refined defocus."""
        return self._given if self.micrographs is None else self.micrographs.optics()
