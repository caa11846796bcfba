"""A B factor put into a known map must come out of the fit, and leave the map when sharpened."""

from __future__ import annotations

import math

import pytest
import torch

from vitreous.maps.fsc import fsc
from vitreous.maps.sharpening import guinier_fit, reference_weight, sharpen
from vitreous.maps.shell_filter import shell_radius, shell_rms, weight_shells

pytestmark = pytest.mark.usefixtures("one_thread")


def decay(n: int, pixel: float, b: float) -> torch.Tensor:
    frequency = torch.arange(n // 2 + 1).double() / (n * pixel)
    return torch.exp(-b / 4 * frequency**2)


def halves(n: int, pixel: float, b: float, noise: float, seed: int = 0):
    """Flat spectrum with a B factor on it, and white noise: the truth and two half maps."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, n, n, generator=draw, dtype=torch.float64)
    blurred = weight_shells(truth, decay(n, pixel, b))
    noises = noise * torch.randn(2, n, n, n, generator=draw, dtype=torch.float64)
    return truth, blurred + noises[0], blurred + noises[1]


@pytest.mark.parametrize("n", [8, 9])
def test_shells_against_brute_force(n: int, generator: torch.Generator) -> None:
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    k = torch.fft.fftfreq(n, 1 / n)
    radius = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()
    spectrum = torch.fft.fftn(volume)
    for shell, value in enumerate(shell_rms(volume).tolist()):
        inside = radius.round() == shell
        assert value == pytest.approx(float(spectrum[inside].abs().square().mean().sqrt()))
    assert torch.allclose(shell_radius(n), radius[..., : n // 2 + 1].double())
    doubled = weight_shells(volume, torch.linspace(0, n // 2, n // 2 + 1))
    expected = spectrum * radius.clamp(max=n // 2)
    assert torch.allclose(torch.fft.fftn(doubled).abs(), expected.abs(), atol=1e-9)
    with pytest.raises(ValueError, match="weight must be"):
        weight_shells(volume, torch.ones(n))


def test_weight_is_the_correlation_with_the_truth() -> None:
    truth, half1, half2 = halves(32, 2.0, 0.0, 1.0)
    expected = fsc(0.5 * (half1 + half2), truth)
    weight = reference_weight(fsc(half1, half2))
    assert (weight - expected)[4:].abs().max() < 0.05


@pytest.mark.parametrize("b", [40.0, 120.0])
def test_fit_finds_the_b_factor_despite_noise(b: float) -> None:
    n, pixel = 48, 1.5
    _, half1, half2 = halves(n, pixel, b, 0.15)
    average, curve = 0.5 * (half1 + half2), fsc(half1, half2)
    fit = guinier_fit(average, curve, pixel)
    assert fit.b_factor_angstrom2 == pytest.approx(-b, abs=12)
    assert 0 < fit.error_angstrom2 < 10
    # without the FSC's weight the noise would hide the fall
    unweighted = guinier_fit(average, curve * 0 + 1, pixel)
    if b > 100:
        assert unweighted.b_factor_angstrom2 > -100


def test_solvent_noise_does_not_count_within_the_mask() -> None:
    n, pixel = 48, 1.5
    _, half1, half2 = halves(n, pixel, 80.0, 0.03)
    axis = torch.arange(n) - n // 2
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float().sqrt()
    mask = torch.sigmoid((10 - distance) / 1.0).double()
    draw = torch.Generator().manual_seed(4)
    outside = [torch.randn(n, n, n, generator=draw) * (distance > 16) for _ in range(2)]
    average = 0.5 * (half1 * mask + outside[0] + half2 * mask + outside[1])
    curve = fsc(half1 * mask, half2 * mask)
    inside = guinier_fit(average, curve, pixel, mask=mask)
    everywhere = guinier_fit(average, curve, pixel)
    assert inside.b_factor_angstrom2 == pytest.approx(-80, abs=20)
    assert everywhere.b_factor_angstrom2 > inside.b_factor_angstrom2 + 20


def test_sharpened_map_is_the_truth_again_within_its_resolution() -> None:
    n, pixel = 48, 1.5
    truth, half1, half2 = halves(n, pixel, 120.0, 0.3)
    average, curve = 0.5 * (half1 + half2), fsc(half1, half2)
    done = sharpen(average, curve, pixel, b_factor_angstrom2=-120.0)
    assert not done.automatic
    assert done.b_factor_angstrom2 == -120.0
    last = int(n * pixel / done.resolution_angstrom)
    assert 10 < last < n // 2
    ratio = shell_rms(done.map) / shell_rms(truth)
    assert (ratio[2:last] - 1).abs().max() < 0.15
    assert ratio[last + 4 :].max() < 1e-12


@pytest.mark.parametrize("n", [24, 25])
def test_no_fit_beyond_ten_angstrom(n: int) -> None:
    draw = torch.Generator().manual_seed(1)
    volume = torch.randn(n, n, n, generator=draw)
    done = sharpen(volume, torch.ones(n // 2 + 1), 6.0)
    assert done.b_factor_angstrom2 == 0
    assert "no B factor: 12.0 Å is not beyond 10 Å" in done.note
    assert math.isnan(done.guinier.error_angstrom2)
    assert not done.guinier.fitted.any()
    assert torch.allclose(done.map, volume, atol=1e-5)
    few = sharpen(volume, torch.ones(n // 2 + 1), 4.5)
    assert "shells lie between" in few.note
    nothing = sharpen(volume, torch.zeros(n // 2 + 1), 1.0)
    assert "no resolution" in nothing.note
    assert nothing.map.abs().max() < 1e-5


def test_rising_amplitudes_give_no_b_factor() -> None:
    n, pixel = 32, 1.5
    truth, *_ = halves(n, pixel, 0.0, 0.0)
    rising = weight_shells(truth, 1 / decay(n, pixel, 50.0))
    fit = guinier_fit(rising, torch.ones(n // 2 + 1), pixel)
    assert fit.b_factor_angstrom2 == 0
    assert "do not fall" in fit.note
