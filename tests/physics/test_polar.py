"""Polar spectra against brute force, and the correlations that come out of their harmonics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitreous.physics.polar import (
    PolarGrid,
    angular_derivative,
    circle_harmonics,
    conjugate_harmonics,
    from_polar,
    half_turn_harmonics,
    rotate_polar,
    synthesis_matrix,
    to_polar,
)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def whole_circles(half: Tensor) -> Tensor:
    return torch.cat([half, half.conj()], -1)


@pytest.mark.parametrize("n", [12, 13])
def test_polar_spectra_are_the_exact_sums(n: int) -> None:
    image, grid = random(1, n, n), PolarGrid(n, 4)
    found = to_polar(image, grid)[0]
    for r, j in ((1, 0), (3, 5), (4, 11)):
        angle = 2 * math.pi * j / grid.angles
        total = 0j
        for y in range(n):
            for x in range(n):
                turns = r * (math.cos(angle) * (x - n // 2) + math.sin(angle) * (y - n // 2)) / n
                phase = -2 * math.pi * turns
                total += complex(math.cos(phase), math.sin(phase)) * float(image[0, y, x])
        assert abs(complex(found[r - 1, j]) - total) < 1e-9


def test_turning_an_image_shifts_its_angles() -> None:
    n, grid = 13, PolarGrid(13, 5)
    image = random(1, n, n)
    quarter = torch.rot90(image, -1, (1, 2))  # x to y: counter-clockwise where y points down
    before, after = (whole_circles(to_polar(one, grid)) for one in (image, quarter))
    torch.testing.assert_close(after, before.roll(grid.angles // 4, -1))


def test_harmonics_give_the_correlation_at_every_angle() -> None:
    grid = PolarGrid(12, 4)
    images, templates = (to_polar(random(b, 12, 12), grid) for b in (2, 3))
    parts = []
    for parity in (0, 1):
        left, right = (circle_harmonics(x)[parity::2] for x in (images, templates))
        product = torch.bmm(left.repeat(2, 1, 1), conjugate_harmonics(right))
        table = synthesis_matrix(grid.angles, parity, torch.device("cpu")).double()
        parts.append((table @ product.flatten(1)).view(-1, 2, 3))
    found = torch.cat([parts[0] + parts[1], parts[0] - parts[1]])
    full, other = whole_circles(images), whole_circles(templates)
    for j in (0, 1, 7, grid.angles - 1):
        turned = other.roll(j, -1)
        direct = (full[:, None] * turned.conj()).real.sum((-2, -1))
        assert (found[j] - direct).abs().max() < 1e-5 * direct.abs().max()


def test_even_harmonics_give_the_correlation_of_what_repeats_after_half_a_turn() -> None:
    grid = PolarGrid(12, 4)
    one = random(2, 4, grid.angles // 2).square()
    other = random(3, 4, grid.angles // 2).square()
    left = half_turn_harmonics(one).repeat(2, 1, 1)
    product = torch.bmm(left, conjugate_harmonics(half_turn_harmonics(other)))
    table = synthesis_matrix(grid.angles, 0, torch.device("cpu")).double()
    found = (table @ product.flatten(1)).view(-1, 2, 3)
    for j in range(grid.angles // 2):
        direct = 2 * (one[:, None] * other.roll(j, -1)).sum((-2, -1))
        assert (found[j] - direct).abs().max() < 1e-5 * direct.max()


def test_quadrature_stands_for_all_integer_frequencies() -> None:
    weight = PolarGrid(64, 20).quadrature
    points = sum(
        1 for x in range(-21, 22) for y in range(-21, 22) if 0.25 < x * x + y * y <= 20.5**2
    )
    assert float(weight.sum() * PolarGrid(64, 20).angles) == pytest.approx(points, rel=0.02)


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="below half of the box, got 8 for a box of 16"):
        PolarGrid(16, 8)
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        PolarGrid(16, 5, 30)
    with pytest.raises(ValueError, match=r"\(b, 16, 16\) for this grid"):
        to_polar(torch.zeros(1, 8, 8), PolarGrid(16, 5))


@pytest.mark.parametrize("n", [16, 17])
def test_images_come_back_from_their_circles(n: int) -> None:
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    y, x = axis[:, None], axis
    blobs = torch.exp(-((x - 2) ** 2 + y**2) / 6) - 0.7 * torch.exp(-(x**2 + (y + 3) ** 2) / 5)
    image = (blobs - blobs.mean())[None]
    grid = PolarGrid(n, (n - 1) // 2)
    back = from_polar(to_polar(image, grid), grid)
    error = ((back - image).abs() / image.abs().max())[0]
    radius = (x**2 + y**2).sqrt()
    assert error[radius < n / 4].max() < 0.02
    assert error[radius < n / 2].max() < 0.05
    with pytest.raises(ValueError, match=r"values must be \(b, 3, 10\)"):
        from_polar(torch.zeros(1, 4, 10, dtype=torch.complex128), PolarGrid(n, 3))


def test_circles_are_turned_like_images() -> None:
    grid = PolarGrid(13, 5)
    image = random(3, 13, 13)
    steps = torch.tensor([grid.angles // 4, grid.angles // 2, 0])
    back = torch.stack(
        [torch.rot90(one, k, (0, 1)) for one, k in zip(image, (1, 2, 0), strict=True)]
    )
    torch.testing.assert_close(rotate_polar(to_polar(image, grid), steps), to_polar(back, grid))
    real = to_polar(image, grid).abs()
    torch.testing.assert_close(rotate_polar(real, steps), to_polar(back, grid).abs())


def test_the_derivative_over_the_angle_is_that_of_differences() -> None:
    n, coarse = 12, PolarGrid(12, 4)
    fine = PolarGrid(12, 4, 400 * coarse.angles)
    image = random(1, n, n)
    axis = torch.arange(n) - n // 2
    image = image * (axis[:, None] ** 2 + axis**2 < 20)
    dense = to_polar(image, fine)
    slope = (dense.roll(-1, -1) - dense.roll(1, -1)) / (2 * fine.angle_rad[1])
    found = angular_derivative(to_polar(image, coarse))
    expected = slope[..., ::400]
    assert (found - expected)[..., 1:].abs().max() < 2e-3 * expected.abs().max()
