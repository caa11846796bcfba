"""Shells made with poses found without them: a structure stays, what poses make of noise goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from matching_case import PIXEL, Case, case
from vitreous.core.images import ImagesInMemory, shell_power
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep
from vitreous.methods.em.held_out_shells import held_out_map
from vitreous.methods.reconstruct.gridding import accumulate, half_map
from vitreous.methods.reconstruct.posed_particles import PosedParticles

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = RefinementConfig(start_resolution_angstrom=20.0, symmetry="D2", shift_range_angstrom=9.0)
COUNT = 240
HALVES = (torch.arange(COUNT // 2), torch.arange(COUNT // 2, COUNT))


def power(images: Tensor) -> Tensor:
    return shell_power(ImagesInMemory(images), torch.arange(len(images)))


def held_out(data: Case, images: Tensor) -> list[Tensor]:
    """Half maps of some images under the true map."""
    return [
        held_out_map(
            data.volume, PIXEL, images[rows], data.optics[rows], power(images[rows]), CONFIG
        )
        for rows in HALVES
    ]


def as_always(data: Case, images: Tensor) -> list[Tensor]:
    """The same with poses found by all shells."""
    maps = []
    for rows in HALVES:
        assigner = ExpectationStep(data.volume, PIXEL, [10], power(images[rows]), CONFIG)
        found = assigner(images[rows], data.optics[rows]).candidates
        particles = PosedParticles(
            ImagesInMemory(images[rows]),
            found.rotation[:, 0],
            found.shift_angstrom[:, 0],
            data.optics[rows],
            PIXEL,
            torch.ones(len(rows), dtype=torch.long),
        )
        sums, _ = accumulate(particles, symmetry="D2")
        maps.append(half_map(sums))
    return maps


@pytest.mark.slow
def test_einstein_is_not_found_in_noise() -> None:
    data = case(COUNT, symmetry="D2", noise=1.0)
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(5))
    fooled, honest = as_always(data, noise), held_out(data, noise)
    assert float(fsc(*fooled)[3:10].min()) > 0.7
    assert abs(float(fsc(*honest)[3:10].mean())) < 0.2
    assert float(fsc(fooled[0], data.volume)[3:10].min()) > 0.7
    assert abs(float(fsc(honest[0], data.volume)[3:10].mean())) < 0.2


@pytest.mark.slow
def test_a_structure_stays() -> None:
    data = case(COUNT, symmetry="D2", noise=1.0)
    told: list[float] = []
    maps = held_out(data, data.images)
    assert float(fsc(*maps)[2:9].min()) > 0.5
    assert float(fsc(maps[0], data.volume)[2:9].min()) > 0.7
    held_out_map(
        data.volume, PIXEL, data.images[:8], None, power(data.images), CONFIG, progress=told.append
    )
    assert told == pytest.approx([i / 6 for i in range(1, 7)])
