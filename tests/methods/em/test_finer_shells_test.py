"""Images show the finer shells of a true map, and not those of another map or of noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import vitreous as vt
from vitreous.core.images import ImagesInMemory
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
    volume: Tensor, particles: vt.Particles, images: Tensor | None = None, used: int = 120
) -> FinerShells:
    of_particles = particles.images(invert=False, normalise=False)
    return finer_shells_test(
        (volume, volume),
        of_particles if images is None else ImagesInMemory(images),
        particles.optics,
        torch.where(torch.arange(120) < used, particles.half_set, 0),
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
    assert not replace(value, z=CERTAIN - 0.1).shown
    assert not replace(value, ratio=3.0).shown
    assert not value.unfinished
    assert replace(value, ratio=3.0).unfinished
    assert not replace(value, ratio=3.0, z=1.0).unfinished
