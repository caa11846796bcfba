"""Raw counts, drifting backgrounds, dark protein and absurd scales make the map that clean images
make (cases 36 and 28; faults 34 and 38)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import vitreous as vt
from vitreous.core.errors import InputError
from vitreous.data.grey_values import GreyValues, background_statistics, decide_grey_values
from vitreous.data.particles import Particles

BOX, PIXEL, COUNT = 24, 6.0, 300


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return vt.phantom(BOX, PIXEL, seed=3)


@pytest.fixture(scope="module")
def clean(truth: Tensor) -> Particles:
    return vt.simulate(truth, COUNT, PIXEL, snr_db=0, seed=1)


def dressed(clean: Particles, change: Callable[[Tensor], Tensor]) -> Particles:
    return Particles.from_arrays(
        change(clean.read(slice(None))), clean.optics, pixel_size_angstrom=PIXEL, pose=clean.pose
    )


def correlation(particles: Particles, truth: Tensor, **how: bool) -> float:
    half_set = torch.arange(COUNT) % 2 + 1
    images = particles.images(**how)
    halves = vt.reconstruct(images, particles.pose, particles.optics, half_set, PIXEL)
    return float(torch.corrcoef(torch.stack([halves.average.flatten(), truth.flatten()]))[0, 1])


def drifting(images: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    gain = torch.randn(COUNT, 1, 1, generator=draw).exp()
    return gain * images + 30 * torch.randn(COUNT, 1, 1, generator=draw)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0.1 + 0.013 * x,  # case 36, as the shared stack of EMPIAR-10061
        lambda x: x + 50,
        lambda x: 1e18 * x,  # fault 34
        lambda x: 1e-25 * x,
        drifting,
        lambda x: 5000 - 3 * x,  # dark raw counts
    ],
)
def test_fault_34_and_38_grey_values_are_brought_to_one_scale_and_said_once(
    clean: Particles, truth: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    particles = dressed(clean, change)
    with pytest.warns(UserWarning, match="grey values, backgrounds of mean") as said:
        assert correlation(particles, truth) > correlation(clean, truth) - 0.005
    assert sum("taken off and scaled" in str(one.message) for one in said) == 1


def test_clean_images_are_taken_without_a_word(
    clean: Particles, truth: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    assert correlation(clean, truth) > 0.97
    assert not len(recwarn)


def test_images_that_are_left_as_they_are_are_warned_of(clean: Particles) -> None:
    with pytest.warns(UserWarning, match="mean 50 and deviation .* used as they are"):
        images = dressed(clean, lambda x: x + 50).images(normalise=False)
    assert float(images[:].mean()) > 49
    with pytest.raises(InputError, match=r"grey values of .*e\+1[78] cannot be computed with"):
        dressed(clean, lambda x: 1e18 * x).images(normalise=False)


@pytest.mark.parametrize("stated", [None, "dark", "light"])
def test_case_28_contrast_is_told_by_the_images(clean: Particles, stated: str | None) -> None:
    dark = replace(dressed(clean, torch.neg), stated_contrast=stated)
    if stated == "dark":
        assert decide_grey_values(dark).dark  # as the table says: nothing to say
    else:
        with pytest.warns(UserWarning, match="protein is dark"):
            assert decide_grey_values(dark).dark
    white = replace(clean, stated_contrast=stated)
    if stated == "dark":
        with pytest.warns(UserWarning, match="white, although the table says otherwise"):
            assert not decide_grey_values(white).dark
    else:
        assert not decide_grey_values(white).dark


@pytest.mark.parametrize(("stated", "want"), [(None, False), ("dark", True), ("light", False)])
def test_noise_keeps_the_contrast_of_the_table_and_says_so(
    clean: Particles, stated: str | None, want: bool
) -> None:
    noise = dressed(clean, lambda x: torch.randn(x.shape, generator=torch.Generator()))
    with pytest.warns(UserWarning, match="too little to tell"):
        assert decide_grey_values(replace(noise, stated_contrast=stated)).dark is want


def test_the_users_word_on_contrast_counts_and_is_doubted(clean: Particles) -> None:
    with pytest.warns(UserWarning, match="protein is white, although `invert` says otherwise"):
        assert decide_grey_values(clean, invert=True).dark


@pytest.mark.parametrize("n", [8, 15, 32])
def test_images_are_the_same_in_every_batch(n: int, generator: torch.Generator) -> None:
    images = 7 + 3 * torch.randn(40, n, n, generator=generator)
    grey = GreyValues(dark=True)
    whole = grey.apply(images)
    parts = [grey.apply(images[k : k + step]) for step in (1, 7) for k in range(0, 40, step)]
    assert torch.equal(torch.cat(parts[:40]), whole)
    assert torch.equal(torch.cat(parts[40:]), whole)
    mean, deviation = background_statistics(whole)
    assert abs(mean).max() < 1e-5
    assert abs(deviation - 1).max() < 1e-5


def test_noiseless_images_have_one_scale(truth: Tensor) -> None:
    noiseless = vt.simulate(truth, 60, PIXEL, snr_db=60, seed=1)
    grey = decide_grey_values(noiseless)
    assert grey.divisor is not None
    images = noiseless.read(slice(None))
    ratio = GreyValues(divisor=grey.divisor).apply(images).std((1, 2)) / images.std((1, 2))
    assert float(ratio.max() / ratio.min()) < 1.0001
