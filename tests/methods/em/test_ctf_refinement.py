"""Planted errors of defocus and contrast are found, and none where there are none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vitreous.core.images import ImagesInMemory, shell_power
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.io.nested import flatten_state, restore_state
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import (
    MicrographOptics,
    OpticsTally,
    image_terms,
    shrunk,
)
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.micrograph_optics import ImageGroups
from vitreous.methods.em.refinement import Refinement
from vitreous.physics.ctf import with_defocus_change
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
BOX, PIXEL, MICROGRAPHS = 64, 3.0, 10


@dataclass(frozen=True)
class Planted:
    volume: Tensor
    images: Tensor
    noise: Tensor
    rotation: Tensor
    shift: Tensor
    optics: Optics  # as the table has them
    micrograph: Tensor
    change: Tensor
    scale: Tensor


@lru_cache(maxsize=4)
def planted(wrong: bool, each: int = 30, noise: float = 3.0) -> Planted:
    """Images whose micrographs are off by up to 300 Å and 30 %, or by nothing."""
    stream = torch.Generator().manual_seed(4)
    b = MICROGRAPHS * each
    volume = protein_phantom(BOX, PIXEL, seed=1)
    rotation = random_rotations(b, generator=stream)
    shift = (3 * torch.randn(b, 2, generator=stream)).clamp(-6, 6)
    micrograph = torch.arange(b) % MICROGRAPHS
    u = (8000 + 12000 * torch.rand(MICROGRAPHS, generator=stream))[micrograph]
    optics = replace(
        Optics.uniform(b),
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 1500,
        defocus_angle_deg=180 * torch.rand(b, generator=stream),
    )
    change, scale = (
        torch.linspace(-1, 1, MICROGRAPHS)[torch.randperm(MICROGRAPHS, generator=stream)]
        for _ in range(2)
    )
    change, scale = 300 * wrong * change, 1 + 0.3 * wrong * scale
    true = with_defocus_change(optics, change[micrograph])
    clean = simulate(volume, rotation, shift, true, PIXEL) * scale[micrograph, None, None]
    left = noise * clean.std() * torch.randn(clean.shape, generator=stream)
    return Planted(volume, clean + left, left, rotation, shift, optics, micrograph, change, scale)


def tally(data: Planted, volume: Tensor | None = None) -> OpticsTally:
    band = FrequencyBand(BOX, PIXEL, 28)
    power = shell_power(ImagesInMemory(data.noise), torch.arange(len(data.noise)))
    volume = data.volume if volume is None else volume
    sums = OpticsTally(PoseRefiner(volume, band, band.noise_power(power)), MICROGRAPHS, 500.0)
    for rows in torch.split(torch.arange(len(data.images)), 128):
        of = data.images[rows], data.optics[rows], data.rotation[rows], data.shift[rows]
        for batch, terms in image_terms(sums.refiner, *of):
            sums.add(terms, data.micrograph[rows][batch])
    return sums


def in_errors(found: MicrographOptics, data: Planted) -> tuple[Tensor, Tensor]:
    """Deviations of defocus and scale from the truth, in units of their errors."""
    defocus = found.defocus_change_angstrom - data.change
    scale = found.scale - data.scale
    return defocus / found.defocus_error_angstrom, scale / found.scale_error


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_gain_is_that_of_the_ctf_with_another_defocus() -> None:
    data = planted(True)
    sums = tally(data)
    change = torch.full((MICROGRAPHS,), 200.0, dtype=torch.float64)
    moved = with_defocus_change(data.optics, change[data.micrograph])
    refiner = sums.refiner
    measured = refiner.measure(refiner.band.images(data.images), moved)
    values, slices = refiner.shift_corrected(measured, data.rotation, data.shift)
    model = slices * measured.transfer
    cross, power = torch.zeros(2, MICROGRAPHS, dtype=torch.float64)
    cross.index_add_(0, data.micrograph, (values.conj() * model).real.sum(1).double())
    power.index_add_(0, data.micrograph, model.abs().square().sum(1).double())
    log_likelihood_ratio, scale, _ = sums._fit(change)
    torch.testing.assert_close(scale, cross / power, rtol=5e-4, atol=0)
    torch.testing.assert_close(log_likelihood_ratio, cross.square() / power, rtol=1e-3, atol=0)


def test_planted_errors_are_found_within_their_errors() -> None:
    data = planted(True)
    found = tally(data).estimates(defocus=True, scale=True)
    defocus, scale = in_errors(found, data)
    assert rms(data.change) > 150
    assert rms(found.defocus_change_angstrom - data.change) < 45
    assert rms(found.scale - data.scale) < 0.02
    for deviation in (defocus, scale):
        assert 0.4 < rms(deviation) < 1.6
        assert abs(float(deviation.mean())) < 3 / MICROGRAPHS**0.5
    assert found.particles.tolist() == [30] * MICROGRAPHS


def test_nothing_changes_where_nothing_is_wrong() -> None:
    data = planted(False)
    sums = tally(data)
    change, variance = sums.changes()
    assert 0.4 < rms(change / variance.sqrt()) < 1.6
    assert abs(float(change.mean())) < 3 * float(variance.sqrt().mean()) / MICROGRAPHS**0.5
    found = sums.estimates(defocus=True, scale=True)
    assert rms(found.defocus_change_angstrom) < 0.5 * rms(change) + 1e-6
    assert rms(found.scale - 1) < 0.01
    still = sums.estimates(defocus=False, scale=False)
    assert still.defocus_change_angstrom.abs().max() == 0
    assert bool((still.scale == 1).all())


def test_a_blurred_map_is_no_wrong_defocus() -> None:
    data = planted(False)
    squared = sum(
        (torch.fft.fftfreq(BOX, PIXEL).square()).reshape([-1 if i == j else 1 for j in range(3)])
        for i in range(3)
    )
    blurred = torch.fft.ifftn(torch.fft.fftn(data.volume) * torch.exp(-100 * squared)).real
    found = tally(data, blurred).estimates(defocus=True, scale=False)
    assert abs(float(found.defocus_change_angstrom.mean())) < 30


def test_micrographs_without_particles_or_signal_stay() -> None:
    data = planted(True)
    band = FrequencyBand(BOX, PIXEL, 28)
    flat = torch.ones(BOX // 2 + 1)
    sums = OpticsTally(PoseRefiner(data.volume, band, band.noise_power(flat)), 2, 500.0)
    for count in (0, 3):
        rows = torch.arange(count)
        of = 0 * data.images[rows], data.optics[rows], data.rotation[rows], data.shift[rows]
        for batch, terms in image_terms(sums.refiner, *of):
            sums.add(terms, torch.zeros_like(batch))
    found = sums.estimates(defocus=True, scale=True)
    assert found.defocus_change_angstrom.tolist() == [0, 0]
    assert found.scale.isfinite().all()
    assert found.scale[1] == 1


def test_the_prior_is_as_wide_as_the_values_spread() -> None:
    stream = torch.Generator().manual_seed(1)
    truth = 3 * torch.randn(2000, generator=stream, dtype=torch.float64)
    error = 1 + 4 * torch.rand(2000, generator=stream, dtype=torch.float64)
    value = truth + error * torch.randn(2000, generator=stream, dtype=torch.float64)
    best = value * 9 / (9 + error**2)
    assert rms(shrunk(value, error**2) - best) < 0.1
    assert shrunk(value, torch.full_like(value, torch.inf)).abs().max() == 0


def task(data: Planted, **more: Any) -> Refinement:
    config = RefinementConfig(30.0, shift_range_angstrom=9.0, searches=1, **more)
    half = torch.arange(len(data.images)) // MICROGRAPHS % 2 + 1
    return Refinement(
        ImagesInMemory(data.images),
        data.optics,
        half,
        data.volume,
        config,
        pixel_size_angstrom=PIXEL,
        groups=ImageGroups(data.micrograph),
    )


@pytest.mark.slow
def test_rounds_find_planted_errors_and_resume() -> None:
    data = planted(True, 40, 2.0)
    run = task(data, refine_defocus="micrograph", scale="micrograph")
    for _ in range(4):
        run.step()
    saved = restore_state(*flatten_state(run.state_dict()))
    resumed = task(data, refine_defocus="micrograph", scale="micrograph")
    resumed.load_state_dict(saved)
    for one in (run, resumed):
        one.step()
    for one, other in zip(run.maps(), resumed.maps(), strict=True):
        assert torch.equal(one, other)
    assert run.optics is not None
    assert resumed.optics is not None
    assert torch.equal(run.optics.defocus_u_angstrom, resumed.optics.defocus_u_angstrom)
    assert run.optics_refinement.micrographs is not None
    for found in run.optics_refinement.micrographs.estimates:
        assert found is not None
        defocus, scale = in_errors(found, data)
        assert rms(defocus) < 1.8
        assert rms(scale) < 1.8
        assert found.defocus_error_angstrom.max() < 70
    moved = run.optics.defocus_u_angstrom - data.optics.defocus_u_angstrom
    assert rms(moved - data.change[data.micrograph]) < 60
    torch.testing.assert_close(
        run.poses().scale, run.optics_refinement.micrographs.scale(), atol=0.05, rtol=0
    )


@pytest.mark.slow
def test_particles_enter_by_their_contrast() -> None:
    stream = torch.Generator().manual_seed(7)
    data = planted(False, 40, 4.0)
    contrast = 0.2 + 1.6 * torch.rand(len(data.images), generator=stream)
    clean = data.images - data.noise
    varied = replace(data, images=clean * contrast[:, None, None] + data.noise)
    told = {}
    for scale in ("one", "image"):
        run = task(varied, scale=scale)
        for _ in range(4):
            run.step()
        told[scale] = float(fsc(run.maps()[2], data.volume)[4:24].mean())
    assert run.optics_refinement.particles is not None
    assert told["image"] > told["one"] + 0.01
    found, true = run.optics_refinement.particles.scale(), contrast / contrast.mean()
    assert float(torch.corrcoef(torch.stack([found, true]))[0, 1]) > 0.9
    resumed = task(varied, scale="image")
    resumed.load_state_dict(restore_state(*flatten_state(run.state_dict())))
    for one in (run, resumed):
        one.step()
    assert torch.equal(run.maps()[2], resumed.maps()[2])


@pytest.mark.slow
def test_equal_particles_stay_equal() -> None:
    run = task(planted(False, 40, 4.0), scale="image")
    for _ in range(3):
        run.step()
    assert run.optics_refinement.particles is not None
    assert rms(run.optics_refinement.particles.scale() - 1) < 0.05


def test_micrographs_must_be_given() -> None:
    data = planted(False)
    half = torch.arange(len(data.images)) % 2 + 1
    for more in ({"refine_defocus": "micrograph"}, {"scale": "micrograph"}):
        with pytest.raises(ValueError, match="need micrograph_id and optics"):
            Refinement(
                ImagesInMemory(data.images),
                data.optics,
                half,
                data.volume,
                RefinementConfig(30.0, **more),
                pixel_size_angstrom=PIXEL,
            )
