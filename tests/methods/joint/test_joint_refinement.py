"""Joint refinement: poses and map get right together, J never grows, runs go on bit by bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from matching_case import BOX, PIXEL, Case, case
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Pose
from vitreous.core.rotation import (
    euler_to_matrix,
    geodesic_distance_deg,
    matrix_to_euler,
    nearest_rotation,
)
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.joint import joint_refinement
from vitreous.methods.joint.joint_refinement import JointConfig, JointRefinement
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
PRIOR = ModelBasedConfig(scales=(1,), nonnegative=False, iterations=20)
CONFIG = JointConfig(
    radii=(4, 6, 9), rounds=3, searched=(9,), shift_range_angstrom=12.0, prior=PRIOR
)


def wrong_poses(data: Case, error_rad: float) -> Pose:
    stream = torch.Generator().manual_seed(2)
    wrong = error_rad * (2 * torch.rand(len(data.images), 3, generator=stream) - 1)
    rotation = euler_to_matrix(matrix_to_euler(data.rotation) + torch.rad2deg(wrong))
    return Pose(rotation, torch.zeros_like(data.shift))


def task(data: Case, config: JointConfig = CONFIG, error_rad: float = 0.7) -> JointRefinement:
    start = wrong_poses(data, error_rad)
    return JointRefinement(ImagesInMemory(data.images), data.optics, PIXEL, start, config)


@pytest.mark.slow
def test_from_poses_wrong_by_forty_degrees() -> None:
    data = case(200, noise=1.0)
    run = task(data)
    start = geodesic_distance_deg(run.pose.rotation, data.rotation)
    assert start.median() > 30
    told = [run.step() for _ in range(run.rounds)]
    frame = nearest_rotation((run.pose.rotation.mT @ data.rotation).mean(0))
    error = geodesic_distance_deg(run.pose.rotation @ frame, data.rotation)
    assert error.median() < 2.0
    assert error.quantile(0.98) < 10.0
    aligned = align_maps(
        run.volume(), data.volume, pixel_size_angstrom=PIXEL, allow_mirror=False
    ).aligned
    assert fsc_resolution(fsc(aligned, data.volume), 0.5, BOX, PIXEL) < 23.0  # band: 21.3
    assert told[0]["band_angstrom"] == pytest.approx(BOX * PIXEL / 4)
    assert told[-1]["turned_deg"] < 1.0


@pytest.mark.slow
def test_objective_never_grows_within_a_stage() -> None:
    run = task(case(40, noise=1.0), replace(CONFIG, rounds=3))
    told = [run.step() for _ in range(run.rounds)]
    for stage in (told[:3], told[3:6], told[6:]):
        path = [one[name] for one in stage for name in ("before", "map", "objective")]
        assert all(b <= a for a, b in pairwise(path))
        assert path[-1] < 0.9 * path[0]
        assert len({one["strength"] for one in stage}) == 1


def test_no_image_takes_a_pose_that_fits_it_worse() -> None:
    run = task(case(30, noise=1.0))
    run.step()
    before = run.misfits(run.pose, run.coefficients)
    others = Pose(run.pose.rotation.roll(1, 0), run.pose.shift_angstrom)
    told = run._accept(others, before)[2]
    after = run.misfits(run.pose, run.coefficients)
    assert (after <= before).all()
    assert torch.equal(told, after)


def test_a_map_that_fits_worse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = task(case(30, noise=1.0))
    run.step()
    known = run.coefficients
    blank = SimpleNamespace(volume=torch.zeros_like(known))
    monkeypatch.setattr(joint_refinement, "admm", lambda *_, **__: blank)
    told = run.step()
    assert run.coefficients is known
    assert told["map"] == told["before"]


def test_objective_is_that_of_the_equation() -> None:
    """1/2 |b - H c|^2 + lambda sum |grad c|, H c being what the simulator makes of the map."""
    data = case(20)
    run = task(data, replace(CONFIG, radii=(15,), searched=(), rounds=1, prior=PRIOR))
    told = run.step()
    c = run.coefficients
    slopes = torch.stack([c.roll(-1, axis) - c for axis in range(3)])
    penalty = run.strength * float(slopes.double().norm(dim=0).sum())
    pose = run.pose
    model = simulate(run.volume(), pose.rotation, pose.shift_angstrom, data.optics, PIXEL)
    misfit = 0.5 * float((data.images - model).double().square().sum())
    assert told["objective"] == pytest.approx(misfit + penalty, rel=1e-3)
    assert penalty > 0.01 * told["objective"]


def test_true_poses_stay() -> None:
    data = case(100, noise=0.5)
    run = task(data, replace(CONFIG, radii=(9,), searched=()), error_rad=0.0)
    run.pose = Pose(data.rotation, data.shift)
    for _ in range(3):
        run.step()
    assert geodesic_distance_deg(run.pose.rotation, data.rotation).median() < 1.0
    assert (run.pose.shift_angstrom - data.shift).norm(dim=1).median() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("done", [2, 3])
def test_a_run_goes_on_bit_by_bit(done: int) -> None:
    data = case(20, noise=1.0)
    config = replace(CONFIG, radii=(4, 6), searched=(6,))
    whole, first, second = (task(data, config) for _ in range(3))
    for _ in range(done + 2):
        expected = whole.step()
    for _ in range(done):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        found = second.step()
    assert found == expected
    assert torch.equal(second.coefficients, whole.coefficients)
    assert torch.equal(second.pose.rotation, whole.pose.rotation)


@pytest.mark.slow
def test_a_far_too_small_strength_does_not_last() -> None:
    """Below some strength all scores are alike: a climb from there would end where it began."""
    data = case(60, noise=1.0)
    config = replace(CONFIG, radii=(6, 9), searched=(), rounds=1)
    one, other = task(data, config), task(data, config)
    for run in (one, other):
        run.step()
    one.strength = 1e-9
    other.strength = 0.0  # no guess
    assert one.step()["strength"] == pytest.approx(other.step()["strength"], rel=0.5)


def test_without_ctf_and_with_a_given_strength() -> None:
    data = case(30)
    prior = replace(PRIOR, strength=2.5)
    config = replace(CONFIG, radii=(5,), searched=(), prior=prior)
    pose = wrong_poses(data, 0.1)
    run = JointRefinement(ImagesInMemory(data.images), None, PIXEL, pose, config)
    assert run.step()["strength"] == 2.5


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="radii must grow"):
        JointConfig(radii=(6, 4))
    with pytest.raises(ValueError, match="searched must be among radii"):
        JointConfig(radii=(4, 6), searched=(5,))
    with pytest.raises(ValueError, match=r"prior.scales must be \(1,\)"):
        JointConfig(radii=(4,), prior=ModelBasedConfig())
    data = case(20)
    images, pose = ImagesInMemory(data.images), wrong_poses(data, 0.1)
    with pytest.raises(ValueError, match="at most 15 for a box of 32"):
        JointRefinement(images, data.optics, PIXEL, pose, JointConfig(radii=(16,)))
    few = Pose(pose.rotation[1:], pose.shift_angstrom[1:])
    with pytest.raises(ValueError, match="20 images, but 19 poses"):
        JointRefinement(images, data.optics, PIXEL, few, CONFIG)
