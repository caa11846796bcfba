import dataclasses
import math
import sys

import pytest
import torch

from vitreous.core.grid import radius_grid, soft_mask
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import random_rotations
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.fsc import fsc, randomise_phases
from vitreous.maps.half_maps import combine_halves, resolutions_between, weight_by_fsc

N, PIXEL = 32, 6.0
BALL = (radius_grid(N, 3) <= 0.45 * N).float()
QUARTER_TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(volume, sigma, seed, group="C1"):
    noise = torch.randn(volume.shape, generator=stream(seed)) * sigma * volume.std()
    if group != "C1":
        noise = symmetrise(noise, point_group(group)) * point_group(group).order ** 0.5
    return (volume + noise) * BALL


def combined(half1, half2, symmetry="D2", n_particles=5000):
    return combine_halves(
        half1,
        half2,
        pixel_size_angstrom=PIXEL,
        symmetry=symmetry,
        n_particles=n_particles,
        generator=stream(9),
    )


@pytest.fixture(scope="module")
def molecule():
    return protein_phantom(N, PIXEL, seed=1, point_group="D2") * BALL


def test_halves_in_another_setting_and_hand_are_joined_and_called_solved(molecule):
    half1 = noisy(molecule, 0.6, 1, "D2")
    half2 = rotate_volume(noisy(molecule, 0.6, 2, "D2"), -QUARTER_TURN)  # and mirrored
    result = combined(half1, half2)
    assert result.solved
    assert result.verdict.startswith("solved to ")
    assert result.masked[0] <= result.masked[1] < 30
    assert result.structure_angstrom < 20
    assert result.chance_angstrom > 2 * result.structure_angstrom
    assert torch.equal(result.curves.unmasked, fsc(half1, result.half2))
    # the weighted mean is nearer to the truth than either half, and than the plain mean
    plain = 0.5 * (half1 + result.half2)
    error = [float((v - molecule).norm()) for v in (result.average, plain, half1)]
    assert error[0] < error[1] < error[2]


@pytest.mark.slow
def test_without_symmetry_any_rotation_is_found():
    truth = protein_phantom(20, PIXEL, seed=4)
    ball = (radius_grid(20, 3) <= 0.45 * 20).float()
    turn = random_rotations(1, generator=stream(5))[0]
    halves = [
        (truth + 0.3 * truth.std() * torch.randn(truth.shape, generator=stream(s))) * ball
        for s in (1, 2)
    ]
    result = combined(halves[0], rotate_volume(halves[1], turn) * ball, "C1")
    assert result.solved, result.verdict
    assert not result.alignment.mirrored


def test_maps_with_nothing_in_common_but_power_and_symmetry_are_not_solved(molecule):
    for seed in (1, 2):
        other = symmetrise(randomise_phases(molecule, 1, stream(seed)), point_group("D2")) * BALL
        result = combined(molecule, other)
        assert not result.solved
        assert result.verdict.startswith("NOT SOLVED: beyond their outline")
        assert result.structure_angstrom * 1.5 > result.chance_angstrom


def test_two_balls_agree_but_are_no_structure():
    halves = [noisy(soft_mask(N, 3, 6.0, 3.0), 0.2, seed, "D2") for seed in (1, 2)]
    result = combined(*halves)
    assert result.unmasked[0] < 40  # the FSC as such looks well
    assert not result.solved


def test_the_edge_of_a_common_mask_is_no_structure():
    halves = [0.2 * BALL + noisy(torch.zeros(N, N, N) + 0.5 * BALL, 0.1, s, "D2") for s in (1, 2)]
    assert not combined(*halves).solved


def test_few_particles_are_named(molecule):
    halves = [noisy(molecule, 0.3, seed, "D2") for seed in (1, 2)]
    result = combined(*halves, n_particles=101)
    assert not result.solved
    assert "101 particles are too few" in result.verdict
    assert combined(*halves, n_particles=1000).solved


def test_empty_halves_are_not_solved_and_stay_finite():
    zero = torch.zeros(16, 16, 16)
    result = combine_halves(
        zero, zero, pixel_size_angstrom=4.0, n_particles=5000, generator=stream()
    )
    assert not result.solved
    assert bool(result.average.isfinite().all())
    assert math.isinf(result.masked[0])


def test_comparison_while_running_reads_the_aligned_fsc(molecule):
    half1, half2 = (noisy(molecule, 0.6, seed, "D2") for seed in (1, 2))
    turned = rotate_volume(half2, QUARTER_TURN)
    found = resolutions_between(half1, turned, pixel_size_angstrom=PIXEL, symmetry="D2")
    result = combined(half1, half2)
    assert found == pytest.approx(result.unmasked)


def test_weights_are_rosenthal_and_henderson_and_never_vanish():
    volume = torch.randn(16, 16, 16, generator=stream(3))
    curve = torch.tensor([1.0, 1.0, 0.8, 0.5, 0.1, -0.3, 0.0, 0.9, 0.9])
    ratio = torch.fft.rfftn(weight_by_fsc(volume, curve)) / torch.fft.rfftn(volume)
    along_x = ratio[0, 0].real
    expected = [(2 * f / (1 + f)) ** 0.5 for f in (1.0, 1.0, 0.8, 0.5, 0.1, 0.02, 0.02, 0.9, 0.9)]
    assert along_x.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_verdict_does_not_name_a_number_that_only_the_mask_made(molecule, monkeypatch):
    """Halves that agree at low resolution only, corrected curve forced up: the unmasked one."""
    halves_module = sys.modules[combine_halves.__module__]
    honest = halves_module.fsc_true

    def flattered(*arguments):
        result = honest(*arguments)
        return dataclasses.replace(result, corrected=torch.ones_like(result.corrected))

    monkeypatch.setattr(halves_module, "fsc_true", flattered)
    monkeypatch.setattr(halves_module, "_doubt", lambda *_: "")
    half1, half2 = (noisy(molecule, 4.0, seed, "D2") for seed in (1, 2))
    result = combined(half1, half2)
    assert result.unmasked[0] > 1.5 * result.masked[0]
    assert f"solved to {result.unmasked[0]:.1f} Å" in result.verdict
