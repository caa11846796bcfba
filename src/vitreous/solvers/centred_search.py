"""A search over many shifts in two: at few frequencies, then around the shifts found there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.solvers.band import Band

CENTRING_RADIUS = 6  # shells that mostly tell where a particle is, before all else is searched for
AROUND = 1.0  # steps of the shifts' grid, where they are searched around known ones
_RIVAL = 10.0  # less gain than the best: places that may still be the better ones
_APART = 0.75  # coarse steps from a middle: rivals that are looked at together


class Located(Protocol):
    """What a search finds of every image."""

    @property
    def shift_angstrom(self) -> Tensor:
        """``(b, c, 2)``, best first."""
        ...

    @property
    def gain(self) -> Tensor:
        """``(b, c)``."""
        ...

    def __getitem__(self, index: Tensor) -> Self: ...

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Those of several batches."""
        ...


Found = TypeVar("Found", bound=Located)
Found_co = TypeVar("Found_co", bound=Located, covariant=True)


class Search(Protocol[Found_co]):
    """A :class:`~vitreous.solvers.circle_search.CircleSearch`, or what is built on one."""

    @property
    def band(self) -> Band:
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


class CentredSearch(Generic[Found]):
    """A search at few frequencies, then one around the shifts that it found, as far as they differ.

    Args:
        coarse: over all shifts.
        fine: over all shifts; what is asked of images that may be anywhere.
    """

    def __init__(self, coarse: Search[Found], fine: Search[Found]) -> None:
        self._coarse, self._fine = coarse, fine
        near = AROUND * fine.band.shift_step_angstrom
        self._step = coarse.band.shift_step_angstrom
        self._near = fine.with_shifts(near)
        self._wider = fine.with_shifts(near + _APART * self._step)

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
        best, middle, clear, close = self._spread(first)
        cropped = self._fine.band.images(images)
        parts, places = [], []
        for search, which, centre in (
            (self._near, clear, best),
            (self._wider, close & ~clear, middle),
            (self._fine, ~close & ~clear, None),
        ):
            rows = which.nonzero().flatten()
            if len(rows) == 0:
                continue
            found = search(
                cropped[rows],
                None if optics is None else optics[rows],
                None if scale is None else scale[rows],
                centre=None if centre is None else centre[rows],
                draws=draws,
                generator=generator,
            )
            parts.append(found)
            places.append(rows)
        return type(parts[0]).cat(parts)[torch.cat(places).argsort()]

    def _spread(self, first: Found) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best shift, middle of all rivals' shifts; whether all are near the one, or the other."""
        shift = first.shift_angstrom
        rival = (first.gain > first.gain[:, :1] - _RIVAL)[..., None]
        best = shift[:, 0]
        low = torch.where(rival, shift, best[:, None]).amin(1)
        high = torch.where(rival, shift, best[:, None]).amax(1)
        middle = (low + high) / 2

        def farthest(centre: Tensor) -> Tensor:
            away = (shift - centre[:, None]).norm(dim=-1)
            return away.masked_fill(~rival[..., 0], 0.0).amax(1)

        return best, middle, farthest(best) <= self._step, farthest(middle) <= _APART * self._step
