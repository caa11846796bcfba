"""Search over many shifts in two stages: at few frequencies, then around the best shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import PoseRecord

_CENTRING_RADIUS = 6  # shells that are mostly enough to centre a particle
NEAR_STEPS = 1.0  # steps of the shift grid that are searched around known shifts
_RIVAL = 10.0  # candidates whose log likelihood ratio is lower by less may still be the best


Candidates = TypeVar("Candidates", bound=PoseRecord)
Candidates_co = TypeVar("Candidates_co", bound=PoseRecord, covariant=True)


class PoseSearch(Protocol[Candidates_co]):
    """Interface of :class:`~vitreous.methods.em.polar_search.PolarSearch` and what uses one."""

    band: FrequencyBand

    def with_shifts(self, range_angstrom: float) -> Self:
        """Return the same search with another range of shifts."""
        ...

    def __call__(self, *images: Any, **settings: Any) -> Candidates_co:
        """Return the candidates of images cropped to the band; see :class:`PolarSearch`."""
        ...


class TwoStageSearch(Generic[Candidates]):
    """Search of a band. If many shifts are possible, images are first compared at few frequencies.

    Where these make an image's shift clear, the whole band is searched around it only.

    Args:
        make: returns the search of a band over shifts up to a range in Å.
        band: the frequencies to compare.
        range_angstrom: largest shift, Å.
    """

    def __init__(
        self,
        make: Callable[[FrequencyBand, float], PoseSearch[Candidates]],
        band: FrequencyBand,
        range_angstrom: float,
    ) -> None:
        self.band, near = band, NEAR_STEPS * band.shift_step_angstrom
        self._fine = make(band, range_angstrom)
        self._coarse: PoseSearch[Candidates] | None = None
        if range_angstrom > near and band.radius > _CENTRING_RADIUS:
            self._coarse = make(replace(band, radius=_CENTRING_RADIUS), range_angstrom)
            self._near = self._fine.with_shifts(near)

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        *,
        centre: Tensor | None = None,
        **settings: Any,
    ) -> Candidates:
        """Return the candidates of images of the full box; see :meth:`PolarSearch.__call__`."""
        cropped = self.band.images(images)
        if self._coarse is None or centre is not None:
            return self._fine(cropped, optics, scale, centre=centre, **settings)
        first = self._coarse(self._coarse.band.images(images), optics, scale)
        shift = first.shift_angstrom
        away = (shift - shift[:, :1]).norm(dim=-1) > self._coarse.band.shift_step_angstrom
        ratio = first.log_likelihood_ratio
        clear = ~(away & (ratio > ratio[:, :1] - _RIVAL)).any(1)
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
