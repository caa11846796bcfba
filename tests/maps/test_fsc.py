"""FSC against a full-spectrum brute force, resolutions at hand-made curves, mask correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitreous.core.grid import soft_mask
from vitreous.maps.fsc import (
    fsc,
    fsc_confirmed,
    fsc_resolution,
    fsc_true,
    randomise_phases,
    solvent_mask,
)


def _brute_force(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n = a.shape[0]
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    k = np.fft.fftfreq(n, 1 / n)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    shell = np.rint(radius).astype(int)
    out = []
    for s in range(n // 2 + 1):
        x, y = fa[shell == s], fb[shell == s]
        out.append(np.vdot(y, x).real / math.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum()))
    return np.array(out)


@pytest.mark.parametrize("n", [8, 9, 16])
def test_fsc_matches_full_spectrum(n: int, generator: torch.Generator) -> None:
    a = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    b = a + torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    curve, want = fsc(a, b).numpy(), _brute_force(a.numpy(), b.numpy())
    np.testing.assert_allclose(curve[1:], want[1:], atol=1e-12)
    assert curve[0] == curve[1]  # shell 0 holds the means, which are taken off


@pytest.mark.parametrize("n", [8, 9])
def test_fsc_laws(n: int, generator: torch.Generator) -> None:
    a = torch.randn(3, n, n, n, generator=generator)
    b = torch.randn(3, n, n, n, generator=generator)
    assert torch.allclose(fsc(a, a), torch.ones(3, n // 2 + 1).double())
    assert torch.allclose(fsc(a, b), fsc(b, a))
    assert torch.allclose(fsc(3 * a, 0.1 * b), fsc(a, b), atol=1e-6)
    assert torch.allclose(fsc(a, b)[1], fsc(a[1], b[1]))
    assert fsc(a, torch.zeros_like(a)).abs().max() == 0
    with pytest.raises(ValueError, match="boxes differ"):
        fsc(a, torch.zeros(7, 7, 7))


@pytest.mark.parametrize("shape", [(4, 6, 10), (5, 9, 7)])
def test_fsc_of_any_shape_against_the_whole_spectrum(shape: tuple[int, int, int]) -> None:
    """Shells are balls of frequency, counted in cycles per longest edge."""
    draw = torch.Generator().manual_seed(2)
    a, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    n = max(shape)
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(m).double() for m in shape), indexing="ij")
    shell = (n * sum(f**2 for f in frequencies) ** 0.5).round().long()
    fa, fb = torch.fft.fftn(a), torch.fft.fftn(b)
    for s, value in enumerate(fsc(a, b).tolist()[1:], 1):
        x, y = fa[shell == s], fb[shell == s]
        assert value == pytest.approx(float((x * y.conj()).sum().real / (x.norm() * y.norm())))
    assert len(fsc(a, b)) == n // 2 + 1


def test_fsc_of_a_band_limited_map_is_zero_in_empty_shells() -> None:
    axis = torch.arange(16).double() * (2 * torch.pi / 16)
    wave = torch.cos(3 * axis).expand(16, 16, 16)
    curve = fsc(wave, wave)
    assert torch.allclose(curve[3], torch.tensor(1.0).double())
    assert curve[[1, 2, 4, 5, 6, 7, 8]].abs().max() == 0


def test_noise_halves_follow_theory(generator: torch.Generator) -> None:
    n = 48
    signal, n1, n2 = torch.randn(3, n, n, n, generator=generator)
    curve = fsc(signal + n1, signal + n2)
    assert (curve[8:] - 0.5).abs().max() < 0.08
    assert fsc(n1, n2)[8:].abs().max() < 0.12


def test_resolution_of_hand_made_curves() -> None:
    def curve(*values: float) -> torch.Tensor:
        return torch.tensor(values)

    assert fsc_resolution(curve(1, 1, 0.8, 0.2, 0), 0.5, 8, 3.0) == pytest.approx(24 / 2.5)
    assert fsc_resolution(curve(1, 1, 1, 1, 1), 0.143, 8, 3.0) == 6.0
    assert fsc_resolution(curve(1, 1, 1, 1, 1), 0.143, 9, 3.0) == 6.0
    assert fsc_resolution(curve(1, 0.1, 1, 1, 1), 0.143, 8, 3.0) == math.inf
    assert fsc_resolution(curve(0, 1, 1, 0, 1), 0.5, 8, 1.0) == pytest.approx(8 / 2.5)
    assert fsc_resolution(curve(1, 1, math.nan, 1, 1), 0.5, 8, 1.0) == 8.0
    with pytest.raises(ValueError, match="curve must be"):
        fsc_resolution(curve(1, 1), 0.5, 8, 1.0)


@pytest.mark.parametrize("n", [16, 17])
def test_randomised_phases_keep_amplitudes(n: int, generator: torch.Generator) -> None:
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    out = randomise_phases(volume, 4, generator)
    assert torch.allclose(torch.fft.rfftn(out).abs(), torch.fft.rfftn(volume).abs(), atol=1e-9)
    curve = fsc(out, volume)
    assert torch.allclose(curve[:4], torch.ones(4).double())
    assert curve[5:].abs().max() < 0.35


def test_mask_correction_removes_the_masks_correlation(generator: torch.Generator) -> None:
    n = 48
    mask = soft_mask(n, 3, 7.0, 1.0)
    low = torch.fft.irfftn(
        torch.fft.rfftn(torch.randn(n, n, n, generator=generator))
        * (
            torch.fft.fftfreq(n, 1 / n)[:, None, None].square()
            + torch.fft.fftfreq(n, 1 / n)[:, None].square()
            + torch.fft.rfftfreq(n, 1 / n).square()
            < 36
        )
    )
    shared = 3 * low * mask
    noise = 0.02 * torch.randn(2, n, n, n, generator=generator)
    result = fsc_true(shared + noise[0], shared + noise[1], mask, generator)
    assert 4 < result.randomised_from < 20
    assert result.unmasked.shape == result.corrected.shape == (n // 2 + 1,)
    assert (result.corrected[: result.randomised_from] > 0.8).all()
    untouched = slice(0, result.randomised_from + 2)
    assert torch.equal(result.corrected[untouched], result.masked[untouched])
    fn = result.randomised[-1]
    assert torch.allclose(result.corrected[-1], (result.masked[-1] - fn) / (1 - fn))


def test_mask_correction_of_pure_noise_is_about_zero(generator: torch.Generator) -> None:
    n = 32
    half1, half2 = torch.randn(2, n, n, n, generator=generator)
    tight = torch.zeros(n, n, n)
    tight[8:24, 8:24, 8:24] = 1
    # A constant common to both maps would correlate every shell once it is masked sharply.
    result = fsc_true(half1 + 10, half2 + 10, tight, generator)
    assert result.masked[3:].mean() < 0.1
    assert result.corrected[4:].mean().abs() < 0.15


def test_identical_halves_need_no_correction(generator: torch.Generator) -> None:
    volume = torch.randn(16, 16, 16, generator=generator)
    result = fsc_true(volume, volume, torch.ones(16, 16, 16), generator)
    assert torch.allclose(result.corrected, torch.ones(9).double())
    assert result.randomised_from == 9


def test_solvent_mask_finds_the_particle(generator: torch.Generator) -> None:
    n = 32
    ball = soft_mask(n, 3, 7.0, 1.0)
    speck = torch.zeros(n, n, n)
    speck[2, 2, 2] = 5.0
    noisy = ball + speck + 0.1 * torch.randn(n, n, n, generator=generator)
    mask = solvent_mask(noisy, lowpass_px=1.5)
    assert mask[ball > 0.5].min() == 1
    assert mask[2, 2, 2] == 0
    assert 0 < mask.mean() < 0.5
    assert 0.0 <= mask.min() <= mask.max() <= 1.0
    assert (mask.diff(dim=-1).abs().max()) < 0.6
    assert torch.equal(solvent_mask(torch.zeros(8, 8, 8)), torch.ones(8, 8, 8))
    with pytest.raises(ValueError, match="volume must be"):
        solvent_mask(torch.zeros(2, 8, 8, 8))


def test_what_a_prior_makes_up_is_not_confirmed(generator: torch.Generator) -> None:
    """Half maps without prior are truth and noise; the prior removes noise and adds a fancy."""
    n = 32

    def white() -> torch.Tensor:
        return torch.randn(n, n, n, generator=generator, dtype=torch.float64)

    truth, fancy, noise = white(), 0.7 * white(), (white(), white())
    direct = (truth + 1.5 * noise[0], truth + 1.5 * noise[1])
    halves = (truth + fancy + 0.3 * noise[0], truth + fancy + 0.3 * noise[1])
    expected = fsc(halves[0], truth)[4:].square().mean()
    between = fsc(*halves)[4:].mean()
    found = fsc_confirmed(halves, direct)
    assert between > expected + 0.25
    assert found[4:].mean() == pytest.approx(float(expected), abs=0.03)
    alone = fsc_confirmed((fancy + noise[0], fancy + noise[1]), (noise[0], noise[1]))
    assert float(alone[1:].max()) < 0.2
    honest = fsc_confirmed(direct, direct)  # nothing shared: no correction
    assert torch.allclose(honest[4:], fsc(*direct)[4:], atol=0.12)
