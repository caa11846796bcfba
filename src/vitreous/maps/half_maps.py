"""Combination of independent half maps: alignment, resolution, weighting, and a verdict."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.resolution import angstrom
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.maps.align import Alignment, align_maps
from vitreous.maps.fsc import CUTOFF, fsc, fsc_resolution, fsc_true, randomise_phases, solvent_mask
from vitreous.maps.fsc_warnings import MOST_MASK_GAIN, without_spherical_mean
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.sharpening import reference_weight
from vitreous.maps.shell_filter import weight_shells

BETTER_THAN_CHANCE = 1.5
FEWEST_SHELLS = 4.0
FEWEST_PARTICLES = 1000
CHANCE_DRAWS = 3
LEAST_FSC = 0.02
_TRUSTED_SHELL = 3


@dataclass(frozen=True)
class SolvedCriteria:
    """Fewest particles for which a structure is believed, and the advice if not."""

    fewest_particles: int = FEWEST_PARTICLES
    remedy: str = "Give the run more time (`effort` 2), another `seed`,"
    more_particles: str = "Collect or pick more particles"


@dataclass(frozen=True, kw_only=True)
class HalvesResult(Halves):
    """Aligned half maps, their mean weighted by shells, resolutions, and a verdict.

    Args:
        alignment: transform of half map 2 to half map 1.
        mask: soft solvent mask from the mean of the two.
        structure_angstrom: 0.143 resolution without mask and without spherical averages.
        chance_angstrom: the same after randomising the phases of half map 2 and aligning it again:
            the resolution that alignment gives to maps without common structure.
        solved: True if the half maps agree on a structure.
        verdict: one sentence, with reason and remedy if not solved; it names the corrected
            resolution, or the unmasked one where the mask gains suspiciously much.
    """

    alignment: Alignment
    mask: Tensor
    structure_angstrom: float
    chance_angstrom: float
    solved: bool
    verdict: str


def combine_halves(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    n_particles: int,
    generator: torch.Generator,
    criteria: SolvedCriteria | None = None,
) -> HalvesResult:
    """Align half map 2 to half map 1, measure their agreement, and average them.

    The maps ``(n, n, n)`` from disjoint particles have any orientation and hand; the alignment
    keeps their symmetry about RELION's axes. ``n_particles`` of both half sets counts for the
    verdict. The generator draws the random phases.

    Raises:
        ValueError: boxes differ, or a map is not finite.

    >>> stream = torch.Generator().manual_seed(1)
    >>> a, b = torch.randn(2, 16, 16, 16, generator=stream)
    >>> options = dict(pixel_size_angstrom=4.0, n_particles=5000, generator=stream)
    >>> combine_halves(a, b, symmetry="D2", **options).solved
    False
    """
    n = int(half1.shape[-1])
    alignment = _align(half2, half1, pixel_size_angstrom, symmetry)
    aligned, average = alignment.aligned, 0.5 * (half1 + alignment.aligned)
    mask = solvent_mask(average)
    curves = fsc_true(half1, aligned, mask, generator)
    structure = _structure_resolution(half1, aligned, pixel_size_angstrom)
    chance = _chance_resolution(half1, aligned, pixel_size_angstrom, symmetry, generator)
    masked = resolutions(curves.corrected, n, pixel_size_angstrom)
    unmasked = resolutions(curves.unmasked, n, pixel_size_angstrom)
    edge, criteria = n * pixel_size_angstrom, criteria or SolvedCriteria()
    doubt = _doubt(structure, chance, edge, n_particles, criteria)
    quoted = unmasked[0] if unmasked[0] > MOST_MASK_GAIN * masked[0] else masked[0]
    solved = (
        f"solved to {angstrom(quoted)} (0.143 between independent halves; {n_particles:,} "
        f"particles, chance alone reaches {chance:.0f} Å)"
    )
    return HalvesResult(
        half1=half1,
        half2=aligned,
        average=weight_by_fsc(average, curves.corrected),
        curves=curves,
        masked=masked,
        unmasked=unmasked,
        alignment=alignment,
        mask=mask,
        structure_angstrom=structure,
        chance_angstrom=chance,
        solved=not doubt,
        verdict=f"NOT SOLVED: {doubt}" if doubt else solved,
    )


def resolutions(curve: Tensor, box_size: int, pixel_size_angstrom: float) -> tuple[float, float]:
    """Return the resolutions in Å at which an FSC falls below 0.143 and 0.5.

    >>> resolutions(torch.tensor([1.0, 1.0, 0.3, 0.0, 0.0]), 8, 2.0)[0] < 8.0
    True
    """
    return (
        fsc_resolution(curve, CUTOFF, box_size, pixel_size_angstrom),
        fsc_resolution(curve, 0.5, box_size, pixel_size_angstrom),
    )


def resolutions_between(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    spacing_deg: float = 15.0,
) -> tuple[float, float]:
    """Return the resolutions in Å at 0.143 and 0.5 between two maps after alignment, unmasked.

    ``symmetry`` is the point group of both; ``spacing_deg`` is the step of the rotation grid:
    coarser is faster.
    """
    aligned = _align(half2, half1, pixel_size_angstrom, symmetry, spacing_deg).aligned
    return resolutions(fsc(half1, aligned), len(half1), pixel_size_angstrom)


def weight_by_fsc(average: Tensor, curve: Tensor) -> Tensor:
    r"""Weight each shell of the mean of two half maps by its expected correlation with the truth.

    :math:`w(s) = \sqrt{2\,\mathrm{FSC}(s) / (1 + \mathrm{FSC}(s))}`, with the FSC ``curve`` between
    the half maps at least 0.02 (weight 0.2), so that shells where they disagree can still be
    compared with other maps. Interpolated between shells.

    Source: Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721, equation (13) (``C_ref``).

    >>> v = torch.randn(8, 8, 8)
    >>> torch.allclose(weight_by_fsc(v, torch.ones(5)), v, atol=1e-5)
    True
    """
    return weight_shells(average, reference_weight(curve.double().clamp(min=LEAST_FSC)))


def _chance_resolution(
    half1: Tensor, half2: Tensor, pixel: float, symmetry: str, generator: torch.Generator
) -> float:
    """Return the 0.143 resolution in Å that alignment gives to maps without common structure.

    The phases of half map 2 are randomised, it is aligned to half map 1 again; median over draws.
    """
    support = (half1 != 0).to(half2.dtype)
    group = point_group(symmetry)
    reached = []
    for _ in range(CHANCE_DRAWS):
        random = randomise_phases(half2, 1, generator)
        random = (symmetrise(random, group) if group.order > 1 else random) * support
        aligned = _align(random, half1, pixel, symmetry).aligned
        reached.append(_structure_resolution(half1, aligned, pixel))
    return statistics.median(reached)


def _align(
    moving: Tensor, reference: Tensor, pixel: float, symmetry: str, spacing_deg: float = 15.0
) -> Alignment:
    return align_maps(
        moving, reference, pixel_size_angstrom=pixel, point_group=symmetry, spacing_deg=spacing_deg
    )


def _structure_resolution(a: Tensor, b: Tensor, pixel_size_angstrom: float) -> float:
    """Return the 0.143 resolution from shell 3 on, without spherical means, alike in any balls."""
    curve = fsc(without_spherical_mean(a), without_spherical_mean(b))
    curve[:_TRUSTED_SHELL] = 1.0
    return fsc_resolution(curve, CUTOFF, int(a.shape[-1]), pixel_size_angstrom)


def _doubt(
    structure: float,
    chance: float,
    edge_angstrom: float,
    n_particles: int,
    criteria: SolvedCriteria,
) -> str:
    """Return why the half maps are not believed, with a remedy; empty if they are."""
    agreement = (
        f"beyond their outline the halves agree to {structure:.0f} Å; by chance, with random "
        f"phases in one of them, they agree to {chance:.0f} Å"
    )
    if n_particles < criteria.fewest_particles:
        return (
            f"{n_particles:,} particles are too few (thousands are needed to find a structure "
            f"without poses); {agreement}. {criteria.more_particles}"
        )
    if edge_angstrom / structure < FEWEST_SHELLS or structure * BETTER_THAN_CHANCE >= chance:
        return (
            f"{agreement}. {criteria.remedy} the right `symmetry`, `noise` and contrast "
            "(`invert`), or more particles"
        )
    return ""
