"""Particles brought onto class images: gains, derivatives, places and sums, against the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from planar_case import BOX, PIXEL, planar, shapes
from vitreous.methods.class2d.alignment import Aligner, ClassSums
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.physics.polar import to_polar

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = torch.full((BOX // 2 + 1,), 50.0)


def aligner(radius: int, search_radius: int, count: int = 3, **more: bool) -> Aligner:
    return Aligner(
        shapes(count),
        FrequencyBand(BOX, PIXEL, radius),
        NOISE,
        shift_range_angstrom=14.0,
        search_radius=search_radius,
        **more,
    )


def turns_apart(found: Tensor, truth: Tensor) -> Tensor:
    return ((found - truth + math.pi) % (2 * math.pi) - math.pi).abs()


@pytest.mark.parametrize("search_radius", [8, 12])
def test_clean_images_find_class_turn_and_shift(search_radius: int) -> None:
    data, task = planar(60), aligner(12, search_radius)
    polar = task.polar(data.images, data.optics)
    found = task(
        data.images, data.optics, torch.ones(60), polar=polar, draws=0, generator=torch.Generator()
    )
    assert torch.equal(found.template[:, 0], data.label)
    step = 2 * math.pi / task.grid.angles
    assert turns_apart(found.angle_rad[:, 0], data.angle).max() < 1.6 * step
    error = (found.shift_angstrom[:, 0] - data.shift).norm(dim=1)
    # of a grid of 4.5 Å at a band of 12 shells, refined where the search's is narrower
    assert error.max() < (3.0 if search_radius < 12 else 3.5)
    assert error.median() < (0.8 if search_radius < 12 else 2.0)


def test_gains_of_refined_places_are_those_of_a_search() -> None:
    data, wide, refined = planar(40, noise=1.0), aligner(12, 12), aligner(12, 8)
    searched, refined_places = (
        task(
            data.images,
            data.optics,
            torch.ones(40),
            polar=task.polar(data.images, data.optics),
            draws=0,
            generator=torch.Generator(),
        )
        for task in (wide, refined)
    )
    ratio = refined_places.log_likelihood_ratio[:, 0] / searched.log_likelihood_ratio[:, 0]
    # as good as the best of a grid of all frequencies
    assert 0.99 < ratio.median() < 1.05
    assert ratio.quantile(0.05) > 0.9


def test_slopes_are_those_of_finite_differences() -> None:
    data, task = planar(6), aligner(12, 8)
    polar = task.polar(data.images, data.optics)
    angle = (data.angle / (2 * math.pi / task.grid.angles)).round() * (
        2 * math.pi / task.grid.angles
    )
    shift = data.shift + torch.tensor([2.0, -1.0])
    here = task._fit(polar, data.label, angle, shift)
    for axis in (0, 1):
        change = torch.zeros(3)
        change[1 + axis] = 0.02
        gains = [
            task._fit(
                polar, data.label, *task._moved(angle, shift, sign * change)
            ).log_likelihood_ratio
            for sign in (1, -1)
        ]
        slope = (gains[0] - gains[1]) / 0.04
        torch.testing.assert_close(slope, 2 * here.gradient[:, 1 + axis], rtol=0.02, atol=0.05)
    step = 2 * math.pi / task.grid.angles  # the grid's own is the smallest turn there is
    gains = [
        task._fit(
            polar, data.label, (angle + sign * step) % (2 * math.pi), shift
        ).log_likelihood_ratio
        for sign in (1, -1)
    ]
    slope = (gains[0] - gains[1]) / (2 * step)
    torch.testing.assert_close(slope, 2 * here.gradient[:, 0], rtol=0.25, atol=0.1 * slope.std())


def test_draws_spread_as_wide_as_the_likelihood() -> None:
    data, task = planar(1, noise=1.0), aligner(12, 8)
    polar = task.polar(data.images, data.optics)
    found = task(
        data.images,
        data.optics,
        torch.ones(1),
        polar=polar,
        draws=400,
        generator=torch.Generator().manual_seed(1),
    )
    assert found.sampled is not None
    best = found.template[0, 0]
    mine = found.sampled.template[0] == best
    assert mine.float().mean() > 0.9
    fit = task._fit(polar, found.template[:, 0], found.angle_rad[:, 0], found.shift_angstrom[:, 0])
    expected = torch.linalg.inv(fit.precision[0])
    spread = found.sampled.shift_angstrom[0][mine].var(0).sum()
    assert 0.5 < spread / expected.diagonal()[1:].sum() < 2.0


def test_sums_of_clean_images_are_their_classes() -> None:
    data, task = planar(90), aligner(10, 8)
    polar = task.polar(data.images, data.optics)
    found = task(
        data.images, data.optics, torch.ones(90), polar=polar, draws=0, generator=torch.Generator()
    )
    sums = ClassSums(task)
    sums.add(polar, found.ranked(0, 1), data.half - 1)
    average = sums.numerator.sum(0) / sums.weight.sum(0)
    truth = to_polar(FrequencyBand(BOX, PIXEL, 10).images(data.shapes), task.grid)
    for k in range(3):
        a, b = average[k].flatten(), truth[k].flatten()
        assert ((a * b.conj()).sum().real / (a.norm() * b.norm())) > 0.97
    assert sums.sizes.tolist() == torch.bincount(data.label).tolist()
    assert sums.images == 90


def test_without_turns_only_the_class_is_found() -> None:
    data, task = planar(30, reach=0.0), aligner(10, 8, as_they_lie=True)
    still = planar(30, reach=0.0)
    polar = task.polar(still.images, still.optics)
    found = task(
        still.images, None, torch.ones(30), polar=polar, draws=2, generator=torch.Generator()
    )
    assert found.sampled is not None
    assert not found.angle_rad.any()
    assert not found.shift_angstrom.any()
    assert found.sampled.template.shape == (30, 2)
    lying = Aligner(
        data.shapes, FrequencyBand(BOX, PIXEL, 10), NOISE, shift_range_angstrom=0, search_radius=10,
        as_they_lie=True,
    )  # fmt: skip
    clean = lying.polar(data.shapes, None)
    again = lying(
        data.shapes, None, torch.ones(3), polar=clean, draws=0, generator=torch.Generator()
    )
    assert again.template[:, 0].tolist() == [0, 1, 2]
