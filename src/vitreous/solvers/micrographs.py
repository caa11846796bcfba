"""Micrographs of a pose assignment: their defocus and contrast, half set by half set.

A micrograph's particles of one half are judged under the map of the other half; see
:mod:`vitreous.solvers.optics_refinement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.solvers.candidates import Assignment
from vitreous.solvers.optics_refinement import (
    MicrographOptics,
    OpticsTally,
    with_defocus_change,
)
from vitreous.solvers.pose_config import PoseConfig
from vitreous.solvers.pose_refinement import PoseRefiner


class Micrographs:
    """What is known of the micrographs of both half sets.

    Args:
        given: optics of each image, as they came.
        micrograph: long ``(b,)``, number of each image's.
        rows: of the images of either half.
        config: what is to be refined.
        device: where to compute.
    """

    def __init__(
        self,
        given: Optics,
        micrograph: Tensor,
        rows: Sequence[Tensor],
        config: PoseConfig,
        device: torch.device,
    ) -> None:
        self._given, self._micrograph = given, micrograph
        self._rows, self.config, self._device = rows, config, device
        self.found: list[MicrographOptics | None] = [None, None]

    def tally(self, refiner: PoseRefiner) -> OpticsTally:
        """Sums to be filled, under a refiner of the other half's map."""
        count = int(self._micrograph.max()) + 1
        return OpticsTally(refiner, count, self.config.defocus_range_angstrom)

    def add(self, tally: OpticsTally, rows: Tensor, images: Tensor, found: Assignment) -> None:
        """Images with their best poses, those left out that noise explains better."""
        used = found.gain[:, 0] > (0 if self.config.reject else -torch.inf)
        scale = found.scale[:, 0] if self.config.scale == "image" else torch.ones_like(used).float()
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
        own = self.config.scale == "micrograph"
        self.found[which] = tally.found(defocus=self.config.refine_defocus, scale=own)

    def scale(self) -> Tensor:
        """Contrast of each image's micrograph, ``(b,)``; 1 where it is not known."""
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

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on."""
        return {
            f"optics.{which}.{name}": value
            for which, found in enumerate(self.found)
            if found is not None
            for name, value in vars(found).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        for which in (0, 1):
            prefix = f"optics.{which}."
            fields = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.found[which] = MicrographOptics(**fields) if fields else None
