"""Where the scores of particles begin: many, few and no particles."""

import numpy as np
import pytest
import torch

from vitreous.core.random import with_random_phases
from vitreous.methods.pick.threshold import score_threshold

RNG = np.random.default_rng(5)
NOISE = RNG.normal(0.15, 0.05, 2000)


@pytest.mark.parametrize("count", [60, 1000, 20000])
def test_threshold_parts_particles_from_noise(count):
    particles = RNG.normal(0.5, 0.07, count)
    limit = score_threshold(np.concatenate([NOISE, particles]), RNG.normal(0.15, 0.05, 500))
    assert limit.clear
    assert (particles > limit.threshold).mean() > 0.97
    assert (limit.threshold < NOISE).sum() < 0.03 * count + 2
    assert limit.mean == pytest.approx(0.5, abs=0.03)


def test_noise_alone_has_no_particles():
    limit = score_threshold(NOISE, RNG.normal(0.15, 0.05, 2000))
    assert not limit.clear
    assert (limit.threshold < NOISE).mean() < 0.005


def test_scores_far_below_those_of_noise():
    limit = score_threshold(np.full(10, 0.01), NOISE)
    assert (limit.clear, limit.threshold) == (False, NOISE.max())


def test_random_phases_keep_the_spectrum_only():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    image = ((x - 20) ** 2 + (y - 30) ** 2 < 25).float() + 3
    noise = with_random_phases(image - image.mean(), torch.Generator().manual_seed(1))
    power = [torch.fft.rfft2(one - one.mean()).abs()[1:-1, 1:-1] for one in (image, noise)]
    assert torch.allclose(*power, atol=1e-3)
    assert abs(float(torch.corrcoef(torch.stack([image.flatten(), noise.flatten()]))[0, 1])) < 0.2
