"""What both half maps have in common without a structure is no agreement (fault 38)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import radius_grid, soft_mask
from vitreous.core.resample import is_same_map
from vitreous.core.resolution import AtNyquist, angstrom
from vitreous.jobs.cryogan.output import doubted
from vitreous.maps.fsc import FscResult, fsc, fsc_resolution, fsc_true
from vitreous.maps.fsc_warnings import (
    OUTLINE_ONLY,
    directional_fsc,
    fsc_warnings,
    outline_only,
    rise_warnings,
    view_concentration,
)
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import HalvesResult, resolutions

N, PIXEL = 40, 2.0


@pytest.fixture
def noise(generator: torch.Generator) -> Tensor:
    return torch.randn(2, N, N, N, generator=generator)


def _halves(half1: Tensor, half2: Tensor, curves: FscResult) -> Halves:
    reached = (resolutions(c, N, PIXEL) for c in (curves.corrected, curves.unmasked))
    return Halves(half1, half2, (half1 + half2) / 2, curves, *reached)


def _solved(halves: Halves) -> HalvesResult:
    untold = dict.fromkeys(("alignment", "mask", "structure_angstrom", "chance_angstrom"))
    return HalvesResult(**vars(halves), **untold, solved=True, verdict="solved")


def _support(name: str) -> Tensor:
    if name == "slab":
        slab = torch.zeros(N, N, N)
        slab[12:28] = 1
        return slab
    return (radius_grid(N, 3) < 14).float() if name == "ball" else torch.ones(N, N, N)


@pytest.mark.parametrize("support", ["pedestal", "ball", "slab"])
def test_fault_38_a_common_pedestal_is_no_agreement(noise: Tensor, support: str) -> None:
    half1, half2 = (noise + 10) * _support(support)
    curve = fsc(half1, half2)
    assert curve[4:].abs().max() < 0.25
    assert fsc_resolution(curve, 0.143, N, PIXEL) > 10 * PIXEL
    mask = soft_mask(N, 3, 10.0, 3.0)
    corrected = fsc_true(half1, half2, mask, torch.Generator()).corrected
    assert fsc_resolution(corrected, 0.143, N, PIXEL) > 10 * PIXEL


@pytest.mark.parametrize("support", ["ball", "slab"])
def test_fault_38_an_outline_under_noise_is_named(noise: Tensor, support: str) -> None:
    half1, half2 = noise + 5 * _support(support)
    curves = fsc_true(half1, half2, soft_mask(N, 3, 16.0, 3.0), torch.Generator())
    halves = _halves(half1, half2, curves)
    assert OUTLINE_ONLY in fsc_warnings(halves, PIXEL)
    result, warnings = doubted(_solved(halves), PIXEL)  # so does `abinit`
    assert not result.solved
    assert warnings == [f"NOT SOLVED: {OUTLINE_ONLY}."]


def test_a_structure_is_no_outline(noise: Tensor) -> None:
    shape = torch.zeros(N, N, N)
    shape[12:20, 14:30, 10:16] = 3
    shape[22:27, 8:20, 18:30] = 3
    for power in (0.3, 1.0):
        half1, half2 = shape + power * noise
        resolution = fsc_resolution(fsc(half1, half2), 0.143, N, PIXEL)
        assert not outline_only(half1, half2, resolution, PIXEL)


def test_a_curve_that_never_falls_ends_at_nyquist_only() -> None:
    value = fsc_resolution(torch.ones(9), 0.143, 16, 4.0)
    assert isinstance(value, AtNyquist)
    assert angstrom(value) == "no worse than Nyquist (8.0 Å)"
    falling = fsc_resolution(torch.linspace(1, 0, 9), 0.143, 16, 4.0)
    assert not isinstance(falling, AtNyquist)


def test_a_curve_that_rises_again_is_said_and_its_noise_is_not() -> None:
    falling = torch.linspace(1, -0.1, 33).clamp_min(0)
    wobble = 0.05 * torch.randn(33, generator=torch.Generator().manual_seed(0))
    assert not rise_warnings(falling + wobble, PIXEL)
    for fall in range(33):
        assert not rise_warnings((torch.arange(33) < fall).float(), PIXEL)
    risen = falling.clone()
    risen[28:32] = 0.6
    assert "rises again, to 0.60" in rise_warnings(falling.where(risen < 0.5, risen), PIXEL)[0]


@pytest.mark.parametrize("change", [lambda v: v, lambda v: 3 - 2 * v])
def test_one_map_is_recognised(noise: Tensor, change) -> None:
    assert is_same_map(noise[0], change(noise[0]))
    assert not is_same_map(noise[0], noise[0] + 0.01 * noise[1])


def test_a_mask_that_loses_resolution_is_said(noise: Tensor) -> None:
    shape = torch.zeros(N, N, N)
    shape[16:24, 14:26, 15:25] = 2
    half1, half2 = shape + 0.2 * noise
    curves = fsc_true(half1, half2, 1 - soft_mask(N, 3, 12.0, 3.0), torch.Generator())
    halves = _halves(half1, half2, curves)
    assert "agree worse" in fsc_warnings(halves, PIXEL)[0]
    assert doubted(_solved(halves), PIXEL)[1] == fsc_warnings(halves, PIXEL)


def test_views_along_one_axis_are_measured_across_it(noise: Tensor) -> None:
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    mostly = torch.cat([torch.eye(3).expand(97, 3, 3), turn.expand(3, 3, 3)])
    share, axis = view_concentration(mostly)
    assert share == pytest.approx(0.97)
    assert abs(float(axis[2])) > 0.99
    assert view_concentration(mostly, "O")[0] < 0.5
    plane = noise[0].mean(0, keepdim=True).expand(N, N, N) * 20
    along, across = directional_fsc(plane + noise[0], plane + noise[1], axis, 25.0)
    assert float(across[5:15].mean()) > 0.5
    assert float(along[5:15].mean()) < 0.2
