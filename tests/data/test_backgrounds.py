"""Background windows: clear of particles and junk, and with the spectrum of the noise."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.data.backgrounds import (
    Micrograph,
    choose_windows,
    free_corners,
    quiet,
    spread_out,
    window_variance,
)
from vitreous.io.mrc import MrcStack, write_mrc

EDGE, SIZE, RADIUS = 512, 32, 12.0


def coloured(rng, exponent, edge=EDGE):
    """Gaussian noise of unit variance: white plus a part that rises towards low frequencies."""
    frequency = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.rfftfreq(edge))
    amplitude = 1 + (exponent > 0) * (0.05 / np.maximum(frequency, 1 / 128)) ** exponent
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((edge, edge))) * amplitude)
    return image / image.std()


def blobs(centres, radius=RADIUS, edge=EDGE):
    x, y = np.exp(-((np.arange(edge) - centres.T[..., None]) ** 2) / (2 * (radius / 2.5) ** 2))
    return y.T @ x


def micrograph(tmp_path, image, name="m.mrc"):
    write_mrc(tmp_path / name, image.astype(np.float32), 1.0)
    return Micrograph(MrcStack(tmp_path / name))


def radial_power(windows):
    n = windows.shape[-1]
    power = np.abs(np.fft.fft2(windows - windows.mean((1, 2), keepdims=True))) ** 2
    frequency = np.fft.fftfreq(n, 1 / n)
    shell = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    return np.bincount(shell, power.mean(0).ravel()) / np.bincount(shell)


def all_windows(image, size):
    view = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return view[:: size // 2, :: size // 2].reshape(-1, size, size)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0, 1.5])
def test_spectrum_is_that_of_the_noise(tmp_path, exponent):
    """Within 5 % in every shell, averaged over 30 micrographs with particles."""
    rng = np.random.default_rng(2)
    found, true = [], []
    for _ in range(30):
        noise = coloured(rng, exponent)
        centres = rng.uniform(0, EDGE, (20, 2))
        image = micrograph(tmp_path, noise + 3 * blobs(centres))
        windows = choose_windows(image, SIZE, 40, centres, RADIUS, rng)
        assert (len(windows), windows.overlapping) == (40, 0)
        found.append(radial_power(image.cut(windows.corners, SIZE)))
        true.append(radial_power(all_windows(noise, SIZE)))
    ratio = np.mean(found, 0)[1 : SIZE // 2 + 1] / np.mean(true, 0)[1 : SIZE // 2 + 1]
    assert np.abs(ratio - 1).max() < 0.05, ratio


def test_no_window_touches_a_particle(tmp_path):
    """Judged pixel by pixel, with particles on and over the edges."""
    rng = np.random.default_rng(3)
    centres = rng.uniform(-5, EDGE + 5, (60, 2))
    y, x = np.mgrid[:EDGE, :EDGE]
    taken = np.zeros((EDGE, EDGE), dtype=bool)
    for cx, cy in centres:
        taken |= (x - cx) ** 2 + (y - cy) ** 2 <= RADIUS**2
    image = micrograph(tmp_path, coloured(rng, 0))
    windows = choose_windows(image, SIZE, 60, centres, RADIUS, rng)
    assert len(windows) == 60
    for cx, cy in windows.corners:
        assert min(cx, cy) >= 0
        assert max(cx, cy) + SIZE <= EDGE
        assert not taken[cy : cy + SIZE, cx : cx + SIZE].any()
    # and none that is free is missed
    corners = free_corners((EDGE, EDGE), SIZE, 16, centres, RADIUS)
    free = [not taken[b : b + SIZE, a : a + SIZE].any() for b in range(0, 481, 16)
            for a in range(0, 481, 16)]  # fmt: skip
    assert len(corners) == sum(free)


def test_junk_is_avoided_even_where_it_prevails(tmp_path):
    """Two thirds carbon: the usual texture is that of the quiet third."""
    rng = np.random.default_rng(4)
    noise = coloured(rng, 0)
    noise[:, : 2 * EDGE // 3] += 2 * coloured(rng, 1.5)[:, : 2 * EDGE // 3]
    unpicked = np.array([[400.0, 100.0], [450.0, 300.0]])
    image = micrograph(tmp_path, noise + 6 * blobs(unpicked))
    windows = choose_windows(image, SIZE, 30, np.empty((0, 2)), RADIUS, rng)
    assert len(windows) == 30
    assert windows.corners[:, 0].min() > 2 * EDGE // 3 - SIZE // 2
    for centre in unpicked:
        inside = ((windows.corners < centre - 4) & (windows.corners + SIZE > centre + 4)).all(1)
        assert not inside.any()


def test_gradients_and_hot_pixels_do_not_decide(tmp_path):
    rng = np.random.default_rng(5)
    noise = coloured(rng, 0)
    y, x = np.mgrid[:EDGE, :EDGE]
    gradient = noise + 0.01 * x - 0.02 * y
    flat = noise.copy()
    flat[rng.integers(0, EDGE, 200), rng.integers(0, EDGE, 200)] = 1e5
    for image in (gradient, flat):
        found = micrograph(tmp_path, image)
        corners = free_corners(found.shape, SIZE, 4, np.empty((0, 2)), 0.0)
        assert quiet(found.low_passed(1), corners, SIZE).mean() > 0.98
    assert np.abs(found.cut(corners[:200], SIZE)).max() < 20


def test_dead_areas_are_avoided(tmp_path):
    rng = np.random.default_rng(6)
    noise = coloured(rng, 0)
    noise[:, :100] = 0
    windows = choose_windows(micrograph(tmp_path, noise), SIZE, 40, np.empty((0, 2)), RADIUS, rng)
    assert windows.corners[:, 0].min() >= 96


def test_too_little_room(tmp_path):
    rng = np.random.default_rng(7)
    image = micrograph(tmp_path, coloured(rng, 0, 96))
    centres = np.array([[80.0, 48.0], [80.0, 10.0], [80.0, 90.0]])
    windows = choose_windows(image, SIZE, 12, centres, 15.0, rng)
    assert len(windows) == 12
    assert 6 <= windows.overlapping <= 10
    assert len(np.unique(windows.corners, axis=0)) == 12
    everywhere = np.stack(np.meshgrid(*[np.arange(0, 96, 20.0)] * 2), -1).reshape(-1, 2)
    assert len(choose_windows(image, SIZE, 12, everywhere, 15.0, rng)) == 0
    assert len(choose_windows(image, 128, 12, centres, 15.0, rng)) == 0


def test_windows_do_not_overlap_while_there_is_room():
    grid = np.stack(np.meshgrid(*[np.arange(0, 161, 8)] * 2), -1).reshape(-1, 2)
    full = spread_out(grid, 32, 36, np.random.default_rng(0))
    assert (len(full), full.overlapping) == (36, 0)
    gap = np.abs(full.corners[:, None] - full.corners[None]).max(-1)
    assert gap[~np.eye(36, dtype=bool)].min() >= 32


def test_variance_by_integral_images_equals_a_fit(generator):
    rng = np.random.default_rng(8)
    image = rng.normal(100, 1, (40, 50)) + np.arange(50) * 0.3
    corners = np.array([[0, 0], [7, 3], [30, 20]])
    y, x = np.mgrid[:20, :20]
    plane = np.stack([np.ones(400), x.ravel(), y.ravel()], 1)
    for (cx, cy), value in zip(corners, window_variance(image, corners, 20), strict=True):
        pixels = image[cy : cy + 20, cx : cx + 20].ravel()
        rest = pixels - plane @ np.linalg.lstsq(plane, pixels, rcond=None)[0]
        assert value == pytest.approx(rest.var(), rel=1e-9)


@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12])
def test_every_mode_is_read(tmp_path, mode):
    """Whole numbers, so that all modes hold the same."""
    values = np.rint(50 + 10 * coloured(np.random.default_rng(9), 0, 64)).clip(0, 120)
    write_mrc(tmp_path / "m.mrc", values.astype(np.float32), 1.0)
    raw = bytearray((tmp_path / "m.mrc").read_bytes()[:1024])
    raw[12:16] = np.int32(mode).tobytes()
    kind = {0: "i1", 1: "<i2", 2: "<f4", 6: "<u2", 12: "<f2"}[mode]
    (tmp_path / "m.mrc").write_bytes(raw + values.astype(kind).tobytes())
    image = Micrograph(MrcStack(tmp_path / "m.mrc"))
    assert np.array_equal(image.cut(np.array([[3, 5]]), 16)[0], values[5:21, 3:19])
    assert np.allclose(image.low_passed(4)[2, 1], values[8:12, 4:8].mean())


def test_what_is_no_micrograph(tmp_path):
    image = coloured(np.random.default_rng(1), 0, 64)
    with pytest.raises(InputError, match="motion-corrected"):
        micrograph(tmp_path, np.stack([image, image]))
    with pytest.raises(InputError, match="constant"):
        micrograph(tmp_path, np.ones((64, 64)))
    image[10, 20] = np.nan
    with pytest.raises(InputError, match="NaN"):
        micrograph(tmp_path, image).low_passed(1)
