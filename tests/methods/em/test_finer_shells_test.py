"""Images show the finer shells of a true map, and not those of another map or of noise."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vitreous as vt
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Pose
from vitreous.core.symmetry import point_group
from vitreous.maps.fsc_warnings import without_spherical_mean
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.finer_shells_test import CERTAIN, FinerShells, finer_shells_test

pytestmark = pytest.mark.usefixtures("one_thread")
BOX, PIXEL, RESOLUTION = 24, 8.0, 19.2  # ten shells
CONFIG = RefinementConfig(symmetry="D2", shift_range_angstrom=0.0)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return vt.phantom(BOX, PIXEL, seed=2, symmetry="D2")


@pytest.fixture(scope="module")
def particles(truth: Tensor) -> vt.Particles:
    return vt.simulate(truth, 120, PIXEL, snr_db=0.0, seed=3).with_half_sets(seed=1)


def judged(
    volume: Tensor,
    particles: vt.Particles,
    images: Tensor | None = None,
    used: int = 120,
    rotation: Tensor | None = None,
) -> FinerShells:
    of_particles = particles.images(invert=False, normalise=False)
    if rotation is None:
        assert particles.pose is not None
        rotation = particles.pose.rotation
    pose = Pose(rotation, torch.zeros(120, 2))
    poses = SimpleNamespace(pose=pose, kept=torch.arange(120) < used)
    refined: Any = SimpleNamespace(half1=volume, half2=volume, poses=poses)
    return finer_shells_test(
        refined,
        of_particles if images is None else ImagesInMemory(images),
        particles.optics,
        particles.half_set,
        RESOLUTION,
        CONFIG,
        pixel_size_angstrom=PIXEL,
    )


def test_the_true_map_is_shown(truth: Tensor, particles: vt.Particles) -> None:
    found = judged(truth, particles)
    assert found.shown
    assert found.z > 1.5 * CERTAIN
    assert found.ratio == pytest.approx(1, abs=0.15)
    assert found.images == 120
    assert found.finer_angstrom == pytest.approx(RESOLUTION)
    assert found.coarse_angstrom == pytest.approx(BOX * PIXEL / 7)
    assert judged(truth, particles, used=80).images == 80
    assert found.stability == pytest.approx(1, abs=0.1)
    assert found.standing_out == pytest.approx(1, abs=0.15)


def test_a_map_that_accounts_for_half_of_the_signal(truth: Tensor, particles: vt.Particles) -> None:
    found = judged(truth / 2**0.5, particles)
    assert found.standing_out == pytest.approx(2, abs=0.3)
    assert found.z > CERTAIN
    assert not found.shown
    crowded = torch.ones(BOX, BOX)
    crowded[4:-4, 4:-4] = 0  # neighbours in the corners
    noise = torch.randn(120, BOX, BOX, generator=torch.Generator().manual_seed(1))
    images = particles.images(invert=False, normalise=False).read(torch.arange(120))
    assert judged(truth, particles, images + 2 * noise * crowded).standing_out < 1


def test_poses_that_are_not_found_again_are_no_end(truth: Tensor, particles: vt.Particles) -> None:
    assert particles.pose is not None
    rotation = particles.pose.rotation.clone()
    mates = point_group("D2").matrices.float()
    rotation[::2] = rotation[::2] @ mates[1]  # the same views
    assert judged(truth, particles, rotation=rotation).stability == pytest.approx(1, abs=0.1)
    rotation[::2] = rotation[::2].roll(1, 0)
    found = judged(truth, particles, rotation=rotation)
    assert found.stability == pytest.approx(0.5, abs=0.1)
    assert found.unfinished
    assert not found.shown


def test_other_fine_shells_are_not(truth: Tensor, particles: vt.Particles) -> None:
    """The spherical mean is right, which shows no orientation; or everything but the sign is."""
    sphere = truth - without_spherical_mean(truth)
    other = vt.phantom(BOX, PIXEL, seed=9, symmetry="D2")
    assert not judged(sphere + without_spherical_mean(other), particles).shown
    assert not judged(-truth, particles).shown


def test_noise_shows_nothing(truth: Tensor, particles: vt.Particles) -> None:
    noise = torch.randn(120, BOX, BOX, generator=torch.Generator().manual_seed(1))
    assert abs(judged(truth, particles, noise).z) < CERTAIN


def test_bounds() -> None:
    value = FinerShells(CERTAIN, 1.0, 30.0, 20.0, 100)
    assert value.shown
    assert not replace(value, stability=0.7).shown
    assert replace(value, stability=0.7).unfinished
    assert not replace(value, z=CERTAIN - 0.1).shown
    assert not replace(value, ratio=3.0).shown
    assert not replace(value, standing_out=1.6).shown
    assert not replace(value, standing_out=1.6).unfinished
    assert replace(value, standing_out=0.3).shown
    assert not value.unfinished
    assert replace(value, ratio=3.0).unfinished
    assert not replace(value, ratio=3.0, z=1.0).unfinished


@pytest.mark.parametrize(("far", "asked"), [(True, 10), (False, 120)])
def test_more_images_are_asked_only_where_a_few_leave_it_open(
    truth: Tensor, particles: vt.Particles, monkeypatch: pytest.MonkeyPatch, far: bool, asked: int
) -> None:
    monkeypatch.setattr("vitreous.methods.em.finer_shells_test._FEWER", 5)
    monkeypatch.setattr(FinerShells, "clear", property(lambda _: far))
    assert judged(truth, particles).images == asked


def test_clear_is_far_from_every_bound() -> None:
    least = FinerShells(2 * CERTAIN, 1.0, 10.0, 7.5, 250, stability=0.95, standing_out=1.2)
    assert least.clear
    for worse in ({"z": 13.0}, {"ratio": 1.6}, {"stability": 0.94}, {"standing_out": 1.3}):
        assert not replace(least, **worse).clear
