"""Maps superposed from any start: angles, shifts, hands, point-group families, resampling."""

from __future__ import annotations

import math
import time

import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.core.resample import permute_volume, rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix, geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.align import align_maps, align_nearby
from vitreous.maps.fsc import fsc
from vitreous.maps.registration import half_ball


def _gaussians(n: int, centres: torch.Tensor, sigma: float) -> torch.Tensor:
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    gx, gy, gz = (torch.exp(-((axis - c[:, None]) ** 2) / (2 * sigma**2)) for c in centres.T)
    return torch.einsum("bz,by,bx->zyx", gz, gy, gx)


def _centres(n: int, seed: int) -> torch.Tensor:
    """Six arms of three blobs each: asymmetric, chiral, within 0.3 n of the centre."""
    g = torch.Generator().manual_seed(seed)
    tips = torch.randn(6, 3, generator=g, dtype=torch.float64)
    radius = 0.08 + 0.2 * torch.rand(6, 1, generator=g, dtype=torch.float64)
    tips = tips / tips.norm(dim=-1, keepdim=True) * radius * n
    bends = tips + 0.05 * n * torch.randn(6, 3, generator=g, dtype=torch.float64)
    return torch.cat([tips, tips / 2, bends])


def _phantom(n: int, seed: int) -> torch.Tensor:
    return _gaussians(n, _centres(n, seed), 1.4 * n / 32).float()


def _noisy(volume: torch.Tensor, level: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(volume.shape, generator=generator)
    return volume + level * volume.std() * noise


SOME = [0, 1]  # both hands, an even and an odd box
OTHERS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20)]


@pytest.mark.parametrize("seed", [*SOME, *OTHERS])
def test_recovers_any_placement_with_noise(seed: int) -> None:
    n, pixel = (32, 3.0) if seed % 4 else (33, 2.0)
    g = torch.Generator().manual_seed(100 + seed)
    centres = _centres(n, seed)
    rotation = random_rotations(1, generator=g, dtype=torch.float64)[0]
    shift = (torch.rand(3, generator=g, dtype=torch.float64) - 0.5) * 0.25 * n
    mirrored = seed % 2 == 1
    sign = -1 if mirrored else 1
    truth = _gaussians(n, sign * centres @ rotation.mT + shift, 1.4 * n / 32).float()
    moving = _noisy(_phantom(n, seed), 0.25, g)
    fit = align_maps(moving, _noisy(truth, 0.25, g), pixel_size_angstrom=pixel)
    assert fit.mirrored == mirrored
    assert geodesic_distance_deg(fit.rotation, rotation) < 1.5
    assert (fit.shift_angstrom / pixel - shift).norm() < 0.3
    assert (fsc(fit.aligned, truth)[1:6] > 0.9).all()
    assert fit.correlation > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_heavy_noise_still_finds_the_basin(seed: int) -> None:
    n, g = 40, torch.Generator().manual_seed(3 + seed)
    volume = _phantom(n, seed)
    rotation = random_rotations(1, generator=g, dtype=torch.float64)[0]
    reference = rotate_volume(volume, -rotation, torch.tensor([5.0, -4.0, 3.0]))
    fit = align_maps(_noisy(volume, 3.0, g), _noisy(reference, 3.0, g), pixel_size_angstrom=1.0)
    assert fit.mirrored
    assert geodesic_distance_deg(fit.rotation, rotation) < 6


@pytest.mark.slow
def test_without_mirror_the_hand_stays() -> None:
    volume = _phantom(24, 1)
    fit = align_maps(
        permute_volume(volume, -torch.eye(3)), volume, pixel_size_angstrom=1.0, allow_mirror=False
    )
    assert not fit.mirrored
    assert torch.linalg.det(fit.rotation).item() == pytest.approx(1.0)
    other = align_maps(permute_volume(volume, -torch.eye(3)), volume, pixel_size_angstrom=1.0)
    assert other.mirrored
    assert other.correlation > 0.999 > fit.correlation


def test_same_map_stays_where_it_is() -> None:
    volume = _phantom(32, 2)
    fit = align_maps(volume, volume, pixel_size_angstrom=1.0)
    assert not fit.mirrored
    assert geodesic_distance_deg(fit.rotation, torch.eye(3).double()) < 0.3
    assert fit.shift_angstrom.norm() < 0.02
    assert fit.correlation > 0.9999


@pytest.mark.parametrize("name", ["D2", "D3", "T", "O", "I"])
def test_finite_families(name: str, generator: torch.Generator) -> None:
    n, group = 32, point_group(name)
    centres = (_centres(n, 5)[None] @ group.matrices.mT).reshape(-1, 3)
    moving = _gaussians(n, centres, 1.5).float()
    turns = {
        "D2": point_group("O").matrices[[0, 5, 9, 14]],
        "D3": point_group("D6").matrices[[0, 1, 7]],
    }.get(name, group.matrices[:2])
    if name == "T":  # the dual tetrahedron
        axis = torch.tensor([0.0, math.sqrt(2), 1.0]).double() / math.sqrt(3)
        turns = torch.stack([turns[0], axis_angle_to_matrix(axis * torch.pi / 2)])
    for turn in turns:
        for sign in (1, -1):
            truth = _gaussians(n, sign * centres @ turn.mT, 1.5).float()
            fit = align_maps(
                _noisy(moving, 1.0, generator),
                _noisy(truth, 1.0, generator),
                pixel_size_angstrom=1.0,
                point_group=name,
            )
            placed = rotate_volume(moving, -fit.rotation if fit.mirrored else fit.rotation)
            assert (placed - truth).norm() < 0.01 * truth.norm()
            assert fit.shift_angstrom.abs().max() == 0


def test_d2_placement_is_an_exact_permutation(generator: torch.Generator) -> None:
    group = point_group("D2")
    moving = symmetrise(torch.randn(16, 16, 16, generator=generator), group)
    turn = -point_group("O").matrices[10]
    reference = permute_volume(moving, turn)
    fit = align_maps(moving, reference, pixel_size_angstrom=1.0, point_group="D2")
    assert torch.allclose(fit.aligned, reference, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "axis"),
    [("C2", 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("C5", 2), ("D1", 0)))],
)
def test_cyclic_families(name: str, axis: int, generator: torch.Generator) -> None:
    n, group = 32, point_group(name)
    centres = (_centres(n, 7)[None] @ group.matrices.mT).reshape(-1, 3)
    moving = _gaussians(n, centres, 1.5).float()
    along = torch.eye(3).double()[axis]
    flip = axis_angle_to_matrix(torch.pi * torch.eye(3).double()[(axis + 1) % 3])
    for degrees, up, sign in ((37.0, True, 1), (123.0, False, 1), (71.0, False, -1)):
        turn = axis_angle_to_matrix(along * math.radians(degrees))
        turn = turn if up else turn @ flip
        truth = _gaussians(n, sign * centres @ turn.mT + 3.3 * along, 1.5).float()
        fit = align_maps(
            _noisy(moving, 0.3, generator),
            _noisy(truth, 0.3, generator),
            pixel_size_angstrom=2.0,
            point_group=name,
        )
        error = geodesic_distance_deg(fit.rotation, turn @ group.matrices)
        assert fit.mirrored == (sign < 0)
        assert error.min() < 1.0
        assert (fit.shift_angstrom / 2 - 3.3 * along).abs().max() < 0.2
        assert (fit.rotation @ along - (along if up else -along)).abs().max() < 1e-5


def test_resampling_keeps_the_fsc_up_to_four_fifths_of_nyquist(generator: torch.Generator) -> None:
    """White spectrum inside a ball: rotate there and back, compare with the original."""
    n = 32
    radius = (
        torch.stack(torch.meshgrid(*[torch.arange(n) - n // 2] * 3, indexing="ij"))
        .double()
        .norm(dim=0)
    )
    volume = torch.randn(n, n, n, generator=generator) * (radius < 10)
    rotation = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    there = rotate_volume(volume, rotation, torch.tensor([0.3, 0.4, -0.2]))
    back = rotate_volume(
        there, rotation.mT, -(rotation.mT @ torch.tensor([0.3, 0.4, -0.2]).double())
    )
    assert (fsc(back, volume)[: int(0.8 * n / 2) + 1] > 0.98).all()


@pytest.mark.parametrize(
    ("n", "largest"), [(36, 24), pytest.param(100, 96, marks=pytest.mark.slow)]
)
def test_large_boxes_are_searched_small(
    n: int, largest: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    monkeypatch.setattr("vitreous.maps.align._LARGEST_SEARCH_BOX", largest)
    volume = _phantom(n, 4)
    rotation = random_rotations(1, generator=generator, dtype=torch.float64)[0]
    shift = torch.tensor([9.0, -7.5, 3.25]) * n / 100
    reference = rotate_volume(volume, rotation, shift)
    fit = align_maps(volume, reference, pixel_size_angstrom=1.0)
    assert geodesic_distance_deg(fit.rotation, rotation) < 0.3
    assert (fit.shift_angstrom - shift.double()).norm() < 0.15


def test_a_search_is_quick_enough_to_run_while_solving() -> None:
    volume = _phantom(32, 0)
    other = rotate_volume(volume, axis_angle_to_matrix(torch.tensor([1.0, 2.0, 0.5])))
    start = time.process_time()
    align_maps(volume, other, pixel_size_angstrom=1.0)
    assert time.process_time() - start < 6.0  # about 0.7 s on an idle core


@pytest.mark.slow
def test_repeats_exactly_and_keeps_arguments() -> None:
    volume = _phantom(24, 0).double()
    other = rotate_volume(volume, axis_angle_to_matrix(torch.tensor([1.0, 2.0, 0.5])))
    kept = volume.clone(), other.clone()
    first, second = (align_maps(volume, other, pixel_size_angstrom=1.0) for _ in range(2))
    assert torch.equal(first.aligned, second.aligned)
    assert torch.equal(first.rotation, second.rotation)
    assert first.aligned.dtype == torch.float64
    assert torch.equal(volume, kept[0])
    assert torch.equal(other, kept[1])


def test_blank_maps_give_the_identity() -> None:
    fit = align_maps(torch.zeros(16, 16, 16), _phantom(16, 0), pixel_size_angstrom=1.0)
    assert fit.correlation == 0
    assert torch.equal(fit.rotation, torch.eye(3).double())


def test_bad_requests_are_refused() -> None:
    good = _phantom(16, 0)
    with pytest.raises(ValueError, match="reference must be"):
        align_maps(good, torch.zeros(15, 15, 15), pixel_size_angstrom=1.0)
    with pytest.raises(ValueError, match="not finite"):
        align_maps(good / 0, good, pixel_size_angstrom=1.0)
    with pytest.raises(ValueError, match="at least 8"):
        align_maps(torch.ones(4, 4, 4), torch.ones(4, 4, 4), pixel_size_angstrom=1.0)
    with pytest.raises(UsageError, match="unknown point group"):
        align_maps(good, good, pixel_size_angstrom=1.0, point_group="Q")


def test_half_ball_holds_one_of_each_pair() -> None:
    points = half_ball(4, 10_000, torch.device("cpu"))
    everything = {tuple(p) for p in torch.cat([points, -points]).long().tolist()}
    assert len(everything) == 2 * len(points)
    inside = [
        (x, y, z)
        for x in range(-5, 6)
        for y in range(-5, 6)
        for z in range(-5, 6)
        if 0 < x * x + y * y + z * z < 4.5**2
    ]
    assert everything == set(inside)
    few = half_ball(4, 50, torch.device("cpu"))
    assert len(few) == 50
    assert torch.equal(few, half_ball(4, 50, torch.device("cpu")))


@pytest.mark.parametrize("group", ["C1", "C4", "D2"])
def test_a_small_move_is_found_again(group: str, generator: torch.Generator) -> None:
    n = 40
    volume = protein_phantom(n, 4.0, seed=5, point_group=group)
    free = {"C1": torch.ones(3), "C4": torch.tensor([0.0, 0, 1]), "D2": torch.zeros(3)}[group]
    rotation = axis_angle_to_matrix(free * torch.tensor([0.03, -0.02, 0.05]))
    away = free * torch.tensor([0.6, -0.3, 0.8])
    noise = 0.3 * volume.std() * torch.randn(2, n, n, n, generator=generator)
    moved = rotate_volume(volume, rotation, away) + noise[0]
    turn, shift = align_nearby(moved, volume + noise[1], pixel_size_angstrom=4.0, point_group=group)
    assert geodesic_distance_deg(turn @ rotation.double(), torch.eye(3).double()) < 0.3
    torch.testing.assert_close(shift, -4.0 * (rotation.mT @ away).double(), atol=0.1, rtol=0)


def test_maps_without_anything_in_common_are_left_where_they_are() -> None:
    turn, shift = align_nearby(
        torch.zeros(16, 16, 16), torch.ones(16, 16, 16), pixel_size_angstrom=1
    )
    assert torch.equal(turn, torch.eye(3).double())
    assert torch.equal(shift, torch.zeros(3).double())
