"""Pair of half maps and the FSC curves between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vitreous.maps.fsc import FscResult


@dataclass(frozen=True)
class Halves:
    """Two half maps, their mean, FSC curves and resolutions.

    Args:
        half1, half2: unfiltered ``(n, n, n)``, in one frame.
        average: mean of the half maps, filtered where it is to be shown.
        curves: FSC between the half maps.
        masked: resolutions in Å at 0.143 and 0.5 within the mask, corrected for it.
        unmasked: the same without mask.
        mask_name: name of the mask in the report.
        confirmed, confirmed_at: FSC of half maps that share a prior, confirmed by half maps without
            it (:func:`~vitreous.maps.fsc.fsc_confirmed`), and its resolutions.
        more_curves: further curves for ``fsc.csv`` and the report.
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
        """Resolutions in Å at 0.143 and 0.5 to quote."""
        return self.masked if self.confirmed_at is None else self.confirmed_at


def curves_by_name(halves: Halves) -> dict[str, Tensor]:
    """Return the curves by their names in ``fsc.csv`` and the report."""
    curves = halves.curves
    plain = {"unmasked": curves.unmasked, "masked": curves.masked}
    if halves.confirmed is not None:
        return {"confirmed": halves.confirmed, **plain, **halves.more_curves}
    randomised = {"phase_randomised": curves.randomised}
    return {"corrected": curves.corrected, **plain, **randomised, **halves.more_curves}
