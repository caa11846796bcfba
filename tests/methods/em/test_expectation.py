"""Assignment under one map: poses of noiseless and noisy images, weights, and what is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from matching_case import BOX, PIXEL, case
from vitreous.core.images import ImagesInMemory, shell_power
from vitreous.core.rotation import axis_angle_to_matrix, geodesic_distance_deg
from vitreous.methods.em import two_stage_search
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep
from vitreous.methods.em.pose_posterior import PoseCandidates

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = RefinementConfig(start_resolution_angstrom=24.0, shift_range_angstrom=9.0)
FLAT = torch.ones(BOX // 2 + 1)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_noiseless_images_find_their_pose_from_nothing(symmetry: str) -> None:
    data = case(40, symmetry)
    config = RefinementConfig(24.0, symmetry=symmetry, shift_range_angstrom=9.0)
    assigner = ExpectationStep(data.volume, PIXEL, (8, 13), FLAT, config)
    assigned = assigner(data.images, data.optics, scale=1.0)
    found, left = assigned.candidates, assigned.residual_power
    assert data.errors_deg(found.rotation[:, :1]).max() < 0.5
    assert (found.shift_angstrom[:, 0] - data.shift).norm(dim=1).max() < 0.3
    total = shell_power(ImagesInMemory(data.images), torch.arange(40))[1:14].sum()
    points = assigner.refiner.points_per_shell()[1:]
    assert (left[1:] / points / 40).sum() < 0.005 * total  # nothing is left


def test_posteriors_sum_to_one_and_are_sorted() -> None:
    data = case(30, noise=6.0)
    noise = shell_power(ImagesInMemory(data.images), torch.arange(30))
    assigner = ExpectationStep(data.volume, PIXEL, (5,), noise, CONFIG)
    found = assigner(data.images, data.optics).candidates
    torch.testing.assert_close(found.posterior.sum(1), torch.ones(30))
    assert (found.posterior.diff(dim=1) <= 0).all()
    assert (found.posterior[:, 0] < 0.9).any()
    assert ((found.posterior > 0) <= found.log_likelihood_ratio.isfinite()).all()
    few = found.best(2)
    torch.testing.assert_close(few.posterior.sum(1), torch.ones(30))


def test_the_same_pose_counts_once() -> None:
    data = case(5)
    near = axis_angle_to_matrix(torch.tensor([0.01, 0.0, 0.0])) @ data.rotation
    start = PoseCandidates(
        torch.stack([near, data.rotation], 1),
        torch.stack([data.shift, data.shift], 1),
        torch.zeros(5, 2),
        torch.ones(5, 2),
        torch.full((5, 2), 0.5),
        torch.zeros(5, 2, 5, 5),
    )
    assigner = ExpectationStep(data.volume, PIXEL, (8,), FLAT, CONFIG, search=False)
    found = assigner(data.images, data.optics, start=start, scale=1.0).candidates
    assert found.log_likelihood_ratio.shape == (5, 1)
    with pytest.raises(ValueError, match="give candidates"):
        assigner(data.images, data.optics)


def test_scales_of_images_are_found() -> None:
    data = case(20)
    scale = torch.linspace(0.5, 2.0, 20)
    images = data.images * scale[:, None, None]
    found = ExpectationStep(data.volume, PIXEL, (8,), FLAT, CONFIG)(images, data.optics).candidates
    assert (found.scale[:, 0] / scale - 1).abs().max() < 0.02


def test_draws_spread_as_the_errors_of_refined_poses_do() -> None:
    data = case(200, noise=2.0)
    noise = (2.0 * case(200).images.std()) ** 2 * BOX**2 * torch.ones(BOX // 2 + 1)
    assigner = ExpectationStep(data.volume, PIXEL, (10,), noise, CONFIG, search=False)
    start = PoseCandidates(
        data.rotation[:, None],
        data.shift[:, None],
        torch.zeros(200, 1),
        torch.ones(200, 1),
        torch.ones(200, 1),
        torch.zeros(200, 1, 5, 5),
    )
    found = assigner(data.images, data.optics, start=start, scale=1.0).candidates
    rotation, shift = found.draw(20, torch.Generator().manual_seed(0))
    error = data.errors_deg(found.rotation[:, :1]).square().mean().sqrt()
    spread = geodesic_distance_deg(rotation, found.rotation[:, :, None]).square().mean().sqrt()
    assert 0.8 < spread / error < 1.25
    moved = (found.shift_angstrom[:, 0] - data.shift).square().mean().sqrt()
    drawn = (shift - found.shift_angstrom[:, :, None]).square().mean().sqrt()
    assert 0.8 < drawn / moved < 1.25


def test_an_empty_image_has_no_pose_but_breaks_nothing() -> None:
    data = case(2)
    images = torch.stack([data.images[0], torch.zeros(BOX, BOX)])
    found = ExpectationStep(data.volume, PIXEL, (8,), FLAT, CONFIG)(images, data.optics).candidates
    assert found.posterior.isfinite().all()
    assert found.rotation.isfinite().all()
    assert found.log_likelihood_ratio[1, 0] == 0


def test_batches_with_different_numbers_of_candidates_join() -> None:
    def some(b: int, c: int) -> PoseCandidates:
        return PoseCandidates(
            torch.eye(3).expand(b, c, 3, 3),
            torch.zeros(b, c, 2),
            torch.ones(b, c),
            torch.ones(b, c),
            torch.full((b, c), 1 / c),
            torch.zeros(b, c, 5, 5),
        )

    joined = PoseCandidates.cat([some(2, 3), some(1, 1)])
    assert joined.posterior.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert joined.log_likelihood_ratio[2].tolist() == [1.0, -torch.inf, -torch.inf]


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 60])
def test_shifts_that_are_clear_are_found_first_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    data = case(count, noise=1.0)
    noise = shell_power(ImagesInMemory(data.images), torch.arange(count))
    config = replace(CONFIG, shift_range_angstrom=40.0)
    found = []
    for radius in (6, 99):
        monkeypatch.setattr(two_stage_search, "_CENTRING_RADIUS", radius)
        assigner = ExpectationStep(data.volume, PIXEL, (10,), noise, config)
        assert assigner._search is not None
        assert (assigner._search._coarse is None) == (radius == 99)
        found.append(assigner(data.images, data.optics).candidates)
    first, every = (one.rotation[:, 0] for one in found)
    assert (geodesic_distance_deg(first, every) < 0.5).float().mean() > 0.95


def test_fault_27_images_are_taken_in_pieces_where_memory_runs_out(monkeypatch) -> None:
    data = case(10)
    step = ExpectationStep(data.volume, PIXEL, (8,), FLAT, CONFIG, search=False)
    known = data.rotation[:, None], data.shift[:, None], torch.zeros(10, 1), torch.ones(10, 1)
    start = PoseCandidates(*known, torch.ones(10, 1), torch.zeros(10, 1, 5, 5))
    whole = step(data.images, data.optics, start=start)
    measure, sizes = step.refiner.measure, []

    def scarce(images: torch.Tensor, optics: object) -> object:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(images, optics)

    monkeypatch.setattr(step.refiner, "measure", scarce)
    with pytest.warns(UserWarning, match="out of memory: images are now taken 3 at a time"):
        pieces = step(data.images, data.optics, start=start)
    assert sizes == [10, 5, 3, 3, 2, 2]
    for name, value in vars(whole.candidates).items():
        torch.testing.assert_close(vars(pieces.candidates)[name], value, msg=name)
    torch.testing.assert_close(pieces.residual_power, whole.residual_power)
    sizes.clear()
    step(data.images[:2], data.optics[:2], start=start[:2])  # fewer images than pieces
    assert sizes == [1, 1]
    monkeypatch.setattr(step.refiner, "measure", lambda *_: 1 / torch.zeros(2**60))
    with pytest.raises(RuntimeError, match="allocate"):
        step(data.images, data.optics, start=start)
