"""A search over many shifts in two: at few frequencies, then around the shifts found there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand

CENTRING_RADIUS = 6  # shells that mostly tell where a particle is, before all else is searched for
AROUND = 1.0  # steps of the shifts' grid, where they are searched around known ones
_RIVAL = 10.0  # less gain than the best: places that may still be the better ones


class Located(Protocol):
    """What a search finds of every image."""

    @property
    def shift_angstrom(self) -> Tensor:
        """``(b, c, 2)``, best first."""
        ...

    @property
    def log_likelihood_ratio(self) -> Tensor:
        """``(b, c)``."""
        ...

    def __getitem__(self, index: Tensor) -> Self: ...

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Those of several batches."""
        ...


Found = TypeVar("Found", bound=Located)
Found_co = TypeVar("Found_co", bound=Located, covariant=True)


class PoseSearch(Protocol[Found_co]):
    """A :class:`~vitreous.methods.em.polar_search.PolarSearch`, or what is built on one."""

    @property
    def band(self) -> FrequencyBand:
        """The frequencies that it compares."""
        ...

    def with_shifts(self, range_angstrom: float) -> Self:
        """The same with another range of shifts."""
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
    ) -> Found_co:
        """What it finds of images cropped to its band."""
        ...


class TwoStageSearch(Generic[Found]):
    """A search at few frequencies, then one around the shifts that it found, where these are clear.

    Args:
        coarse: over all shifts.
        fine: over all shifts; what is asked of images whose shifts are not clear.
    """

    def __init__(self, coarse: PoseSearch[Found], fine: PoseSearch[Found]) -> None:
        self._coarse, self._fine = coarse, fine
        self._near = fine.with_shifts(AROUND * fine.band.shift_step_angstrom)

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        *,
        draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> Found:
        """What the fine search finds of images of the full box; as that does."""
        first = self._coarse(self._coarse.band.images(images), optics, scale)
        shift = first.shift_angstrom
        away = (shift - shift[:, :1]).norm(dim=-1) > self._coarse.band.shift_step_angstrom
        clear = ~(
            away & (first.log_likelihood_ratio > first.log_likelihood_ratio[:, :1] - _RIVAL)
        ).any(1)
        cropped = self._fine.band.images(images)
        parts, places = [], []
        for search, which in ((self._near, clear), (self._fine, ~clear)):
            rows = which.nonzero().flatten()
            if len(rows) == 0:
                continue
            found = search(
                cropped[rows],
                None if optics is None else optics[rows],
                None if scale is None else scale[rows],
                centre=shift[rows, 0] if search is self._near else None,
                draws=draws,
                generator=generator,
            )
            parts.append(found)
            places.append(rows)
        return type(parts[0]).cat(parts)[torch.cat(places).argsort()]
