"""Which class maps are one structure in two frames, where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import radius_grid
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix, geodesic_distance_deg
from vitreous.data.phantoms import protein_phantom
from vitreous.methods.hetero.class_maps import ClassMap
from vitreous.methods.hetero.merge_classes import (
    _SAME_STRUCTURE,
    Superposition,
    distinct_maps,
    duplicate_maps,
    superpose,
)
from vitreous.methods.reconstruct.half_maps import HalfMapComparison

BOX, PIXEL = 24, 10.0
TURN = axis_angle_to_matrix(torch.tensor([0.5, -0.8, 0.4]))  # 59 degrees
MOVE = torch.tensor([1.5, -0.5, 1.0])  # pixels
SLIGHT = axis_angle_to_matrix(torch.tensor([0.05, -0.06, 0.0]))


@pytest.fixture(scope="module")
def whole() -> Tensor:
    volume = protein_phantom(BOX, PIXEL, seed=5).float()
    return volume / volume.std()


@pytest.fixture(scope="module")
def part(whole: Tensor) -> Tensor:
    """Without the quarter of its mass that lies farthest along x."""
    mass = whole.clamp(min=0).sum((0, 1))
    cut = int((mass.cumsum(0) / mass.sum() < 0.75).sum())
    ramp = ((cut - torch.arange(BOX)) / 2.0).clamp(0, 1)
    return whole * ramp


def seen(volume: Tensor, noise: float, seed: int) -> ClassMap:
    """A map as reconstructed: two noisy halves and their mean, low-passed a little."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.exp(-((radius_grid(BOX, 3) / 9.0) ** 2))
    parts = []
    for _ in range(2):
        white = torch.randn(volume.shape, generator=generator)
        spectrum = torch.fft.fftshift(torch.fft.fftn(white)) * keep
        parts.append(volume + noise * torch.fft.ifftn(torch.fft.ifftshift(spectrum)).real)
    comparison = HalfMapComparison(PIXEL, None)
    average = 0.5 * (parts[0] + parts[1])
    compared = comparison.compare(parts[0], parts[1])
    return ClassMap(average, comparison.halves(parts[0], parts[1], average, *compared))


def pair(moving: Tensor, reference: Tensor) -> Superposition:
    found = superpose(seen(moving, 0.5, 1), seen(reference, 0.3, 2), PIXEL)
    assert found is not None
    return found


@pytest.mark.slow
def test_one_structure_in_two_frames_is_one(whole: Tensor) -> None:
    found = pair(rotate_volume(whole, TURN, MOVE), whole)
    angle = float(geodesic_distance_deg(TURN, torch.eye(3)))
    assert found.angle_deg == pytest.approx(angle, abs=3)
    assert found.agreement > _SAME_STRUCTURE + 0.03
    assert found.duplicate


@pytest.mark.parametrize("turned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_differs_is_two_in_either_frame(whole: Tensor, part: Tensor, turned: bool) -> None:
    found = pair(rotate_volume(part, TURN, MOVE) if turned else part, whole)
    assert found.agreement < _SAME_STRUCTURE - 0.03
    assert not found.duplicate


def test_in_one_frame_nothing_is_joined(whole: Tensor) -> None:
    """What put them into two classes is finer than maps tell, and poses need no other frame."""
    found = pair(rotate_volume(whole, SLIGHT), whole)
    assert found.agreement > _SAME_STRUCTURE
    assert not found.other_frame
    assert not found.duplicate


@pytest.mark.slow
def test_the_better_map_stands_for_both(whole: Tensor, part: Tensor) -> None:
    turned = rotate_volume(whole, TURN, MOVE)
    classes = [seen(turned, 0.6, 1), None, seen(part, 0.3, 2), seen(whole, 0.3, 3)]
    told: list[float] = []
    maps, stands = distinct_maps(classes, PIXEL, report_progress=told.append)
    assert stands == [3, -1, 2, 3]
    assert [torch.equal(one, classes[k].volume) for one, k in zip(maps, (2, 3), strict=True)]
    assert maps.shape == (2, BOX, BOX, BOX)
    assert told[-1] == 1.0
    with pytest.raises(ValueError, match="no class has enough particles"):
        distinct_maps([None, None], PIXEL)


def test_of_copies_the_one_in_a_frame_of_its_own_goes() -> None:
    """Whichever costs less by chance, and however many images either has: maps 1 and 2 belong."""
    turned = axis_angle_to_matrix(torch.tensor([0.0, 1.0, 0.0]))
    for counts, chance in (((30, 10, 10), 0.1), ((10, 30, 10), -0.1)):
        own = torch.arange(3).repeat_interleave(torch.tensor(counts))
        likelihood = torch.full((len(own), 3), 90.0)
        likelihood[torch.arange(len(own)), own] = 100.0
        likelihood[own == 0, 1], likelihood[own == 1, 0] = 99.0 - chance, 99.0 + chance
        rotation = torch.eye(3).expand(len(own), 3, 3, 3).clone()
        rotation[:, 0] = turned
        assert duplicate_maps(likelihood, rotation, 0.25) == [0]


def test_duplicates_are_recognised_by_likelihood_and_frame() -> None:
    """Ten images of each of four maps; the second is like the first, the fourth unlike all."""
    own = torch.arange(4).repeat_interleave(10)
    likelihood = torch.full((40, 4), 20.0)
    likelihood[torch.arange(40), own] = 100.0
    likelihood[own == 1, 0], likelihood[own == 2, 0] = 90.0, 85.0
    turned = axis_angle_to_matrix(torch.tensor([0.0, 1.0, 0.0]))
    rotation = torch.eye(3).expand(40, 4, 3, 3).clone()
    assert duplicate_maps(likelihood, rotation, 0.25) == []  # all in one frame
    rotation[:, 1], rotation[:, 3] = turned, turned
    assert duplicate_maps(likelihood, rotation, 0.25) == [1]
    assert duplicate_maps(likelihood, rotation, 0.05) == []
    rotation[:, 2] = axis_angle_to_matrix(torch.tensor([1.0, 0.0, 0.0]))
    assert duplicate_maps(likelihood, rotation, 0.25) == [1, 2]
    half_turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi]))
    rotation[:, 1], rotation[:, 2] = half_turn, half_turn
    assert duplicate_maps(likelihood, rotation, 0.25) == [1, 2]
    assert duplicate_maps(likelihood, rotation, 0.25, "C2") == []
    assert duplicate_maps(likelihood, None, 0.25) == []
