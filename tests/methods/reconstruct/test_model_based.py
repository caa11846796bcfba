"""Regularised reconstruction from few noisy images of a known volume."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache
from multiprocessing import get_context

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.fsc import fsc
from vitreous.methods.reconstruct.gridding import reconstruct_halves
from vitreous.methods.reconstruct.half_maps import reconstruct
from vitreous.methods.reconstruct.model_based import (
    ModelBased,
    ModelBasedMaps,
    accumulate,
    support,
)
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.loop import run
from vitreous.physics.kaiser_bessel.normal_equations import NormalAccumulator, NormalEquations
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")

N, PIXEL, COUNT = 20, 6.0, 60
Imaged = tuple[Tensor, Tensor, Tensor, Optics, Tensor]
Pair = tuple[NormalEquations, NormalEquations]


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def truth() -> Tensor:
    return protein_phantom(N, PIXEL, seed=4)


@cache
def imaged() -> Imaged:
    """60 images at 0 dB, shifted and defocused, of alternating half sets."""
    rotations = random_rotations(COUNT, generator=stream(2))
    shift = 5 * torch.randn(COUNT, 2, generator=stream(3))
    defocus = 8000 + 12000 * torch.rand(COUNT, generator=stream(4))
    optics = replace(
        Optics.uniform(COUNT), defocus_u_angstrom=defocus, defocus_v_angstrom=defocus - 900
    )
    images = simulate(truth(), rotations, shift, optics, PIXEL)
    images = images + images.std() * torch.randn(images.shape, generator=stream(6))
    return images, rotations, shift, optics, torch.arange(COUNT) % 2 + 1


def sums(config: ModelBasedConfig, scale: int, box_size: int | None = None) -> Pair:
    images, rotations, shift, optics, half = imaged()
    particles = PosedParticles(ImagesInMemory(images), rotations, shift, optics, PIXEL, half)
    return accumulate(particles, config.basis, scale, box_size=box_size)


def solver(config: ModelBasedConfig, radius_px: float | None = None) -> ModelBased:
    def summed(scale: int, progress: object) -> Pair:
        return sums(config, scale)

    return ModelBased(summed, N, config, radius_px=radius_px)


def solve(config: ModelBasedConfig) -> ModelBasedMaps:
    return run(solver(config))


def agreement(volume: Tensor) -> float:
    return float(fsc(volume, truth())[1:].mean())


def test_both_halves_are_summed_in_one_pass() -> None:
    images, rotations, shift, optics, half = imaged()
    half = torch.where(torch.arange(COUNT) < 3, 0, half)  # 0: in neither
    window = KaiserBessel()
    particles = PosedParticles(ImagesInMemory(images), rotations, shift, optics, PIXEL, half)
    for number, equations in zip((1, 2), accumulate(particles, window, 2), strict=True):
        mine = half == number
        alone = NormalAccumulator(N, window, 2)
        alone.insert(images[mine], rotations[mine], shift[mine], optics[mine], PIXEL)
        expected = alone.equations().right_hand_side
        assert equations.images == int(mine.sum())
        assert torch.allclose(equations.right_hand_side, expected, atol=1e-4 * expected.abs().max())


def summed(rows: tuple[int, int]) -> Pair:
    """Work of one process."""
    torch.set_num_threads(1)
    images, rotations, shift, optics, half = imaged()
    mine = slice(*rows)
    where = rotations[mine], shift[mine], optics[mine], PIXEL, half[mine]
    return accumulate(PosedParticles(ImagesInMemory(images[mine]), *where), KaiserBessel(), 2)


@pytest.mark.slow
def test_sums_of_several_processes_add_up() -> None:
    whole = summed((0, COUNT))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(summed, [(0, 25), (25, COUNT)])
    volume = torch.randn(whole[0].operator.domain_shape, generator=stream(7))
    for half in (0, 1):
        together = first[half] + second[half]
        assert together.images == whole[half].images
        for got, expected in (
            (together.gradient(volume), whole[half].gradient(volume)),
            (together.objective(volume), whole[half].objective(volume)),
        ):
            assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))


def test_cropped_images_measure_the_cropped_volume() -> None:
    config = ModelBasedConfig(scales=(1,))
    (first, second) = sums(config, 1, box_size=14)
    volume = config.basis.analyse(fourier_resize(truth(), 14, 3))
    everything = first + second
    right, left = everything.right_hand_side, everything.operator(volume)
    assert float((right * left).sum() / (right.norm() * left.norm())) > 0.95
    assert float((right * left).sum() / left.square().sum()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("regulariser", "least"),
    [("tv", 0.1), pytest.param("wavelet", 0.02, marks=pytest.mark.slow), ("l2", 0.05)],
)
def test_a_prior_beats_none_on_few_noisy_images(regulariser: str, least: float) -> None:
    maps = solve(ModelBasedConfig(regulariser, scales=(1,), iterations=30))
    images, rotations, shift, optics, half = imaged()
    halves = reconstruct_halves(images, rotations, shift, optics, PIXEL, half)
    assert agreement(maps.average) > agreement((halves[0] + halves[1]) / 2) + least
    assert 0.7 < float((maps.average * truth()).sum() / truth().square().sum()) < 1.1
    assert agreement(maps.average) > max(agreement(maps.half1), agreement(maps.half2))


@pytest.mark.slow
def test_coarse_to_fine_ends_where_the_fine_scale_alone_does() -> None:
    alone, staged = solve(ModelBasedConfig(scales=(1,))), solve(ModelBasedConfig(scales=(2, 1)))
    (only,), (coarse, fine) = alone.searches, staged.searches
    assert (coarse.scale, fine.scale) == (2, 1)
    assert len(fine.tried) < len(only.tried)
    assert staged.strength == pytest.approx(alone.strength, rel=0.3)
    assert agreement(staged.average) == pytest.approx(agreement(alone.average), abs=0.01)


def test_a_given_strength_is_that_of_all_images() -> None:
    found = solve(ModelBasedConfig(scales=(2,)))
    assert found.strength == pytest.approx(2**0.5 * found.searches[0].strength)
    given = solve(ModelBasedConfig(scales=(2,), strength=found.strength))
    assert given.searches == ()
    assert given.strength == found.strength
    assert torch.allclose(
        given.average, found.average, atol=0.02 * float(found.average.abs().max())
    )


def test_density_is_within_the_sphere_and_positive() -> None:
    config = ModelBasedConfig(scales=(1,), strength=1.0, iterations=5)
    inside = run(solver(config, radius_px=5.0)).coefficients[2]
    assert inside.min() == 0
    assert not inside[~support(N, 1, 5.0)].any()
    assert solve(replace(config, nonnegative=False)).coefficients[2].min() < 0


@pytest.mark.parametrize("strength", [pytest.param(None, marks=pytest.mark.slow), 1.0])
def test_a_run_goes_on_bit_for_bit(strength: float | None) -> None:
    """From the start, amid a search at either scale, between parts, and amid a map."""
    config = ModelBasedConfig(scales=(2, 1), strength=strength, iterations=8, tolerance=0.0)
    whole, states = solver(config), []
    with pytest.raises(ValueError, match="not solved yet"):
        whole.result()
    while not whole.done:
        states.append((whole.progress, deepcopy(whole.state_dict())))
        whole.step()
    shares = [share for share, _ in states]
    assert shares == sorted(shares)
    assert whole.label == {"step": 7}
    for _, state in states[:: max(1, len(states) // 3)]:
        again = solver(config)
        again.load_state_dict(state)
        found = run(again)
        assert torch.equal(found.average, whole.result().average)
        assert torch.equal(found.half2, whole.result().half2)
        assert found.searches == whole.result().searches


def test_one_call_from_images_to_maps() -> None:
    images, rotations, shift, optics, half = imaged()
    data = ImagesInMemory(images), Pose(rotations, shift), optics, half, PIXEL
    config = ModelBasedConfig(scales=(2,), iterations=20)
    direct, regularised = reconstruct(*data), reconstruct(*data, prior=config)
    halves = reconstruct_halves(images, rotations, shift, optics, PIXEL, half)
    assert torch.equal(direct.half1, halves[0])
    assert direct.confirmed is None
    assert torch.equal(regularised.average, solve(config).average)
    assert regularised.confirmed_at == regularised.headline
    masked = reconstruct(*data, mask_diameter_angstrom=60.0, prior=config).average
    assert not masked[0].any()


def test_settings_are_checked() -> None:
    for scales in ((1, 2), (2, 2), (0,), ()):
        with pytest.raises(ValidationError, match="scales"):
            ModelBasedConfig(scales=scales)
    with pytest.raises(ValidationError, match="regulariser"):
        ModelBasedConfig(regulariser="tvv")
