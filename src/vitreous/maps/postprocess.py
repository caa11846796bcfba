"""Postprocessing of half maps: mask, FSC, sharpened map, local resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.resolution import angstrom
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.maps.fsc import fsc_true, solvent_mask
from vitreous.maps.fsc_warnings import OUTLINE_ONLY, fsc_warnings
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import FEWEST_SHELLS, resolutions
from vitreous.maps.local_resolution import local_low_pass, local_resolution
from vitreous.maps.sharpening import Sharpened, sharpen
from vitreous.maps.symmetry_search import LEAST_AGREEMENT, symmetry_agreement

_SMOOTHING_ANGSTROM = 5.0
_EDGE_ANGSTROM = 8.0


@dataclass(frozen=True, kw_only=True)
class Postprocessed(Halves):
    """Result of :func:`postprocess`: half maps, symmetrised if asked, and their unfiltered mean.

    Args:
        mask: soft mask from 0 to 1.
        sharpened: the sharpened average, not masked.
        local_resolution: Å, 0 outside the mask; None if not computed.
        locally_filtered: the sharpened map, low-passed at its local resolution.
        symmetry_agreement: agreement of the given half maps with the symmetry; 1 for C1.
        warnings: sentences.
        verdict: one sentence without full stop.
    """

    mask: Tensor
    sharpened: Sharpened
    local_resolution: Tensor | None
    locally_filtered: Tensor | None
    symmetry_agreement: float
    warnings: tuple[str, ...]
    verdict: str


def automatic_mask(average: Tensor, pixel_size_angstrom: float) -> Tensor:
    """Return a :func:`~vitreous.maps.fsc.solvent_mask`, smoothed by 5 Å, edge 8 Å, of a map.

    >>> v = torch.zeros(16, 16, 16); v[6:10, 6:10, 6:10] = 1.0
    >>> automatic_mask(v, 4.0)[8, 8, 8].item()
    1.0
    """
    edge = max(4, round(_EDGE_ANGSTROM / pixel_size_angstrom))
    return solvent_mask(
        average,
        lowpass_px=max(2.0, _SMOOTHING_ANGSTROM / pixel_size_angstrom),
        dilate_px=max(2, edge // 2),
        edge_px=edge,
    )


def postprocess(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    generator: torch.Generator,
    mask: Tensor | None = None,
    symmetry: str = "C1",
    b_factor_angstrom2: float | None = None,
    local: bool = True,
) -> Postprocessed:
    """Compute mask, FSC, sharpened map and local resolution of two independent half maps.

    The FSC within the mask, corrected for it, gives the resolution and weights the sharpened map.

    The half maps ``(n, n, n)`` are unfiltered, in one frame, and averaged over the point group,
    about RELION's axes, first. The mask, 0 to 1, is made from their mean if None, and the B factor
    fitted if None. The generator draws the random phases of the mask's correction. ``local``
    computes the local resolution too, which takes most of the time.

    Raises:
        ValueError: boxes differ.
        UsageError: unknown point group.

    >>> halves = torch.randn(2, 16, 16, 16)
    >>> stream = torch.Generator().manual_seed(0)
    >>> result = postprocess(*halves, pixel_size_angstrom=4.0, generator=stream, local=False)
    >>> result.sharpened.map.shape
    torch.Size([16, 16, 16])
    """
    n, group = int(half1.shape[-1]), point_group(symmetry)
    agreement = symmetry_agreement(half1, half2, symmetry)
    half1, half2 = symmetrise(half1, group), symmetrise(half2, group)
    average = 0.5 * (half1 + half2)
    soft = automatic_mask(average, pixel_size_angstrom) if mask is None else mask
    curves = fsc_true(half1, half2, soft, generator)
    masked = resolutions(curves.corrected, n, pixel_size_angstrom)
    unmasked = resolutions(curves.unmasked, n, pixel_size_angstrom)
    b = b_factor_angstrom2
    corrected, edge = curves.corrected, n * pixel_size_angstrom
    sharp = sharpen(average, corrected, pixel_size_angstrom, mask=soft, b_factor_angstrom2=b)
    at = local_resolution(half1, half2, soft, pixel_size_angstrom) if local else None
    filtered = None if at is None else local_low_pass(sharp.map, at, pixel_size_angstrom)
    halves = Halves(half1, half2, average, curves, masked, unmasked)
    doubts = fsc_warnings(halves, pixel_size_angstrom)
    return Postprocessed(
        **vars(halves),
        mask=soft,
        sharpened=sharp,
        local_resolution=at,
        locally_filtered=filtered,
        symmetry_agreement=agreement,
        warnings=(*_symmetry_warnings(group.name, agreement), *doubts, *_blur_warnings(sharp)),
        verdict=OUTLINE_ONLY if OUTLINE_ONLY in doubts else _verdict(edge, sharp, at, soft),
    )


def local_range(resolution: Tensor, mask: Tensor) -> tuple[float, float, float]:
    """Return the 5th, 50th and 95th percentile of local resolutions where the mask is over 1/2.

    >>> local_range(torch.full((4, 4, 4), 8.0), torch.ones(4, 4, 4))
    (8.0, 8.0, 8.0)
    """
    inside = resolution[mask > 0.5]
    values = (inside if len(inside) else resolution.flatten()).double().sort().values
    low, middle, high = (float(values[int(q * (len(values) - 1))]) for q in (0.05, 0.5, 0.95))
    return low, middle, high


def _verdict(edge_angstrom: float, sharpened: Sharpened, local: Tensor | None, mask: Tensor) -> str:
    resolution = sharpened.resolution_angstrom
    if edge_angstrom / resolution < FEWEST_SHELLS:
        return (
            f"the half maps have nothing in common beyond {FEWEST_SHELLS:g} shells: they must be "
            "independent maps of one particle, in one frame (vitreous align)"
        )
    verdict = f"{angstrom(resolution)} at 0.143; {sharpened.note}"
    if local is None:
        return verdict
    low, middle, high = local_range(local, mask)
    return f"{verdict}; locally {low:.1f} to {high:.1f} Å, median {middle:.1f} Å"


def _symmetry_warnings(group: str, agreement: float) -> list[str]:
    if not agreement < LEAST_AGREEMENT:
        return []
    return [
        f"The half maps do not obey {group} about these axes: under its rotations they keep "
        f"{100 * max(agreement, 0):.0f} % of their agreement, so averaging destroys structure, "
        "and the FSC does not show it. Find group and axes with vitreous symmetry."
    ]


def _blur_warnings(sharpened: Sharpened) -> list[str]:
    if sharpened.b_factor_angstrom2 <= 0:
        return []
    return ["The B factor is positive: it blurs. To sharpen, give a negative one."]
