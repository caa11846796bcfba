"""Maps of a refinement's round by total variation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vitreous as vt
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.em.regularised_maps import RegularisedMaps
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    half_map,
    noise_to_signal,
    particle_sphere,
    wiener_map,
)
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.insertion import Gridding

BOX, PIXEL = 24, 6.0


@pytest.fixture(scope="module")
def particles() -> vt.Particles:
    truth = vt.phantom(BOX, PIXEL, seed=4, symmetry="C4")
    return vt.simulate(truth, 150, PIXEL, snr_db=-8, seed=2).with_half_sets(seed=2)


@pytest.fixture(scope="module")
def sums(particles: vt.Particles) -> tuple[Gridding, Gridding]:
    assert particles.pose is not None
    posed = PosedParticles(
        particles.images(), particles.pose.rotation, None, particles.optics, PIXEL,
        particles.half_set,
    )  # fmt: skip
    return accumulate(posed, symmetry="C4")


def agreement(volume: Tensor, truth: Tensor) -> float:
    return float(fsc(volume, truth)[1 : BOX // 2].sum())


def test_total_variation_is_nearer_to_the_truth_than_wiener(
    sums: tuple[Gridding, Gridding],
) -> None:
    truth = vt.phantom(BOX, PIXEL, seed=4, symmetry="C4")
    sphere, white = particle_sphere(BOX, 1.0), [torch.ones(BOX // 2 + 1)] * 2
    maps = RegularisedMaps()
    ratio = noise_to_signal(fsc(*(half_map(one) for one in sums)))
    rivals = [wiener_map(one, 2 * ratio) * sphere for one in sums]
    halves = maps.half_maps(sums, white, sphere, rivals)
    assert maps.preferred
    for regularised, wiener in zip(halves, rivals, strict=True):
        assert agreement(regularised, truth) > agreement(wiener, truth) + 0.3
    of_all = maps.map_of_all(sums, white, sphere)
    assert agreement(of_all, truth) > max(agreement(one, truth) for one in halves)
    known = wiener_map(sums[0] + sums[1], ratio) * sphere
    assert 0.8 < float((of_all * known).sum() / known.square().sum()) < 1.2  # the grey scale


def test_noisy_shells_count_less(sums: tuple[Gridding, Gridding]) -> None:
    sphere, white = particle_sphere(BOX, 1.0), torch.ones(BOX // 2 + 1)
    blind = white.clone()
    blind[6:] = 1e6
    coarse, fine = RegularisedMaps(), RegularisedMaps()
    nothing = [torch.zeros(BOX, BOX, BOX)] * 2
    few = coarse.half_maps(sums, [blind] * 2, sphere, nothing)[0]
    full = fine.half_maps(sums, [white] * 2, sphere, nothing)[0]
    power = [torch.fft.rfftn(one).abs().square() for one in (few, full)]
    outer = torch.arange(BOX // 2 + 1) > 8
    assert float(power[0][0, 0, outer].sum()) < 0.3 * float(power[1][0, 0, outer].sum())


def test_wiener_maps_that_fit_better_stay(sums: tuple[Gridding, Gridding]) -> None:
    sphere, white = particle_sphere(BOX, 1.0), [torch.ones(BOX // 2 + 1)] * 2
    swapped = [half_map(one) * sphere for one in reversed(sums)]  # no misfit at all
    maps = RegularisedMaps()
    assert maps.half_maps(sums, white, sphere, swapped) is swapped
    assert not maps.preferred


def test_a_refinement_goes_on_bit_for_bit() -> None:
    truth = vt.phantom(16, 8.0, symmetry="D2")
    few = vt.simulate(truth, 60, 8.0, snr_db=0, seed=1).with_half_sets(seed=1)
    config = RefinementConfig(
        symmetry="D2", start_resolution_angstrom=40.0, shift_range_angstrom=0.0, prior="tv"
    )

    def begun() -> Refinement:
        assert few.half_set is not None
        return Refinement(few.images(), few.optics, few.half_set, truth, config)

    whole, parts = begun(), begun()
    whole.step()
    parts.load_state_dict(whole.state_dict())
    whole.step()
    parts.step()
    assert whole.regularised.strength > 0
    assert torch.equal(whole.result().map, parts.result().map)
    assert torch.equal(whole.references[0], parts.references[0])


def test_one_map_has_no_strength() -> None:
    particles = vt.simulate(vt.phantom(16, 8.0), 20, 8.0, snr_db=0, seed=1).with_half_sets(seed=1)
    config = RefinementConfig(start_resolution_angstrom=40.0, one_map=True, prior="tv")
    assert particles.half_set is not None
    with pytest.raises(ValueError, match="one_map"):
        Refinement(
            particles.images(), particles.optics, particles.half_set, torch.ones(16, 16, 16), config
        )
