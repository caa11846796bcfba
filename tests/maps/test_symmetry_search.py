"""Symmetry of phantoms in any orientation, off centre, in noise; and of one that has none."""

from __future__ import annotations

import math

import pytest
import torch

from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.fsc import fsc
from vitreous.maps.registration import Registration
from vitreous.maps.symmetry_frames import GROUPS, Frame, refine_frames
from vitreous.maps.symmetry_search import find_symmetry, symmetry_agreement, to_standard
from vitreous.metrics.image import correlation

N, PIXEL = 32, 6.0
pytestmark = pytest.mark.usefixtures("one_thread")


def tilted_halves(name: str, noise: float, seed: int = 1):
    """A phantom turned and shifted, its half maps, and the truth."""
    draw = torch.Generator().manual_seed(seed)
    standard = protein_phantom(N, PIXEL, seed=seed, point_group=name)
    standard = standard / standard.std()
    rotation = random_rotations(1, generator=draw, dtype=torch.float64)[0]
    shift = torch.tensor([1.4, -0.8, 0.6])
    truth = rotate_volume(standard, rotation, shift)
    noises = noise * torch.randn(2, N, N, N, generator=draw)
    return truth + noises[0], truth + noises[1], truth


def search(half1: torch.Tensor, half2: torch.Tensor):
    stream = torch.Generator().manual_seed(0)
    return find_symmetry(half1, half2, pixel_size_angstrom=PIXEL, generator=stream)


@pytest.mark.parametrize(
    ("name", "noise"),
    [("C4", 4.0), *(pytest.param(g, 4.0, marks=pytest.mark.slow) for g in ("D2", "O"))],
)
def test_the_group_its_axes_and_the_evidence(name: str, noise: float) -> None:
    half1, half2, truth = tilted_halves(name, noise)
    found = search(half1, half2)
    assert found.group == name
    assert found.verdict.startswith(f"{name}: ")
    best = found.best
    assert best.holds
    assert best.weakest > 0.85
    assert best.agreement == pytest.approx(1.0, abs=0.08)
    assert best.weakest > best.chance + 0.1
    assert all(one.order < best.order for one in found.candidates[1:] if one.holds)
    standard = to_standard(truth, best, PIXEL)
    group = point_group(name)
    assert float(correlation(symmetrise(standard, group), standard, 3)) > 0.96
    assert float(correlation(symmetrise(truth, group), truth, 3)) < 0.8
    # the evidence, by another way: rotate the second half map itself
    n = float(len(truth))
    turns, shifts = Frame(
        group, best.rotation, -best.rotation.mT @ best.shift_angstrom / PIXEL, math.nan
    ).operators()
    curve = fsc(half1, rotate_volume(half2, turns[0], shifts[0].float()))
    plain = fsc(half1, half2)
    low = slice(2, int(n * PIXEL / found.resolution_angstrom))
    assert (curve[low] - plain[low]).abs().mean() < 0.12


@pytest.mark.slow
def test_no_symmetry_where_there_is_none() -> None:
    half1, half2, _ = tilted_halves("C1", 2.0)
    found = search(half1, half2)
    assert found.group == "C1"
    assert found.best is None
    assert "no symmetry" in found.verdict
    assert not any(one.holds for one in found.candidates)
    assert max(one.weakest for one in found.candidates) < 0.6


def test_noise_cannot_tell() -> None:
    draw = torch.Generator().manual_seed(2)
    half1, half2 = torch.randn(2, N, N, N, generator=draw)
    found = search(half1, half2)
    assert (found.group, found.candidates) == ("C1", ())
    assert found.verdict.startswith("cannot tell")
    assert math.isnan(symmetry_agreement(half1, half2, "C2"))


def test_agreement_about_given_axes() -> None:
    truth = protein_phantom(N, PIXEL, seed=3, point_group="D2")
    noise = truth.std() * torch.randn(2, N, N, N, generator=torch.Generator().manual_seed(0))
    half1, half2 = truth + noise[0], truth + noise[1]
    assert symmetry_agreement(half1, half2, "C1") == 1.0
    assert symmetry_agreement(half1, half2, "D2") > 0.95
    assert symmetry_agreement(half1, half2, "D4") < 0.5
    assert symmetry_agreement(half1, half2, "T") < 0.5


@pytest.mark.parametrize("name", ["C5", "D3", "I"])
def test_frames_are_refined_to_the_true_axes(name: str) -> None:
    volume = protein_phantom(N, PIXEL, seed=5, point_group=name)
    group = point_group(name)
    off = random_rotations(1, generator=torch.Generator().manual_seed(1))[0].double()
    small = torch.matrix_exp(0.08 * (off - off.mT))
    engine = Registration(volume, volume)
    engine.use(10)
    start = Frame(group, small, torch.tensor([0.5, -0.3, 0.0]).double(), 1.0)
    (frame,) = refine_frames(engine, [start], 8)
    exact = Frame(group, torch.eye(3).double(), torch.zeros(3).double(), 1.0)
    turns, _ = frame.operators()
    error = geodesic_distance_deg(turns, exact.operators()[0])
    before = geodesic_distance_deg(start.operators()[0], exact.operators()[0])
    assert before.max() > 4
    assert error.max() < 0.6
    assert frame.centre_px[:2].norm() < 0.1


@pytest.mark.slow
def test_a_ring_too_coarse_to_count_is_doubted() -> None:
    """Folds that exclude one another cannot both be right, and the verdict must say so."""
    angle = torch.linspace(0, 2 * math.pi, 201)[:-1]
    axis = torch.arange(N).float() - N // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    ring = torch.zeros(N, N, N)
    for a in angle:
        ring += torch.exp(-((x - 8 * a.cos()) ** 2 + (y - 8 * a.sin()) ** 2 + z**2) / 6)
    noise = ring.std() * torch.randn(2, N, N, N, generator=torch.Generator().manual_seed(0))
    found = search(ring + noise[0], ring + noise[1])
    assert found.group != "C1"
    assert "too coarse to tell" in found.verdict


def test_groups_are_known() -> None:
    assert len({point_group(name).name for name in GROUPS}) == len(GROUPS)


def test_boxes_are_checked() -> None:
    stream = torch.Generator()
    with pytest.raises(ValueError, match="finite cubes"):
        find_symmetry(
            torch.zeros(8, 8, 9), torch.zeros(8, 8, 9), pixel_size_angstrom=1.0, generator=stream
        )
    with pytest.raises(ValueError, match="boxes differ"):
        find_symmetry(
            torch.zeros(16, 16, 16),
            torch.zeros(18, 18, 18),
            pixel_size_angstrom=1.0,
            generator=stream,
        )
