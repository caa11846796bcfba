"""A pair of half maps and the curves between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vitreous.maps.fsc import FscResult


@dataclass(frozen=True)
class Halves:
    """Two half maps and what is made of them.

    Args:
        half1, half2: unfiltered ``(n, n, n)``, in one frame.
        average: the map to look at.
        curves: FSC between the halves.
        masked: resolutions in Å at 0.143 and 0.5 within the mask, corrected for it.
        unmasked: the same without mask.
        mask_name: of the mask, for the report.
        confirmed, confirmed_at: FSC of half maps that share a prior, as far as it is confirmed
            without (:func:`~vitreous.maps.fsc.fsc_confirmed`), and its resolutions.
        more_curves: further ones to be written and shown.
    """

    half1: Tensor
    half2: Tensor
    average: Tensor
    curves: FscResult
    masked: tuple[float, float]
    unmasked: tuple[float, float]
    mask_name: str = "a soft mask"
    confirmed: Tensor | None = None
    confirmed_at: tuple[float, float] | None = None
    more_curves: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[float, float]:
        """The resolutions to be quoted."""
        return self.masked if self.confirmed_at is None else self.confirmed_at


def curves_by_name(halves: Halves) -> dict[str, Tensor]:
    """The curves under the names that ``fsc.csv`` and the report give them."""
    curves = halves.curves
    if halves.confirmed is not None:
        return {
            "confirmed": halves.confirmed,
            "unmasked": curves.unmasked,
            "masked": curves.masked,
            **halves.more_curves,
        }
    return {
        "corrected": curves.corrected,
        "unmasked": curves.unmasked,
        "masked": curves.masked,
        "phase_randomised": curves.randomised,
        **halves.more_curves,
    }
