"""Two independent half maps to one: alignment, resolution, weighting, and an honest verdict."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import radius_grid
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.maps.align import Alignment, align_maps
from vitreous.maps.fsc import (
    FscResult,
    fsc,
    fsc_resolution,
    fsc_true,
    randomise_phases,
    solvent_mask,
)
from vitreous.maps.shell_filter import weight_shells

CUTOFF = 0.143
BETTER_THAN_CHANCE = 1.5
FEWEST_SHELLS = 4.0
FEWEST_PARTICLES = 1000
CHANCE_DRAWS = 3
MOST_MASK_GAIN = 1.5  # a mask that gains more makes the number, the map does not
LEAST_FSC = 0.02
_TRUSTED_SHELL = 3
MORE_TIME = "Give the run more time (--effort 2), another --seed,"


@dataclass(frozen=True)
class HalvesResult:
    """What two half maps say together.

    Args:
        half2: half map 2, unfiltered, brought onto half map 1.
        alignment: how it was brought there.
        mask: soft solvent mask made from the average of the two.
        curves: FSC with and without the mask, and corrected for it.
        resolution_0143_angstrom, resolution_05_angstrom: of the corrected curve.
        unmasked_0143_angstrom, unmasked_05_angstrom: of the curve without mask.
        structure_angstrom: 0.143 resolution of what is not spherically symmetric, without mask.
        chance_angstrom: the same after half 2's phases were randomised and it was aligned again:
            what alignment makes of maps that have nothing in common.
        average: mean of the halves, weighted by shells.
        solved: whether the halves agree on a structure.
        verdict: one sentence that says so, with the reason and a remedy if not; it names the
            corrected resolution, or the unmasked one where the mask gains suspiciously much.
    """

    half2: Tensor
    alignment: Alignment
    mask: Tensor
    curves: FscResult
    resolution_0143_angstrom: float
    resolution_05_angstrom: float
    unmasked_0143_angstrom: float
    unmasked_05_angstrom: float
    structure_angstrom: float
    chance_angstrom: float
    average: Tensor
    solved: bool
    verdict: str


def combine_halves(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    n_particles: int,
    mask: Tensor | None = None,
    generator: torch.Generator,
    remedy: str = MORE_TIME,
    fewest_particles: int = FEWEST_PARTICLES,
) -> HalvesResult:
    """Align half map 2 onto half map 1, measure how far they agree, and average them.

    Args:
        half1, half2: ``(n, n, n)`` from disjoint particles, of any orientation and hand.
        pixel_size_angstrom: Å.
        symmetry: point group that both obey about RELION's axes; only what it leaves free is
            searched.
        n_particles: of both halves together, for the verdict.
        mask: ``(n, n, n)`` from 0 to 1; made from the average if None.
        generator: for random phases.
        remedy: what a run that has not succeeded should be given, up to the first comma of a list.
        fewest_particles: below which nothing is believed.

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
    aligned = alignment.aligned
    average = 0.5 * (half1 + aligned)
    soft = solvent_mask(average) if mask is None else mask
    curves = fsc_true(half1, aligned, soft, generator)

    structure = _structure_resolution(half1, aligned, pixel_size_angstrom)
    chance = chance_resolution(
        half1,
        aligned,
        pixel_size_angstrom=pixel_size_angstrom,
        symmetry=symmetry,
        generator=generator,
    )
    corrected, corrected_05 = resolutions(curves.corrected, n, pixel_size_angstrom)
    unmasked, unmasked_05 = resolutions(curves.unmasked, n, pixel_size_angstrom)
    claimed = unmasked if unmasked > MOST_MASK_GAIN * corrected else corrected
    doubt = _doubt(structure, chance, n * pixel_size_angstrom, remedy)
    if n_particles < fewest_particles:
        doubt = _too_few(structure, chance, n_particles)
    return HalvesResult(
        half2=aligned,
        alignment=alignment,
        mask=soft,
        curves=curves,
        resolution_0143_angstrom=corrected,
        resolution_05_angstrom=corrected_05,
        unmasked_0143_angstrom=unmasked,
        unmasked_05_angstrom=unmasked_05,
        structure_angstrom=structure,
        chance_angstrom=chance,
        average=weight_by_fsc(average, curves.corrected),
        solved=not doubt,
        verdict=f"NOT SOLVED: {doubt}"
        if doubt
        else f"solved to {claimed:.1f} Å (0.143 between independent halves; {n_particles:,} "
        f"particles, chance alone reaches {chance:.0f} Å)",
    )


def resolutions(curve: Tensor, box_size: int, pixel_size_angstrom: float) -> tuple[float, float]:
    """Where an FSC falls below 0.143 and 0.5, in Å.

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
    """Resolutions in Å at 0.143 and 0.5 between two maps after alignment, without mask.

    Args:
        half1, half2: ``(n, n, n)``.
        pixel_size_angstrom: Å.
        symmetry: point group of both.
        spacing_deg: of the rotations searched; coarser is quicker.
    """
    aligned = _align(half2, half1, pixel_size_angstrom, symmetry, spacing_deg).aligned
    return resolutions(fsc(half1, aligned), len(half1), pixel_size_angstrom)


def weight_by_fsc(average: Tensor, curve: Tensor) -> Tensor:
    r"""Filter the mean of two half maps so that each shell counts as much as it can be trusted.

    :math:`w(s) = \sqrt{2\,\mathrm{FSC}(s) / (1 + \mathrm{FSC}(s))}`, the expected correlation of
    the mean with the true map. The FSC counts as at least 0.02 (weight 0.2), so that shells where
    the halves disagree fade but can still be compared with other maps. Between shells the weight
    is interpolated.

    Args:
        average: ``(n, n, n)``.
        curve: ``(n // 2 + 1,)`` FSC between the halves.

    Source: Rosenthal & Henderson, J. Mol. Biol. 333 (2003) 721, equation (13) (``C_ref``).

    >>> v = torch.randn(8, 8, 8)
    >>> torch.allclose(weight_by_fsc(v, torch.ones(5)), v, atol=1e-5)
    True
    """
    kept = curve.double().clamp(LEAST_FSC, 1)
    return weight_shells(average, (2 * kept / (1 + kept)).sqrt())


def chance_resolution(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    generator: torch.Generator,
    draws: int = CHANCE_DRAWS,
) -> float:
    """The 0.143 resolution in Å that alignment alone gives to maps without common structure.

    Half 2's phases are randomised (its power in each shell, symmetry and support are kept), it is
    aligned onto half 1 as the true one was, and the FSC of what is not spherically symmetric is
    read.

    Args:
        half1, half2: ``(n, n, n)``.
        pixel_size_angstrom: Å.
        symmetry: point group of both.
        generator: for the random phases.
        draws: how often; the median counts.
    """
    support = (half1 != 0).to(half2.dtype)
    group = point_group(symmetry)
    reached = []
    for _ in range(draws):
        random = randomise_phases(half2, 1, generator)
        random = (symmetrise(random, group) if group.order > 1 else random) * support
        moved = _align(random, half1, pixel_size_angstrom, symmetry).aligned
        reached.append(_structure_resolution(half1, moved, pixel_size_angstrom))
    return statistics.median(reached)


def _align(
    moving: Tensor, reference: Tensor, pixel: float, symmetry: str, spacing_deg: float = 15.0
) -> Alignment:
    return align_maps(
        moving,
        reference,
        pixel_size_angstrom=pixel,
        point_group=symmetry,
        spacing_deg=spacing_deg,
    )


def _structure_resolution(a: Tensor, b: Tensor, pixel_size_angstrom: float) -> float:
    """Where the FSC at 0.143 ends when the spherical averages are taken away, as two balls agree.

    The first two shells, of which little is then left, are not asked.
    """
    curve = fsc(_without_spherical_mean(a), _without_spherical_mean(b))
    curve[:_TRUSTED_SHELL] = 1.0
    return fsc_resolution(curve, CUTOFF, int(a.shape[-1]), pixel_size_angstrom)


def _without_spherical_mean(volume: Tensor) -> Tensor:
    """The mean over voxels of exactly the same distance is subtracted: no radial function stays."""
    n = int(volume.shape[-1])
    squared = radius_grid(n, 3, device=volume.device).double().square().round().long().flatten()
    values = volume.double().flatten()
    count = torch.bincount(squared).double().clamp(min=1)
    mean = torch.zeros_like(count).index_add_(0, squared, values) / count
    return (values - mean[squared]).reshape(volume.shape)


def _doubt(structure: float, chance: float, edge_angstrom: float, remedy: str) -> str:
    """Why the halves cannot be believed, with a remedy; empty if they can."""
    shells = edge_angstrom / structure
    if shells < FEWEST_SHELLS or structure * BETTER_THAN_CHANCE >= chance:
        return (
            f"{_found(structure, chance)}. {remedy} the right --sym, --noise and contrast "
            "(--invert), or more particles"
        )
    return ""


def _too_few(structure: float, chance: float, n_particles: int) -> str:
    return (
        f"{n_particles:,} particles are too few (thousands are needed to find a structure "
        f"without poses); {_found(structure, chance)}. Collect or pick more particles"
    )


def _found(structure: float, chance: float) -> str:
    return (
        f"beyond their outline the halves agree to {structure:.0f} Å where chance alone reaches "
        f"{chance:.0f} Å"
    )
