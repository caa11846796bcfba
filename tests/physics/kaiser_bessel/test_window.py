"""Windows against numerical integrals, and volumes of windows against sums over all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import iv, j0
from torch import Tensor

from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size

WINDOWS = [KaiserBessel(), KaiserBessel(2, 19.0, 4.0), KaiserBessel(1, 5.0, 1.5)]
windows = pytest.mark.parametrize("window", WINDOWS)


def at(function: Any, radius: float) -> float:
    return float(function(torch.tensor(radius, dtype=torch.float64)))


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@windows
def test_the_window_is_that_of_the_definition(window: KaiserBessel) -> None:
    for t in (0.0, 0.3, 0.8, 0.999):
        beta = math.sqrt(1 - t**2)
        expected = beta**window.m * iv(window.m, window.alpha * beta) / iv(window.m, window.alpha)
        assert at(window.value, t * window.support) == pytest.approx(expected, rel=1e-10)
    assert at(window.value, window.support + 0.1) == 0.0


@windows
def test_the_xray_transform_is_the_line_integral(window: KaiserBessel) -> None:
    for radius in (0.0, 0.4, 1.2):
        end = math.sqrt(window.support**2 - radius**2)
        integral = 2 * quad(lambda z, r=radius: at(window.value, math.hypot(r, z)), 0, end)[0]
        assert at(window.xray, radius) == pytest.approx(integral, rel=1e-9)
    assert at(window.xray, window.support + 0.1) == at(window.xray_slope, window.support + 1) == 0


@windows
def test_the_slope_is_the_derivative(window: KaiserBessel) -> None:
    step = 1e-5
    for radius in (0.0, 0.4, 1.2):
        rise = at(window.xray, radius + step) - at(window.xray, abs(radius - step))
        assert at(window.xray_slope, radius) == pytest.approx(rise / (2 * step), abs=1e-8)


@windows
def test_the_transform_is_that_of_the_window_and_of_its_projection(window: KaiserBessel) -> None:
    for q in (0.0, 0.2, 0.5, 1.0, 2.3):

        def in_3d(r: float, q: float = q) -> float:
            return 4 * math.pi * r * r * float(np.sinc(2 * q * r)) * at(window.value, r)

        def in_2d(r: float, q: float = q) -> float:
            return 2 * math.pi * r * float(j0(2 * math.pi * q * r)) * at(window.xray, r)

        for integrand in (in_3d, in_2d):
            expected = quad(integrand, 0, window.support, limit=200)[0]
            assert at(window.transform, q) == pytest.approx(expected, abs=1e-8)


def brute_expansion(window: KaiserBessel, coefficients: Tensor, n: int, scale: float) -> Tensor:
    size = coefficients.shape[-1]
    voxel = torch.arange(n, dtype=torch.float64) - n // 2
    lattice = (torch.arange(size, dtype=torch.float64) - size // 2) * scale
    squared = (voxel[:, None] - lattice) ** 2
    distance = (
        squared[:, None, None, :, None, None]
        + squared[None, :, None, None, :, None]
        + squared[None, None, :, None, None, :]
    ).sqrt()
    return (window.value(distance / scale) * coefficients).sum((-3, -2, -1))


@windows
@pytest.mark.parametrize(
    ("size", "n", "scale"), [(6, 6, 1), (5, 9, 2), (4, 12, 3), (5, 8, 1.7), (6, 15, 1), (7, 4, 2)]
)
def test_expansion_sums_all_windows(window: KaiserBessel, size: int, n: int, scale: float) -> None:
    coefficients = noise(size, size, size)
    ours = window.expand(coefficients, n, scale)
    assert torch.allclose(
        ours, brute_expansion(window, coefficients, n, scale), atol=1e-9 * float(ours.abs().max())
    )


def test_expansion_takes_batches_and_passes_gradients() -> None:
    window, batch = WINDOWS[0], noise(2, 4, 4, 4).requires_grad_()
    ours = window.expand(batch, 7, 2)
    assert torch.equal(ours[1], window.expand(batch[1], 7, 2))
    upstream = noise(2, 7, 7, 7)
    (gradient,) = torch.autograd.grad((ours * upstream).sum(), batch)
    product = (batch.detach() * gradient).sum()
    assert torch.allclose(product, (ours.detach() * upstream).sum())


@pytest.mark.parametrize(("n", "scale"), [(16, 1), (17, 1), (24, 2), (25, 3), (40, 4)])
def test_analysis_undoes_expansion(n: int, scale: int) -> None:
    window = KaiserBessel()
    size = lattice_size(n, scale)
    coefficients = torch.zeros(size, size, size, dtype=torch.float64)
    middle = slice(size // 2 - 1, size // 2 + 2)
    coefficients[middle, middle, middle] = noise(3, 3, 3)
    again = window.analyse(window.expand(coefficients, n, scale), scale)
    assert again.shape == coefficients.shape
    assert (again - coefficients).abs().max() < 1e-7


def test_analysis_by_wide_windows_keeps_the_map_and_bounds_the_noise() -> None:
    window, n = KaiserBessel(2, 19.0, 4.0), 24
    coefficients = torch.zeros(n, n, n, dtype=torch.float64)
    coefficients[8:16, 8:16, 8:16] = noise(8, 8, 8)
    volume = window.expand(coefficients, n)
    again = window.expand(window.analyse(volume), n)
    assert (again - volume).norm() < 1e-2 * volume.norm()
    assert window.analyse(noise(n, n, n)).abs().max() < 300


def test_analysis_is_the_least_squares_fit() -> None:
    """The residual is orthogonal to every window of the interior."""
    window, n, scale = WINDOWS[0], 24, 2
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    bell = torch.exp(-(axis**2) / 4)
    volume = bell[:, None, None] * bell[:, None] * bell.roll(2) * (1 + 0.5 * noise(n, n, n))
    residual = volume - window.expand(window.analyse(volume, scale), n, scale)
    for centre in ((6, 6, 6), (7, 5, 6), (4, 8, 7)):
        one = torch.zeros(12, 12, 12, dtype=torch.float64)
        one[centre] = 1.0
        basis = window.expand(one, n, scale)
        assert abs(float((basis * residual).sum())) < 1e-6 * float(basis.norm() * volume.norm())
    assert residual.norm() < 0.5 * volume.norm()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="m must be at least 1, got 0"):
        KaiserBessel(0)
    with pytest.raises(ValueError, match="must be positive"):
        KaiserBessel(2, 10.0, 0.0)
    with pytest.raises(ValueError, match="must be cubic"):
        KaiserBessel().expand(torch.zeros(4, 4, 3), 4)
    with pytest.raises(ValueError, match="scale must be positive"):
        KaiserBessel().expand(torch.zeros(4, 4, 4), 4, 0.0)
    with pytest.raises(ValueError, match="whole number from 1"):
        KaiserBessel().analyse(torch.zeros(4, 4, 4), 0)
