"""A map without a start: blobs, trials, the choice of the best run, and what noise comes to."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from matching_case import BOX, PIXEL, Case, case
from vitreous.core.images import ImagesInMemory
from vitreous.io.nested import flatten_state, restore_state
from vitreous.maps.align import align_maps
from vitreous.maps.angular_degrees import degree_parts
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.em.config import Batches, RandomStartConfig
from vitreous.methods.em.random_start import RandomStart, random_blobs

pytestmark = pytest.mark.usefixtures("one_thread")
SLOW = pytest.mark.slow
CONFIG = RandomStartConfig(
    symmetry="D2",
    shift_range_angstrom=9.0,
    images=300,
    starts=2,
    batches=Batches(parts=2, rounds=4),
    rounds=4,
)


def search(data: Case, config: RandomStartConfig = CONFIG) -> RandomStart:
    return RandomStart(ImagesInMemory(data.images), data.optics, config, pixel_size_angstrom=PIXEL)


def test_blobs_obey_their_symmetry_and_stay_inside() -> None:
    blobs = random_blobs(24, 20.0, "D2", torch.Generator().manual_seed(3))
    inner = blobs[1:, 1:, 1:]
    for axes in ((0, 1), (0, 2), (1, 2)):
        torch.testing.assert_close(inner, inner.flip(axes), atol=1e-5, rtol=0)
    assert blobs[12, 12, 0] < 0.05 * blobs.max()
    other = random_blobs(24, 20.0, "D2", torch.Generator().manual_seed(4))
    assert float((blobs - other).norm() / blobs.norm()) > 0.2


@pytest.mark.slow
def test_a_map_is_found_without_a_start() -> None:
    data = case(400, symmetry="D2", noise=1.0)
    run = search(data)
    told = []
    while not run.done:
        told.append(run.step())
    assert len(told) == run.steps == 13
    assert [stats["start"] for stats in told[:10]] == [1] * 5 + [2] * 5
    assert len(run.rows) == 300
    assert run.best is run.runs[0 if run.misfits[0] <= run.misfits[1] else 1]
    found = align_maps(run.result(), data.volume, pixel_size_angstrom=PIXEL, point_group="D2")
    assert fsc_resolution(fsc(found.aligned, data.volume), 0.5, BOX, PIXEL) < 20.0


@pytest.mark.slow
def test_images_recognise_a_map_of_other_images_and_noise_does_not() -> None:
    data = case(400, symmetry="D2", noise=1.0)
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(8))
    config = replace(CONFIG, starts=1, batches=Batches(2, 4), rounds=1, images=100)
    runs = []
    for images in (data.images[:200], data.images[200:], noise[:200], noise[200:]):
        one = RandomStart(
            ImagesInMemory(images),
            data.optics[torch.arange(200)],
            config,
            pixel_size_angstrom=PIXEL,
        )
        while not one.done:
            one.step()
        runs.append(one)
    assert runs[0].map_score_on(runs[1]) > 8
    assert abs(runs[2].map_score_on(runs[3])) < 4


def test_too_few_images_are_refused() -> None:
    data = case(4)
    with pytest.raises(ValueError, match="at least four images, got 3"):
        RandomStart(ImagesInMemory(data.images[:3]), None, CONFIG, pixel_size_angstrom=PIXEL)


@pytest.mark.parametrize(
    "stop",
    [pytest.param(stop, marks=SLOW) for stop in (1, 5, 7, 11)],
)
def test_continued_after_a_stop_equals_uninterrupted(stop: int) -> None:
    data = case(60, symmetry="D2", noise=1.0)
    config = replace(CONFIG, images=60, rounds=2)
    whole, begun, resumed = (search(data, config) for _ in range(3))
    while not whole.done:
        whole.step()
    assert whole.steps_done == whole.steps == 11
    for _ in range(stop):
        begun.step()
    resumed.load_state_dict(restore_state(*flatten_state(begun.state_dict())))
    while not resumed.done:
        resumed.step()
    assert resumed.misfits == whole.misfits
    assert torch.equal(resumed.result(), whole.result())


DEGREES = replace(CONFIG, images=60, starts=1, degrees=2, batches=Batches(2, 1), rounds=2)


@pytest.mark.slow
def test_the_best_map_competes_with_itself_with_a_degree_reversed() -> None:
    run = search(case(60, symmetry="D2", noise=1.0), DEGREES)
    while len(run.runs) < 4:
        run.step()
    base, best = run.runs[0].maps()[2], run.best
    assert best is run.runs[1 + (run.misfits[2] < run.misfits[1])]
    power = degree_parts(base, 12).square().sum((1, 2, 3))
    assert run.reversed_degrees == [int(power.argmax()) + 1]
    rival = copy.deepcopy(run)._start_of_next_run()
    twice = best.maps()[2] - rival
    power = degree_parts(twice, 12).square().sum((1, 2, 3))
    assert float(power.max() / power.sum()) > 0.95
    assert int(power.argmax()) + 1 != run.reversed_degrees[0]
    while not run.done:
        run.step()
    assert run.steps_done == run.steps == 11
    assert len(run.misfits) == 5
    assert run.best is run.runs[3 + (run.misfits[4] < run.misfits[3])]


@SLOW
def test_continued_after_a_stop_among_reversed_degrees_equals_uninterrupted() -> None:
    data = case(60, symmetry="D2", noise=1.0)
    whole, begun, resumed = (search(data, DEGREES) for _ in range(3))
    while not whole.done:
        whole.step()
    for _ in range(7):
        begun.step()
    resumed.load_state_dict(restore_state(*flatten_state(begun.state_dict())))
    while not resumed.done:
        resumed.step()
    assert resumed.reversed_degrees == whole.reversed_degrees
    assert torch.equal(resumed.result(), whole.result())
