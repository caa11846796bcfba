"""Assignment under one map: poses of noiseless and noisy images, weights, and what is dropped."""

from __future__ import annotations

import pytest
import torch

from matching_case import BOX, PIXEL, case
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.solvers.assignment import Assigner, Assignment
from vitreous.solvers.images import ImagesInMemory
from vitreous.solvers.pose_assignment import shell_power
from vitreous.solvers.pose_config import PoseConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = PoseConfig(start_resolution_angstrom=24.0, shift_range_angstrom=9.0)
FLAT = torch.ones(BOX // 2 + 1)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_noiseless_images_find_their_pose_from_nothing(symmetry: str) -> None:
    data = case(40, symmetry)
    config = PoseConfig(24.0, symmetry=symmetry, shift_range_angstrom=9.0)
    assigner = Assigner(data.volume, PIXEL, (8, 13), FLAT, config)
    found, left = assigner(data.images, data.optics, scale=1.0)
    assert data.errors_deg(found.rotation[:, :1]).max() < 0.5
    assert (found.shift_angstrom[:, 0] - data.shift).norm(dim=1).max() < 0.3
    total = shell_power(ImagesInMemory(data.images), torch.arange(40))[1:14].sum()
    points = assigner.refiner.points_per_shell()[1:]
    assert (left[1:] / points / 40).sum() < 0.005 * total  # nothing is left


def test_posteriors_sum_to_one_and_are_sorted() -> None:
    data = case(30, noise=6.0)
    noise = shell_power(ImagesInMemory(data.images), torch.arange(30))
    assigner = Assigner(data.volume, PIXEL, (5,), noise, CONFIG)
    found, _ = assigner(data.images, data.optics)
    torch.testing.assert_close(found.posterior.sum(1), torch.ones(30))
    assert (found.posterior.diff(dim=1) <= 0).all()
    assert (found.posterior[:, 0] < 0.9).any()
    assert ((found.posterior > 0) <= found.gain.isfinite()).all()
    few = found.best(2)
    torch.testing.assert_close(few.posterior.sum(1), torch.ones(30))


def test_the_same_pose_counts_once() -> None:
    data = case(5)
    near = axis_angle_to_matrix(torch.tensor([0.01, 0.0, 0.0])) @ data.rotation
    start = Assignment(
        torch.stack([near, data.rotation], 1),
        torch.stack([data.shift, data.shift], 1),
        torch.zeros(5, 2),
        torch.ones(5, 2),
        torch.full((5, 2), 0.5),
    )
    assigner = Assigner(data.volume, PIXEL, (8,), FLAT, CONFIG, search=False)
    found, _ = assigner(data.images, data.optics, start=start, scale=1.0)
    assert found.gain.shape == (5, 1)
    with pytest.raises(ValueError, match="give start poses"):
        assigner(data.images, data.optics)


def test_scales_of_images_are_found() -> None:
    data = case(20)
    scale = torch.linspace(0.5, 2.0, 20)
    images = data.images * scale[:, None, None]
    found, _ = Assigner(data.volume, PIXEL, (8,), FLAT, CONFIG)(images, data.optics)
    assert (found.scale[:, 0] / scale - 1).abs().max() < 0.02


def test_an_empty_image_has_no_pose_but_breaks_nothing() -> None:
    data = case(2)
    images = torch.stack([data.images[0], torch.zeros(BOX, BOX)])
    found, _ = Assigner(data.volume, PIXEL, (8,), FLAT, CONFIG)(images, data.optics)
    assert found.posterior.isfinite().all()
    assert found.rotation.isfinite().all()
    assert found.gain[1, 0] == 0


def test_batches_with_different_numbers_of_candidates_join() -> None:
    def some(b: int, c: int) -> Assignment:
        return Assignment(
            torch.eye(3).expand(b, c, 3, 3),
            torch.zeros(b, c, 2),
            torch.ones(b, c),
            torch.ones(b, c),
            torch.full((b, c), 1 / c),
        )

    joined = Assignment.cat([some(2, 3), some(1, 1)])
    assert joined.posterior.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert joined.gain[2].tolist() == [1.0, -torch.inf, -torch.inf]
