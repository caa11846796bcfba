"""Classes of planted shapes are found, from the first step on reproducibly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from planar_case import PIXEL, Planar, planar
from vitreous.core.images import ImagesInMemory
from vitreous.methods.class2d.class_averages import ClassAverages, ClassConfig
from vitreous.metrics.clustering import normalised_mutual_information

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = ClassConfig(
    classes=5, shift_range_angstrom=12.0, rounds=9, last_rounds=2, images_per_class=60, radius=11
)


def made(data: Planar, config: ClassConfig = CONFIG, seed: int = 1) -> ClassAverages:
    return ClassAverages(
        ImagesInMemory(data.images),
        data.optics,
        data.half,
        config,
        generator=torch.Generator().manual_seed(seed),
        pixel_size_angstrom=PIXEL,
    )


def finished(task: ClassAverages) -> ClassAverages:
    shares = [task.progress]
    while not task.done:
        task.step()
        shares.append(task.progress)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return task


def test_planted_shapes_are_told_apart_in_noise() -> None:
    data = planar(600, noise=1.5)
    result = finished(made(data)).result()
    images, frc, found = result.averages, result.frc, result.assignments
    sizes = torch.bincount(found.label)
    assert normalised_mutual_information(found.label, data.label) > 0.75
    # several classes of one shape are right, one class of several shapes is not
    shares = [
        torch.bincount(data.label[found.label == k]).max() / int(sizes[k])
        for k in range(len(images))
    ]
    assert min(shares) > 0.9
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert torch.bincount(found.label).tolist() == sizes.tolist()
    assert frc[:, 1:6].mean() > 0.8
    for k in range(len(images)):  # and each looks like its shape, whatever its turn
        shape = data.shapes[int(torch.bincount(data.label[found.label == k]).argmax())]
        power = [torch.fft.rfft2(one).abs() for one in (images[k], shape)]
        rings = [one[:6, :6].flatten()[1:].sort().values for one in power]
        assert 0.5 < rings[0].norm() / rings[1].norm() < 1.5


def test_as_they_lie_turned_shapes_are_not_told_apart() -> None:
    data = planar(300, noise=0.5)
    config = dataclasses.replace(CONFIG, as_they_lie=True)
    found = finished(made(data, config)).assignments
    assert normalised_mutual_information(found.label, data.label) < 0.5
    assert not found.angle_rad.any()


def test_noise_and_clean_images_end_finite() -> None:
    noise = dataclasses.replace(
        planar(200), images=torch.randn(200, 32, 32, generator=torch.Generator().manual_seed(3))
    )
    task = finished(made(noise))
    assert task.averages.isfinite().all()
    assert task.assignments.log_likelihood_ratio.abs().max() < 1.0  # of particles it is hundreds
    task = finished(made(planar(200)))
    assert task.averages.isfinite().all()
    assert task.assignments.log_likelihood_ratio.isfinite().all()
    assert task.assignments.log_likelihood_ratio.median() > 100.0


@pytest.mark.slow
def test_continued_is_bitwise_the_same() -> None:
    data = planar(200, noise=1.0)
    whole, first = made(data), made(data)
    for _ in range(4):
        first.step()
    state = first.state_dict()
    second = made(data, seed=5)
    second.load_state_dict(state)
    a, b = finished(whole).state_dict(), finished(second).state_dict()
    assert torch.equal(a["averages"], b["averages"])
    for name, value in a["assignments"].items():
        assert torch.equal(value, b["assignments"][name]), name


def test_a_class_without_particles_gets_half_of_the_largest() -> None:
    task = made(planar(100))
    task.sizes = torch.tensor([60.0, 30.0, 5.0, 4.0, 1.0])
    n = task.averages.shape[-1]
    shown = torch.arange(5.0)[:, None, None].expand(5, n, n)
    shared = task._without_empty_classes(shown, [shown + 10, shown + 20])[:, 0, 0]
    # mean size 20: below 4 is too few
    assert shared.tolist() == [10.0, 1.0, 2.0, 3.0, 20.0]


def test_fewer_particles_than_classes_are_refused() -> None:
    data = planar(4)
    with pytest.raises(ValueError, match="number of images 4, got 5"):
        made(data)
