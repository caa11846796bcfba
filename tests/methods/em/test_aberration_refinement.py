"""Planted aberrations of optics groups and defocus errors of particles are found."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vitreous.core.images import ImagesInMemory, shell_power
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.data.aberrations import tilt_factors
from vitreous.data.phantoms import protein_phantom
from vitreous.io.nested import flatten_state, restore_state
from vitreous.maps.fsc import fsc
from vitreous.methods.em.aberration_refinement import AberrationTally
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import image_terms
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.micrograph_optics import ImageGroups
from vitreous.methods.em.refinement import Refinement
from vitreous.physics.aberrations import undo_distortion
from vitreous.physics.ctf import with_defocus_change
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
BOX, PIXEL = 64, 1.5
TILT, TREFOIL, TETRAFOIL = (0.3, -0.2), (8.0, -12.0), (10.0, -6.0)  # mrad; rad Å^3; turns Å^4


@dataclass(frozen=True)
class Planted:
    volume: Tensor
    images: Tensor
    noise: Tensor
    rotation: Tensor
    shift: Tensor
    optics: Optics  # as the table has them
    micrograph: Tensor
    change: Tensor  # of defocus, of each particle
    odd: Tensor  # of the first optics group; the second has none
    even: Tensor


def polynomials(optics: Optics) -> tuple[Tensor, Tensor]:
    scale = -2e-3 * math.pi * float(tilt_factors(optics.cs_mm[:1], optics.voltage_kv[:1])[0])
    odd = [0, 0, TREFOIL[0], scale * TILT[1], scale * TILT[0], TREFOIL[1]]
    even = [0] * 7 + list(TETRAFOIL)
    return torch.tensor(odd, dtype=torch.float64), torch.tensor(even, dtype=torch.float64)


@lru_cache(maxsize=2)
def planted(count: int, spread: float = 0.0) -> Planted:
    """Images of two optics groups, of which the first has aberrations."""
    stream = torch.Generator().manual_seed(5)
    volume = protein_phantom(BOX, PIXEL, seed=1, point_group="D2")
    rotation = random_rotations(count, generator=stream)
    shift = (2 * torch.randn(count, 2, generator=stream)).clamp(-4, 4)
    micrograph = torch.arange(count) // 2 % 10
    u = (8000 + 8000 * torch.rand(10, generator=stream))[micrograph]
    optics = replace(Optics.uniform(count), defocus_u_angstrom=u, defocus_v_angstrom=u - 300)
    change = spread * (2 * torch.rand(count, generator=stream) - 1)
    odd, even = polynomials(optics)
    first = torch.arange(count) % 2 == 0
    true = with_defocus_change(optics, change)
    true = replace(true, even_turns=torch.where(first[:, None], even, 0))
    clean = simulate(volume, rotation, shift, true, PIXEL)
    clean[first] = undo_distortion(clean[first], torch.eye(2), -odd, PIXEL)
    left = clean.std() * torch.randn(clean.shape, generator=stream)
    return Planted(
        volume, clean + left, left, rotation, shift, optics, micrograph, change, odd, even
    )


def estimates(data: Planted) -> tuple[Tensor, Tensor]:
    band = FrequencyBand(BOX, PIXEL, 30)
    power = shell_power(ImagesInMemory(data.noise), torch.arange(len(data.noise)))
    refiner = PoseRefiner(data.volume, band, band.noise_power(power))
    sums = AberrationTally(refiner, 2)
    for rows, terms in image_terms(refiner, data.images, data.optics, data.rotation, data.shift):
        sums.add(terms, rows % 2)
    return sums.estimates(torch.zeros(2, 6).double(), torch.zeros(2, 9).double())


def relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def check(data: Planted, odd: Tensor, even: Tensor) -> None:
    """Within a tenth in the first group; in the second below a quarter of a radian."""
    tilt, trefoil, tetrafoil = [3, 4], [2, 5], [7, 8]
    assert relative(odd[0, tilt], data.odd[tilt]) < 0.1
    assert relative(odd[0, trefoil], data.odd[trefoil]) < 0.1
    assert relative(even[0, tetrafoil], data.even[tetrafoil]) < 0.1
    edge = 30 / (PIXEL * BOX)
    assert float((odd[1, 2:] * edge**3).abs().max()) < 0.25
    assert float((2 * math.pi * even[1, 5:] * edge**4).abs().max()) < 0.25


def test_planted_aberrations_are_found_at_true_poses() -> None:
    data = planted(80)
    check(data, *estimates(data))


def task(data: Planted, **more: Any) -> Refinement:
    config = RefinementConfig(12.0, "D2", shift_range_angstrom=6.0, searches=1, **more)
    every = torch.arange(len(data.images))
    return Refinement(
        ImagesInMemory(data.images),
        data.optics,
        every // 20 % 2 + 1,
        data.volume,
        config,
        pixel_size_angstrom=PIXEL,
        groups=ImageGroups(data.micrograph, every % 2),
    )


@pytest.mark.slow
def test_rounds_find_aberrations_and_the_defocus_of_particles_and_resume() -> None:
    data = planted(120, 300.0)
    run, plain = task(data, refine_aberrations=True, refine_defocus="particle"), task(data)
    for _ in range(4):
        run.step()
        plain.step()
    aberrations = run.optics_refinement.aberrations
    assert aberrations is not None
    check(data, aberrations.odd, aberrations.even)
    change = run.optics_refinement.defocus_change()
    assert change is not None
    left = float((change - data.change).square().mean().sqrt())
    assert left < 0.3 * float(data.change.square().mean().sqrt())
    better, worse = (float(fsc(one.maps()[2], data.volume)[20:30].mean()) for one in (run, plain))
    assert better > worse + 0.04
    resumed = task(data, refine_aberrations=True, refine_defocus="particle")
    resumed.load_state_dict(restore_state(*flatten_state(run.state_dict())))
    for one in (run, resumed):
        one.step()
    for one, other in zip(run.maps(), resumed.maps(), strict=True):
        assert torch.equal(one, other)
