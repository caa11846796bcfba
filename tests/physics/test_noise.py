"""Noise: its scale, its pairing with micrographs, its statistics and its gradients."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.physics.noise import (
    BackgroundPatches,
    Noise,
    PoissonNoise,
    WhiteGaussian,
    noise_sigma,
    prepare_patches,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_patches(values: list[float], size: int = 4) -> Tensor:
    return torch.tensor(values)[:, None, None].expand(-1, size, size)


@pytest.mark.parametrize(("db", "ratio"), [(0, 1.0), (-10, 0.1), (-20, 0.01), (20, 100.0)])
def test_sigma_gives_the_ratio(db: float, ratio: float) -> None:
    signal = 3.0 * torch.randn(200, 200, generator=seeded(1))
    variance = signal.var().item()
    sigma = noise_sigma(variance, snr_db=db)
    assert sigma == pytest.approx((variance / ratio) ** 0.5)
    noise = sigma * WhiteGaussian().sample(1, 200, generator=seeded(2))
    assert variance / noise.var().item() == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("snr_db", [np.inf, -np.inf, np.nan])
def test_sigma_refuses(snr_db: float) -> None:
    with pytest.raises(ValueError, match="signal-to-noise"):
        noise_sigma(1.0, snr_db=snr_db)
    with pytest.raises(ValueError, match="signal_variance"):
        noise_sigma(-1.0, snr_db=0.0)


def test_white_noise_is_white_and_of_unit_variance() -> None:
    noise = WhiteGaussian().sample(64, 32, generator=seeded(), dtype=torch.float64)
    assert noise.shape == (64, 32, 32)
    assert noise.dtype == torch.float64
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.var().item() == pytest.approx(1, abs=0.02)
    power = rfft_centered(noise, 2).abs().square().mean(0) / 32**2
    assert power[:, :8].mean().item() == pytest.approx(1, abs=0.05)
    assert power[:, 8:].mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "noise",
    [WhiteGaussian(), BackgroundPatches(torch.randn(5, 9, 9), torch.arange(5), "any", True)],
    ids=["white", "patches"],
)
def test_samplers_repeat_with_the_seed_and_only_then(noise: Noise) -> None:
    ids = torch.tensor([0, 3, 9])
    ids = torch.where(ids > 4, 4, ids)
    first = noise.sample(3, 6, micrograph_id=ids, generator=seeded(1))
    assert torch.equal(first, noise.sample(3, 6, micrograph_id=ids, generator=seeded(1)))
    assert not torch.equal(first, noise.sample(3, 6, micrograph_id=ids, generator=seeded(2)))


def test_patches_come_from_the_same_micrograph_each_equally_often() -> None:
    owner = torch.tensor([5, 2, 5, 9, 5, 2])
    noise = BackgroundPatches(flat_patches([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), owner)
    ids = torch.tensor([5, 2, 9, 5]).repeat(3000)
    drawn = noise.sample(len(ids), 4, micrograph_id=ids, generator=seeded())[:, 0, 0].long()
    assert torch.equal(owner[drawn], ids)
    counts = torch.bincount(drawn, minlength=6).double()
    expected = torch.tensor([2000.0, 1500.0, 2000.0, 3000.0, 2000.0, 1500.0], dtype=torch.float64)
    assert (counts - expected).abs().max().item() < 200  # 5 standard deviations


def test_missing_micrograph_is_named_or_replaced() -> None:
    patches, owner = flat_patches([1.0, 2.0]), torch.tensor([0, 1])
    names = ("a.mrc", "b.mrc", "c.mrc")
    strict = BackgroundPatches(patches, owner, micrograph_names=names)
    with pytest.raises(ValueError, match=r"2 \(c\.mrc\).*on_missing='any'"):
        strict.sample(2, 4, micrograph_id=torch.tensor([0, 2]), generator=seeded())
    with pytest.raises(ValueError, match="micrograph 7;"):
        strict.sample(1, 4, micrograph_id=torch.tensor([7]), generator=seeded())
    loose = BackgroundPatches(patches, owner, on_missing="any")
    ids = torch.tensor([0, 2]).repeat(100)
    drawn = loose.sample(200, 4, micrograph_id=ids, generator=seeded())[:, 0, 0]
    assert (drawn[::2] == 1).all()
    assert set(drawn[1::2].tolist()) == {1.0, 2.0}


def test_without_ids_any_patch_is_drawn() -> None:
    noise = BackgroundPatches(flat_patches([1.0, 2.0]), torch.tensor([0, 1]))
    drawn = noise.sample(100, 4, generator=seeded())[:, 0, 0]
    assert set(drawn.tolist()) == {1.0, 2.0}


def test_larger_patches_are_cut_at_every_place_without_wrapping() -> None:
    ramp = torch.arange(25.0).reshape(1, 5, 5)
    noise = BackgroundPatches(ramp, torch.tensor([0]))
    windows = noise.sample(200, 3, micrograph_id=torch.zeros(200).long(), generator=seeded())
    assert torch.equal(windows - windows[:, :1, :1], (ramp[:, :3, :3]).expand(200, 3, 3))
    assert set(windows[:, 0, 0].tolist()) == {0.0, 1.0, 2.0, 5.0, 6.0, 7.0, 10.0, 11.0, 12.0}


def test_dihedral_gives_all_eight_pictures_and_nothing_else() -> None:
    patch = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    noise = BackgroundPatches(patch[None], torch.tensor([0]), random_dihedral=True)
    drawn = noise.sample(300, 2, generator=seeded())
    wanted = {
        tuple(turned.flatten().tolist())
        for k in range(4)
        for turned in (patch.rot90(k), patch.rot90(k).mT)
    }
    assert len(wanted) == 8
    assert {tuple(one.flatten().tolist()) for one in drawn} == wanted


def test_half_precision_patches_stay_small_and_come_out_single() -> None:
    noise = BackgroundPatches(torch.randn(3, 8, 8).half(), torch.arange(3))
    assert noise.sample(2, 8, generator=seeded()).dtype == torch.float32


def test_patches_are_checked() -> None:
    with pytest.raises(ValueError, match="patches must be"):
        BackgroundPatches(torch.zeros(0, 4, 4), torch.zeros(0).long())
    with pytest.raises(ValueError, match="micrograph_id must be"):
        BackgroundPatches(torch.zeros(2, 4, 4), torch.zeros(3).long())
    with pytest.raises(ValueError, match="on_missing"):
        BackgroundPatches(torch.zeros(1, 4, 4), torch.zeros(1).long(), on_missing="no")
    noise = BackgroundPatches(torch.zeros(1, 4, 4), torch.zeros(1).long())
    with pytest.raises(ValueError, match="cannot fill"):
        noise.sample(1, 5, generator=seeded())
    with pytest.raises(ValueError, match="micrograph_id must be"):
        noise.sample(2, 4, micrograph_id=torch.zeros(3).long(), generator=seeded())


def test_prepared_patches_have_unit_deviation_whatever_the_size() -> None:
    patches = 7 + 3 * torch.randn(5, 24, 24, generator=seeded())
    before = patches.clone()
    for size in (24, 16, 15):
        ready = prepare_patches(patches, size, chunk=2)
        assert ready.shape == (5, size, size)
        torch.testing.assert_close(ready.mean((1, 2)), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(ready.std((1, 2), correction=0), torch.ones(5))
    assert torch.equal(patches, before)
    patches[3] = 2.0
    patches[4, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        prepare_patches(patches, 16, chunk=2)


def test_real_background_keeps_its_colour(shared_data: Path) -> None:
    with mrcfile.mmap(shared_data / "empiar10061" / "background_192.mrcs", mode="r") as file:
        raw = torch.from_numpy(file.data[:20].astype(np.float32))
    noise = BackgroundPatches(prepare_patches(raw, 64), torch.arange(20) // 10)
    ids = torch.tensor([0, 1]).repeat(20)
    images = noise.sample(40, 64, micrograph_id=ids, generator=seeded())
    assert images.var().item() == pytest.approx(1, abs=0.01)
    power = rfft_centered(images, 2).abs().square().mean(0)
    assert power[1:5, 1:5].mean() > 1.5 * power[24:32, 24:32].mean()  # ice is no white noise


def test_counting_noise_has_poisson_statistics() -> None:
    noise = PoissonNoise(scale=2.0, dose=30.0)
    for value in (0.0, 10.0, -10.0):
        image = noise.apply(torch.full((400, 400), value), generator=seeded())
        assert image.mean().item() == pytest.approx(value, abs=0.05)
        assert image.var().item() == pytest.approx((30 + 2 * value) / 4, rel=0.02)
        counts = image * 2 + 30
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    dark = noise.apply(torch.full((8, 8), -100.0), generator=seeded())
    assert (dark == -15).all()  # no electron, never a negative count


def test_counting_noise_gradient_is_the_gaussian_one() -> None:
    noise = PoissonNoise(scale=2.0, dose=30.0)
    clean = torch.full((300, 300), 5.0, dtype=torch.float64, requires_grad=True)
    image = noise.apply(clean, generator=seeded())
    (gradient,) = torch.autograd.grad(image.sum(), clean)
    counts = image.detach() * 2 + 30
    torch.testing.assert_close(gradient, (counts + 40) / 80)
    assert gradient.mean().item() == pytest.approx(1, abs=5e-3)
    # E[y^2] = x^2 + (d + s x) / s^2, so its derivative, 2 x + 1 / s, comes out of the samples.
    image = noise.apply(clean, generator=seeded(1))
    (gradient,) = torch.autograd.grad(image.square().mean() * clean.numel(), clean)
    assert gradient.mean().item() == pytest.approx(10.5, rel=0.02)
    dark = torch.full((4,), -100.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise.apply(dark, generator=seeded()).sum(), dark)
    assert (gradient == 0).all()


@pytest.mark.parametrize(("scale", "dose"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_counting_noise_refuses(scale: float, dose: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        PoissonNoise(scale, dose)
