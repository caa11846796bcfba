"""Search over many shifts in two stages: at few frequencies, then around the shifts found there."""

from __future__ import annotations

from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import ImageRecord

CENTRING_RADIUS = 6  # shells that are mostly enough to centre a particle
NEAR_STEPS = 1.0  # steps of the shift grid that are searched around known shifts
_RIVAL = 10.0  # candidates whose log likelihood ratio is lower by less may still be the best


class ShiftCandidates(ImageRecord):
    """Base of candidates of each image, best first, with their shifts and likelihoods."""

    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor


Candidates = TypeVar("Candidates", bound=ShiftCandidates)
Candidates_co = TypeVar("Candidates_co", bound=ShiftCandidates, covariant=True)


class PoseSearch(Protocol[Candidates_co]):
    """Interface of :class:`~vitreous.methods.em.polar_search.PolarSearch` and what uses one."""

    band: FrequencyBand

    def with_shifts(self, range_angstrom: float) -> Self:
        """Return the same search with another range of shifts."""
        ...

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        *,
        centre: Tensor | None = None,
        draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> Candidates_co:
        """Return the candidates of images cropped to the band."""
        ...


class TwoStageSearch(Generic[Candidates]):
    """Search at few frequencies, then around its shifts for images where these are clear.

    Args:
        coarse: over all shifts.
        fine: over all shifts; used for images whose shifts are not clear.
    """

    def __init__(self, coarse: PoseSearch[Candidates], fine: PoseSearch[Candidates]) -> None:
        self._coarse, self._fine = coarse, fine
        self._near = fine.with_shifts(NEAR_STEPS * fine.band.shift_step_angstrom)

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        **settings: Any,
    ) -> Candidates:
        """Return the candidates of images of the full box, as the fine search does."""
        first = self._coarse(self._coarse.band.images(images), optics, scale)
        shift = first.shift_angstrom
        away = (shift - shift[:, :1]).norm(dim=-1) > self._coarse.band.shift_step_angstrom
        ratio = first.log_likelihood_ratio
        clear = ~(away & (ratio > ratio[:, :1] - _RIVAL)).any(1)
        cropped = self._fine.band.images(images)
        parts, part_rows = [], []
        for search, chosen in ((self._near, clear), (self._fine, ~clear)):
            rows = chosen.nonzero().flatten()
            if len(rows) == 0:
                continue
            part = search(
                cropped[rows],
                None if optics is None else optics[rows],
                None if scale is None else scale[rows],
                centre=shift[rows, 0] if search is self._near else None,
                **settings,
            )
            parts.append(part)
            part_rows.append(rows)
        return type(parts[0]).cat(parts)[torch.cat(part_rows).argsort()]
