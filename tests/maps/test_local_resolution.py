"""Local resolution against maps whose halves differ, noise, and the theory of chance."""

from __future__ import annotations

import pytest
import torch

from vitreous.maps.local_resolution import (
    bands,
    local_correlations,
    local_low_pass,
    local_resolution,
)
from vitreous.maps.shell_filter import shell_radius, weight_shells

N, PIXEL = 64, 3.0
pytestmark = pytest.mark.usefixtures("one_thread")


def low_passed(volume: torch.Tensor, angstrom: float) -> torch.Tensor:
    shells = torch.arange(N // 2 + 1)
    return weight_shells(volume, (N * PIXEL / angstrom + 0.5 - shells).clamp(0, 1))


@pytest.fixture(scope="module")
def two_regions():
    """x < 0 holds everything to 8 Å, x > 0 to 16 Å; with white noise of its deviation 0.7."""
    draw = torch.Generator().manual_seed(3)
    signal = torch.randn(N, N, N, generator=draw)
    left = torch.sigmoid(-(torch.arange(N) - N // 2).float())
    truth = left * low_passed(signal, 8.0) + (1 - left) * low_passed(signal, 16.0)
    noise = 0.7 * torch.randn(2, N, N, N, generator=draw)
    half1, half2 = truth + noise[0], truth + noise[1]
    return truth, half1, half2, local_resolution(half1, half2, None, PIXEL)


@pytest.mark.parametrize("n", [15, 32, 64])
def test_bands_cover_every_frequency_once(n: int) -> None:
    found = bands(n)
    radius = torch.linspace(found[0].shell, found[-1].shell, 200)
    total = torch.stack([band.filter(radius) for band in found]).sum(0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    assert found[-1].shell < n / 2 <= found[-1].above
    assert all(b.window_px <= 0.8 * n for b in found)


def test_two_regions_get_their_own_resolution(two_regions) -> None:
    *_, found = two_regions
    centre = found[24:40, 24:40]
    fine, coarse = centre[..., 10:22].median(), centre[..., 44:54].median()
    assert 7.0 < fine < 8.6
    assert 13.5 < coarse < 17.0


def test_nothing_is_said_outside_the_mask(generator: torch.Generator) -> None:
    half1, half2 = torch.randn(2, 20, 20, 20, generator=generator)
    mask = torch.zeros(20, 20, 20)
    mask[:, :, :6] = 0.5
    masked = local_resolution(half1, half2, mask, PIXEL)
    everywhere = local_resolution(half1, half2, None, PIXEL)
    assert torch.equal(masked[mask > 0], everywhere[mask > 0])
    assert masked[mask == 0].abs().max() == 0


def test_local_low_pass_takes_noise_and_leaves_signal(two_regions) -> None:
    truth, half1, half2, found = two_regions
    average = 0.5 * (half1 + half2)
    filtered = local_low_pass(average, found, PIXEL)
    right = (slice(None), slice(None), slice(44, 54))
    before, after = ((v - truth)[right].std() for v in (average, filtered))
    assert after < 0.35 * before
    left = (slice(None), slice(None), slice(8, 22))
    maps = torch.stack([v[left].flatten() for v in (truth, average, filtered)])
    before, after = torch.corrcoef(maps)[0, 1:]
    assert after > max(0.85, before)


def test_everything_passes_where_the_resolution_is_nyquist(generator: torch.Generator) -> None:
    volume = torch.randn(21, 21, 21, generator=generator)
    fine = torch.full_like(volume, 1e-3)
    assert torch.allclose(local_low_pass(volume, fine, 2.0), volume, atol=1e-4)
    with pytest.raises(ValueError, match="resolutions are"):
        local_low_pass(volume, fine[:20], 2.0)


@pytest.mark.parametrize("coloured", [False, True])
def test_noise_alone_has_no_fine_resolution(coloured: bool) -> None:
    draw = torch.Generator().manual_seed(8)
    halves = torch.randn(2, 48, 48, 48, generator=draw)
    if coloured:
        fall = torch.exp(-torch.arange(25) / 5.0)
        halves = torch.stack([weight_shells(half, fall) for half in halves])
    found = local_resolution(halves[0], halves[1], None, 2.0)
    coarsest = 48 * 2.0 / bands(48)[0].shell
    assert (found > 0.999 * coarsest).float().mean() > 0.97
    assert found.min() > 12.0  # Nyquist is 4


def test_noise_beyond_the_signal_does_not_refine_it() -> None:
    """Signal to shell 8 with little noise: windows are small beyond, and chance must not pass."""
    draw = torch.Generator().manual_seed(6)
    signal, *noise = torch.randn(3, 64, 64, 64, generator=draw)
    low = weight_shells(signal, (8.5 - torch.arange(33)).clamp(0, 1))
    half1, half2 = (2 * low + 0.5 * one for one in noise)
    shell = 64 * 2.0 / local_resolution(half1, half2, None, 2.0)
    assert 7.5 < shell.median() < 10.0
    assert (shell > 10).float().mean() < 0.01


def test_chance_is_as_predicted() -> None:
    draw = torch.Generator().manual_seed(1)
    half1, half2 = torch.randn(2, 48, 48, 48, generator=draw)
    for band, correlation, predicted in local_correlations(half1, half2):
        if band.shell > 12:  # below few windows fit into the box, so that little is averaged
            assert float(correlation.std()) == pytest.approx(predicted, rel=0.25)


def test_equal_maps_are_resolved_to_nyquist_and_empty_ones_not_at_all() -> None:
    draw = torch.Generator().manual_seed(2)
    volume = torch.randn(25, 25, 25, generator=draw)
    assert torch.all(local_resolution(volume, volume, None, 2.0) == 4.0)
    empty = local_resolution(torch.zeros(24, 24, 24), torch.zeros(24, 24, 24), None, 2.0)
    assert empty.min() == pytest.approx(24 * 2.0 / bands(24)[0].shell)
    with pytest.raises(ValueError, match="two cubes"):
        local_resolution(volume, volume[:24], None, 2.0)
    with pytest.raises(ValueError, match="mask is"):
        local_resolution(volume, volume, torch.ones(24, 24, 24), 2.0)


def test_filters_follow_their_band() -> None:
    radius = shell_radius(32).float()
    for band in bands(32):
        gain = band.filter(radius)
        assert gain[(radius <= band.below) | (radius >= band.above)].abs().max() < 1e-6


def test_grids_of_the_bands_tell_what_the_whole_grid_tells(two_regions, monkeypatch) -> None:
    """Coarse bands are worked on in grids of their own, whose points lie between the voxels."""
    _, half1, half2, found = two_regions
    grids = {band.shell: len(one) for band, one, _ in local_correlations(half1, half2)}
    assert min(grids.values()) < N / 2
    assert grids[max(grids)] == N
    monkeypatch.setattr("vitreous.maps.local_resolution._SAMPLES", 1e3)
    whole = local_resolution(half1, half2, None, PIXEL)
    ratio = found / whole
    assert 0.99 < float(ratio.median()) < 1.01
    assert float((ratio.log().abs() > 0.05).float().mean()) < 0.01
