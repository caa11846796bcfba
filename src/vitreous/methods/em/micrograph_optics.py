"""Micrographs of a pose assignment: their defocus and contrast, half set by half set.

A micrograph's particles of one half are judged under the map of the other half; see
:mod:`vitreous.methods.em.ctf_refinement`. A single particle is judged in the same way as a
micrograph of its own, of which only the contrast is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import MicrographOptics, OpticsTally, with_defocus_change
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.pose_posterior import PoseCandidates


class Micrographs:
    """What is known of the micrographs, or of single particles, of both half sets.

    Args:
        given: optics of each image, as they came.
        micrograph: long ``(b,)``, number of each image's; None: every image is one of its own.
        rows: of the images of either half.
        config: what is to be refined; of single images the contrast alone.
        device: where to compute.

    Attributes:
        defocus: whether it is looked for.
        contrast: likewise.
    """

    def __init__(
        self,
        given: Optics,
        micrograph: Tensor | None,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._given, self._rows, self._device = given, rows, device
        self._single = micrograph is None
        self._micrograph = torch.arange(len(given)) if micrograph is None else micrograph
        self.defocus = config.refine_defocus and not self._single
        self.contrast = self._single or config.scale == "micrograph"
        self._scaled = config.scale == "image" and not self._single  # particles have their own
        self._reject, self._range = config.reject, config.defocus_range_angstrom
        self.found: list[MicrographOptics | None] = [None, None]

    def tally(self, refiner: PoseRefiner) -> OpticsTally:
        """Sums to be filled, under a refiner of the other half's map."""
        count = int(self._micrograph.max()) + 1
        return OpticsTally(refiner, count, self._range if self.defocus else 0.0)

    def add(self, tally: OpticsTally, rows: Tensor, images: Tensor, found: PoseCandidates) -> None:
        """Images with their best poses, those left out that noise explains better."""
        used = found.log_likelihood_ratio[:, 0] > (0 if self._reject else -torch.inf)
        scale = found.scale[:, 0] if self._scaled else torch.ones_like(used).float()
        tally.add(
            images[used],
            self._given[rows].to(self._device)[used],
            found.rotation[used, 0],
            found.shift_angstrom[used, 0],
            scale[used],
            self._micrograph[rows].to(self._device)[used],
        )

    def settle(self, which: int, tally: OpticsTally) -> None:
        """Take what the sums of a half say."""
        self.found[which] = tally.found(defocus=self.defocus, scale=self.contrast)

    def scale(self) -> Tensor:
        """Contrast of each image or its micrograph, ``(b,)``; 1 where it is not known."""
        return self._by_image("scale", 1.0)

    def optics(self) -> Optics:
        """Of each image, as they came, with the defocus that was found."""
        return with_defocus_change(self._given, self._by_image("defocus_change_angstrom", 0.0))

    def _by_image(self, name: str, default: float) -> Tensor:
        values = torch.full((len(self._micrograph),), default)
        for rows, found in zip(self._rows, self.found, strict=True):
            if found is not None:
                values[rows] = getattr(found, name).float().cpu()[self._micrograph[rows].cpu()]
        return values

    @property
    def _prefix(self) -> str:
        return "contrast" if self._single else "optics"

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on."""
        return {
            f"{self._prefix}.{which}.{name}": value
            for which, found in enumerate(self.found)
            if found is not None
            for name, value in vars(found).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        for which in (0, 1):
            prefix = f"{self._prefix}.{which}."
            fields = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.found[which] = MicrographOptics(**fields) if fields else None


class OpticsRefinement:
    """What a task refines of micrographs and of single particles besides poses; maybe nothing.

    Args:
        given: optics of each image, as they came; None for none.
        micrograph: long ``(b,)``, number of each image's, if it is known.
        total: images.
        rows: of the images of either half.
        config: what is to be refined.
        device: where to compute.

    Attributes:
        micrographs: None if nothing of them is refined.
        single: likewise of particles.

    Raises:
        ValueError: no micrographs or optics where they are needed.
    """

    def __init__(
        self,
        given: Optics | None,
        micrograph: Tensor | None,
        total: int,
        rows: Sequence[Tensor],
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._given, self._total = given, total
        self.micrographs: Micrographs | None = None
        self.single: Micrographs | None = None
        if config.refine_defocus or config.scale == "micrograph":
            if micrograph is None or given is None:
                raise ValueError("refine_defocus and scale='micrograph' need micrograph and optics")
            self.micrographs = Micrographs(given, micrograph, rows, config, device)
        if config.scale == "image" and given is not None:
            self.single = Micrographs(given, None, rows, config, device)

    def __iter__(self) -> Iterator[Micrographs]:
        return (one for one in (self.micrographs, self.single) if one is not None)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def scale(self) -> Tensor:
        """Contrast of each image or its micrograph, ``(b,)``; 1 where it is not refined."""
        scale = torch.ones(self._total)
        for one in self:
            scale = scale * one.scale()
        return scale

    def optics(self) -> Optics | None:
        """Of each image, with the defocus that was found."""
        return self._given if self.micrographs is None else self.micrographs.optics()

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on."""
        return {name: value for one in self for name, value in one.state().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        for one in self:
            one.restore(tensors)
