"""Preparing images: exact resampling, laws of the normalisations, sizes."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.core.grid import radius_grid
from vitreous.core.params import Optics
from vitreous.data.prepare import (
    Preparation,
    Preparer,
    crop_window,
    flip_phases,
    normalise_ring,
    normalise_signal,
    remove_ramp,
)
from vitreous.io.mrc import MrcStack, write_mrc
from vitreous.physics.ctf import ctf_half

FLOAT16_STEP = 6.2e-5  # spacing of half precision at the data's grey values, 0.1


def prepared(images, pixel=1.0, optics=None, **recipe):
    recipe = Preparation(**recipe)
    preparer = Preparer(recipe, recipe.plan(images.shape[-1], pixel))
    out, sound = preparer(images, optics)
    assert bool(sound.all())
    return out


def outside(n, radius):
    return radius_grid(n, 2) > radius


@pytest.mark.parametrize("kind", ["particles", "background"])
def test_crop_of_real_images_is_exact_below_nyquist(shared_data, kind):
    """384 to 192 px: what is stored equals our crop to the rounding of half precision, except that
    it keeps half of the sum of both Nyquist frequencies where ours has none."""
    folder = shared_data / "empiar10061"
    large = torch.from_numpy(MrcStack(folder / f"{kind}_384_first12.mrcs").read(slice(None)))
    small = torch.from_numpy(MrcStack(folder / f"{kind}_192.mrcs").read(slice(0, 12)))
    ours = torch.fft.rfft2(prepared(large, 0.637, box_size=192, normalise="none").double())
    theirs = torch.fft.rfft2(small.double())
    assert theirs[:, 96].abs().mean() > 100 * ours[:, 96].abs().mean()
    theirs[:, 96], theirs[..., 96] = 0, 0
    ours[:, 96], ours[..., 96] = 0, 0
    difference = torch.fft.irfft2(ours - theirs)
    assert difference.std() < FLOAT16_STEP / 2
    assert difference.abs().max() < 2 * FLOAT16_STEP


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("size", [10, 11, 16])
def test_window_keeps_the_origin(n, size):
    images = torch.zeros(1, n, n)
    images[0, n // 2, n // 2] = 1
    window = crop_window(images, size)
    assert window.shape[-1] == size
    assert window[0, size // 2, size // 2] == 1
    with pytest.raises(ValueError, match="cannot be cut"):
        crop_window(images, n + 1)


@pytest.mark.parametrize(("n", "box"), [(16, 8), (17, 9), (16, 24), (15, 10)])
def test_a_band_limited_image_keeps_its_values(n, box):
    """One wave, sampled anew about the same origin."""

    def wave(size):
        axis = (torch.arange(size) - size // 2) / size
        return torch.cos(2 * torch.pi * (2 * axis[None, :] - axis[:, None]) + 0.3)[None] + 7

    small = prepared(wave(n), box_size=box, normalise="none")
    assert torch.allclose(small, wave(box), atol=1e-5)


def test_ring_law(generator):
    images = 1000 + 3 * torch.randn(4, 32, 32, generator=generator)
    ring = outside(32, 12)
    out = prepared(images, 2.0, mask_diameter_angstrom=48.0)
    pixels = out[:, ring].double()
    assert pixels.mean(1).abs().max() < 1e-6
    assert (pixels.std(1, correction=0) - 1).abs().max() < 1e-5
    scaled = prepared(5 * images - 100, 2.0, mask_diameter_angstrom=48.0)
    assert torch.allclose(scaled, out, atol=1e-3)
    inverted = prepared(images, 2.0, mask_diameter_angstrom=48.0, invert=True)
    assert torch.allclose(inverted, -out, atol=1e-5)


def test_ring_is_three_quarters_of_the_box_by_default(generator):
    images = torch.randn(2, 32, 32, generator=generator)
    expected, _ = normalise_ring(images, outside(32, 12))
    assert torch.allclose(prepared(images), expected, atol=1e-6)


def test_signal_law(generator):
    images = 50 - 8 * (~outside(32, 12)).float() + torch.randn(4, 32, 32, generator=generator)
    out = prepared(images, 2.0, normalise="signal", mask_diameter_angstrom=48.0)
    ring = outside(32, 12)
    assert out[:, ring].mean(1).abs().max() < 1e-5
    assert (out[:, ~ring].mean(1) - 1).abs().max() < 1e-5
    inverted = prepared(images, 2.0, normalise="signal", mask_diameter_angstrom=48.0, invert=True)
    assert torch.allclose(inverted, out, atol=1e-5)


def test_normalising_never_divides_by_zero():
    disc = (~outside(16, 5)).float()[None]
    images, sound = normalise_ring(disc, outside(16, 5))
    assert not bool(sound)
    assert not bool(images.any())
    images, sound = normalise_signal(torch.ones(1, 16, 16), outside(16, 5))
    assert not bool(sound)
    assert bool(images.isfinite().all())


def test_none_keeps_grey_values(generator):
    images = 1e4 + torch.randn(2, 16, 16, generator=generator)
    assert torch.allclose(prepared(images, normalise="none"), images, rtol=1e-6)
    inverted = prepared(images, normalise="none", invert=True, box_size=12)
    assert inverted.mean().item() == pytest.approx(-1e4, rel=1e-4)


def test_ramp_is_fitted_to_the_background_alone(generator):
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    particle = 100 * (~outside(32, 10)).float()
    flat = remove_ramp((3 * x - 2 * y + 7 + particle)[None], outside(32, 11))
    assert torch.allclose(flat[0], particle, atol=1e-3)
    noise = torch.randn(2, 32, 32, generator=generator)
    assert torch.allclose(prepared(noise + x - y, ramp=True), prepared(noise, ramp=True), atol=1e-4)


@pytest.mark.skipif(shutil.which("relion_preprocess") is None, reason="RELION is not installed")
@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("window", [None, 48])
def test_relion_normalises_alike(tmp_path, generator, ramp, window):
    images = 100 + 3 * torch.randn(3, 64, 64, generator=generator) + torch.arange(64) / 10
    write_mrc(tmp_path / "in.mrcs", images.numpy(), 2.0, is_stack=True)
    call = ["relion_preprocess", "--operate_on", "in.mrcs", "--operate_out", "out.mrcs", "--norm"]
    call += ["--bg_radius", "20", "--invert_contrast"]
    call += [] if ramp else ["--no_ramp"]
    call += ["--window", str(window)] if window else []
    subprocess.run(call, cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.from_numpy(MrcStack(tmp_path / "out.mrcs").read(slice(None)))
    recipe = {"window": window, "mask_diameter_angstrom": 80.0, "ramp": ramp, "invert": True}
    assert (prepared(images, 2.0, **recipe) - theirs).abs().max() < 1e-3


def test_phase_flip_gives_the_modulus_of_the_ctf():
    optics = Optics.uniform(1, defocus_angstrom=12000.0)
    point = torch.zeros(1, 32, 32)
    point[0, 16, 16] = 1
    transfer = ctf_half(32, 2.0, optics)
    image = torch.fft.fftshift(torch.fft.irfft2(transfer, s=(32, 32)), dim=(-2, -1))
    flipped = torch.fft.rfft2(torch.fft.ifftshift(flip_phases(image, 2.0, optics), dim=(-2, -1)))
    assert torch.allclose(flipped.real, transfer.abs(), atol=1e-5)
    out = prepared(image, 2.0, optics, phase_flip=True, normalise="none")
    assert torch.allclose(out, flip_phases(image, 2.0, optics), atol=1e-5)
    with pytest.raises(ValueError, match="optics"):
        prepared(image, phase_flip=True)


def test_arguments_are_unchanged_and_batches_equal_loops(generator):
    images = torch.randn(3, 24, 24, generator=generator)
    before = images.clone()
    optics = Optics.uniform(3)
    recipe = {"box_size": 16, "window": 22, "invert": True, "ramp": True, "phase_flip": True}
    whole = prepared(images, optics=optics, **recipe)
    single = [prepared(images[i : i + 1], optics=optics[i : i + 1], **recipe) for i in range(3)]
    assert torch.equal(images, before)
    assert torch.allclose(whole, torch.cat(single), atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "window", "box", "pixel"),
    [
        ({}, 384, 384, 0.637),
        ({"box_size": 192}, 384, 192, 1.274),
        ({"box_size": 180, "window": 360}, 360, 180, 1.274),
        ({"box_size": 512}, 384, 512, 0.637 * 0.75),
        ({"target_pixel_size_angstrom": 1.274}, 384, 192, 1.274),
        ({"target_pixel_size_angstrom": 1.5}, 372, 158, 1.4998),
        ({"target_pixel_size_angstrom": 2.0, "window": 384}, 384, 122, 2.0050),
        ({"target_pixel_size_angstrom": 1.274, "box_size": 100}, 200, 100, 1.274),
    ],
)
def test_sizes(recipe, window, box, pixel):
    geometry = Preparation(**recipe).plan(384, 0.637)
    assert (geometry.window, geometry.box_size) == (window, box)
    assert geometry.pixel_size_angstrom == pytest.approx(pixel, rel=1e-4)
    assert geometry.edge_angstrom == pytest.approx(window * 0.637)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"window": 65}, "`window` 65"),
        ({"box_size": 60, "target_pixel_size_angstrom": 3.0}, "`box_size` 60"),
        ({"target_pixel_size_angstrom": 30.0}, "smaller pixel"),
        ({"mask_diameter_angstrom": 400.0}, "0 background pixels"),
        ({"mask_diameter_angstrom": 3.0}, "two pixels"),
    ],
)
def test_sizes_that_do_not_fit(recipe, said):
    with pytest.raises(UsageError, match=said):
        Preparation(**recipe).plan(64, 2.0)


@pytest.mark.parametrize(
    "recipe",
    [
        {"box_size": 4},
        {"target_pixel_size_angstrom": float("nan")},
        {"mask_diameter_angstrom": -1.0},
        {"box_size": 32, "window": 32, "target_pixel_size_angstrom": 1.0},
        {"normalise": "circle"},
    ],
)
def test_impossible_recipes(recipe):
    with pytest.raises(UsageError, match="`"):
        Preparation(**recipe)
