"""Sharpening of maps: the B factor by a Guinier fit, and its correction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.maps.fsc import CUTOFF, fsc_resolution
from vitreous.maps.shell_filter import shell_rms, weight_shells

FIT_FROM_ANGSTROM = 10.0
FEWEST_SHELLS = 5
_EDGE_SHELLS = 2.0


@dataclass(frozen=True)
class Guinier:
    r"""Guinier fit: a line through the logarithm of a map's amplitudes against 1/d^2.

    Args:
        inv_d2: ``(shells,)`` frequencies squared, 1/Å^2.
        log_amplitude: ``(shells,)`` ln of the FSC-weighted root mean square of each shell.
        fitted: bool ``(shells,)``, True for the shells of the fit.
        b_factor_angstrom2: four times the slope, negative where amplitudes fall; 0 without a fit.
        error_angstrom2: its standard error, from the scatter about the line; NaN without a fit.
        intercept: intercept of the line.
        note: one sentence on the fit, or why there is none.
    """

    inv_d2: Tensor
    log_amplitude: Tensor
    fitted: Tensor
    b_factor_angstrom2: float
    error_angstrom2: float
    intercept: float
    note: str


@dataclass(frozen=True)
class Sharpened:
    """Sharpened map with its B factor, filter and Guinier fit.

    Args:
        map: ``(n, n, n)``.
        b_factor_angstrom2: applied B in :math:`\\exp(-B k^2 / 4)`: negative sharpens.
        automatic: True if B is that of the fit.
        weight: ``(n // 2 + 1,)`` factor of each shell.
        resolution_angstrom: resolution at FSC 0.143, the end of the pass band.
        guinier: the fit.
        note: one sentence on the B factor.
    """

    map: Tensor
    b_factor_angstrom2: float
    automatic: bool
    weight: Tensor
    resolution_angstrom: float
    guinier: Guinier
    note: str


def reference_weight(fsc: Tensor) -> Tensor:
    r"""Return the expected correlation of the mean of two half maps with the truth, by shell.

    :math:`C_{ref} = \sqrt{2\,\mathrm{FSC} / (1 + \mathrm{FSC})}`, 0 where the FSC is negative.

    Source: Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721, equation (13).

    >>> reference_weight(torch.tensor([1.0, 1 / 7, -0.2])).round(decimals=4).tolist()
    [1.0, 0.5, 0.0]
    """
    clamped = fsc.double().clamp(0, 1)
    return (2 * clamped / (1 + clamped)).sqrt()


def guinier_fit(
    average: Tensor,
    fsc: Tensor,
    pixel_size_angstrom: float,
    *,
    mask: Tensor | None = None,
) -> Guinier:
    r"""Fit a B factor to the fall of a map's amplitudes.

    :math:`\ln (C_{ref}(k)\, F(k)) = a + \tfrac{B}{4} k^2`, F the root mean square of a shell of
    the average; :math:`C_{ref}^2` is the signal's share of its power. Least squares over the shells
    from 10 Å to the first whose FSC is below 0.143.

    At resolutions worse than that amplitudes follow the outline of the molecule and the
    packing of its domains, not a B factor: then, or with fewer than 5 shells, there is no fit.

    Args:
        average: mean of the half maps, unfiltered, ``(n, n, n)``.
        fsc: ``(n // 2 + 1,)`` between the half maps.
        pixel_size_angstrom: pixel size in Å.
        mask: ``(n, n, n)``, within which amplitudes are taken. Needed if the FSC is that within the
            mask, since the noise of the solvent would count as signal.

    Raises:
        ValueError: the FSC does not belong to the box.

    Source: Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721.

    >>> guinier_fit(torch.ones(8, 8, 8), torch.ones(5), 6.0).b_factor_angstrom2
    0.0
    """
    n = int(average.shape[-1])
    resolution = fsc_resolution(fsc, CUTOFF, n, pixel_size_angstrom)
    shells = torch.arange(n // 2 + 1, dtype=torch.float64)
    frequency = shells / (n * pixel_size_angstrom)
    values = average if mask is None else average * mask
    amplitude = shell_rms(values).cpu() * reference_weight(fsc).cpu()
    logarithm = amplitude.clamp(min=1e-300).log()
    inside = (frequency >= 1 / FIT_FROM_ANGSTROM) & (frequency <= (1 / resolution) * (1 + 1e-9))
    inside &= amplitude > 0
    count = int(inside.sum())

    def result(b: float, error: float, intercept: float, note: str) -> Guinier:
        fitted = inside if count >= FEWEST_SHELLS else torch.zeros_like(inside)
        return Guinier(frequency**2, logarithm, fitted, b, error, intercept, note)

    if count < FEWEST_SHELLS:
        return result(0.0, math.nan, math.nan, _no_fit(count, resolution))
    slope, intercept, error = _line((frequency**2)[inside], logarithm[inside])
    if slope > 0:
        note = (
            f"amplitudes do not fall between {FIT_FROM_ANGSTROM:g} and {resolution:.1f} Å: B is 0"
        )
        return result(0.0, 4 * error, intercept, note)
    note = (
        f"B = {4 * slope:.0f} ± {4 * error:.0f} Å², fitted to {count} shells from "
        f"{FIT_FROM_ANGSTROM:g} to {resolution:.1f} Å"
    )
    return result(4 * slope, 4 * error, intercept, note)


def sharpen(
    average: Tensor,
    fsc: Tensor,
    pixel_size_angstrom: float,
    *,
    mask: Tensor | None = None,
    b_factor_angstrom2: float | None = None,
) -> Sharpened:
    r"""Sharpen a map up to the resolution of its half maps.

    Each shell of their unfiltered mean ``average`` is multiplied by :math:`C_{ref}(k) \exp(-B k^2 /
    4)`; a raised cosine two shells wide, from the resolution at 0.143 on, ends the pass band.

    Args:
        average, fsc, pixel_size_angstrom, mask: see :func:`guinier_fit`; the map is not masked.
        b_factor_angstrom2: B factor to apply, negative to sharpen; None: the fitted one.

    Raises:
        ValueError: the FSC does not belong to the box.

    >>> v = torch.randn(16, 16, 16)
    >>> sharpened = sharpen(v, torch.ones(9), 8.0)
    >>> torch.allclose(sharpened.map, v, atol=1e-4), sharpened.note[:13]
    (True, 'no B factor: ')
    """
    n = int(average.shape[-1])
    guinier = guinier_fit(average, fsc, pixel_size_angstrom, mask=mask)
    resolution = fsc_resolution(fsc, CUTOFF, n, pixel_size_angstrom)
    automatic = b_factor_angstrom2 is None
    b = guinier.b_factor_angstrom2 if b_factor_angstrom2 is None else b_factor_angstrom2
    note = guinier.note if automatic else f"B = {b:g} Å² as given ({guinier.note})"
    weight = reference_weight(fsc).cpu() * _pass_band(fsc, n * pixel_size_angstrom / resolution)
    weight = weight * torch.exp(-b / 4 * guinier.inv_d2)
    return Sharpened(
        weight_shells(average, weight), b, automatic, weight, resolution, guinier, note
    )


def _pass_band(fsc: Tensor, last_shell: float) -> Tensor:
    shells = torch.arange(len(fsc), dtype=torch.float64)
    if bool((fsc[1:] >= CUTOFF).all()):
        return torch.ones_like(shells)
    return 0.5 + 0.5 * torch.cos(math.pi * ((shells - last_shell) / _EDGE_SHELLS).clamp(0, 1))


def _line(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return slope, intercept and standard error of the slope by least squares."""
    centred = x - x.mean()
    spread = float(centred.square().sum())
    slope = float((centred * y).sum()) / spread
    intercept = float(y.mean()) - slope * float(x.mean())
    residual = y - (intercept + slope * x)
    error = math.sqrt(float(residual.square().sum()) / (len(x) - 2) / spread)
    return slope, intercept, error


def _no_fit(count: int, resolution: float) -> str:
    if resolution >= FIT_FROM_ANGSTROM:
        reached = f"{resolution:.1f} Å" if math.isfinite(resolution) else "no resolution"
        return f"no B factor: {reached} is not beyond {FIT_FROM_ANGSTROM:g} Å; none is applied"
    return (
        f"no B factor: only {count} shells lie between {FIT_FROM_ANGSTROM:g} and "
        f"{resolution:.1f} Å and {FEWEST_SHELLS} are needed; none is applied"
    )
