"""Local refinement: error and derivatives are the simulator's, and poses are found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from matching_case import BOX, PIXEL, case
from vitreous.core.fourier import rfft_centered
from vitreous.core.params import Pose
from vitreous.core.rotation import axis_angle_to_matrix, random_rotations
from vitreous.core.symmetry import point_group
from vitreous.data.phantoms import protein_phantom
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
BAND = FrequencyBand(BOX, PIXEL, 13)  # whose box is the images' own
NOISE = torch.linspace(1.0, 3.0, 14)


def test_error_is_that_of_simulated_images() -> None:
    data = case(20, noise=1.0)
    refiner = PoseRefiner(data.volume, BAND, NOISE)
    assert BAND.box_size == BOX
    measured = refiner.measure(data.images, data.optics)
    wrong = data.rotation.roll(1, 0), data.shift.roll(1, 0)
    scale = torch.linspace(0.5, 2.0, 20)
    fit = refiner.evaluate(measured, *wrong, scale)[0]
    model = simulate(data.volume, *wrong, data.optics, PIXEL) * scale[:, None, None]

    def squared(images: torch.Tensor) -> torch.Tensor:
        power = rfft_centered(images, 2).flatten(1)[:, refiner._place].abs().square()
        return (power * refiner.multiplicity / NOISE[refiner.shell]).sum(1)

    log_likelihood_ratio = squared(data.images) - squared(data.images - model)
    assert (fit.log_likelihood_ratio - log_likelihood_ratio).abs().max() < 1e-3 * squared(
        data.images
    ).max()
    expected = torch.zeros(14).index_add_(
        0,
        refiner.shell,
        (
            (rfft_centered(data.images - model, 2).flatten(1)[:, refiner._place]).abs().square()
            * refiner.multiplicity
        ).sum(0),
    )
    found = refiner.residual_power(measured, fit)[1:]
    torch.testing.assert_close(found.float(), expected[1:], rtol=1e-3, atol=0)


def test_gradient_is_that_of_the_gain() -> None:
    data = case(4, noise=1.0)
    refiner = PoseRefiner(data.volume, BAND, NOISE)
    measured = refiner.measure(data.images, data.optics)
    scale, shift = torch.ones(4), data.shift + 1.0
    downhill = refiner.evaluate(measured, data.rotation, shift, scale)[1]
    for variable in range(5):
        gains = []
        for sign in (1, -1):
            step = torch.zeros(5)
            step[variable] = sign * (0.005 if variable < 3 else 0.1)
            turned = axis_angle_to_matrix(step[:3]) @ data.rotation
            gains.append(
                refiner.evaluate(measured, turned, shift + step[3:], scale)[0].log_likelihood_ratio
            )
        numeric = (gains[0] - gains[1]) / (4 * step[variable].abs())
        found = downhill[:, variable]
        assert (numeric - found).abs().max() < 0.03 * found.abs().max()


def test_gradient_is_autograds_through_the_simulator() -> None:
    """In single precision, as the refiner works."""
    data = case(6, noise=1.0)
    refiner = PoseRefiner(data.volume, BAND, NOISE)
    measured = refiner.measure(data.images, data.optics)
    shift = (data.shift + 1.0).requires_grad_()
    turn = torch.zeros(6, 3, requires_grad=True)
    turned = axis_angle_to_matrix(turn) @ data.rotation
    rest = data.images - simulate(data.volume, turned, shift, data.optics, PIXEL)
    power = rfft_centered(rest, 2).flatten(1)[:, refiner._place].abs().square()
    misfit = 0.5 * (power * refiner.multiplicity / NOISE[refiner.shell]).sum()
    uphill = torch.cat(torch.autograd.grad(misfit, [turn, shift]), 1)
    given = data.rotation, shift.detach(), torch.ones(6)
    downhill = refiner.evaluate(measured, *given)[1]
    assert ((downhill + uphill).norm(dim=0) < 1e-4 * uphill.norm(dim=0)).all()


@pytest.mark.parametrize("free", [True, False])
def test_noiseless_poses_are_found_from_a_grid_step_away(free: bool) -> None:
    data = case(40)
    refiner = PoseRefiner(data.volume, FrequencyBand(BOX, PIXEL, 8), torch.ones(9))
    measured = refiner.measure(FrequencyBand(BOX, PIXEL, 8).images(data.images), data.optics)
    stream = torch.Generator().manual_seed(1)
    turn = torch.nn.functional.normalize(torch.randn(40, 3, generator=stream), dim=1)
    start = axis_angle_to_matrix(turn * 0.09) @ data.rotation
    scale = None if free else torch.ones(40)
    fit = refiner.refine(measured, start, data.shift + 2.0, scale, 6, farthest_angstrom=30.0)
    assert data.errors_deg(fit.rotation[:, None]).max() < 0.5
    assert (fit.shift_angstrom - data.shift).norm(dim=1).max() < 0.3
    assert (fit.scale - 1).abs().max() < 0.02


def test_shifts_stay_within_bounds_and_nothing_gets_worse() -> None:
    data = case(10, noise=3.0)
    refiner = PoseRefiner(data.volume, BAND, NOISE)
    measured = refiner.measure(data.images, data.optics)
    start = data.rotation.roll(1, 0), torch.zeros(10, 2), torch.ones(10)
    before = refiner.evaluate(measured, *start)[0]
    fit = refiner.refine(measured, *start, 5, farthest_angstrom=2.0)
    assert fit.shift_angstrom.norm(dim=1).max() < 2.0001
    assert (fit.log_likelihood_ratio >= before.log_likelihood_ratio).all()


def test_only_poses_that_gain_by_a_step_are_taken_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = case(30, noise=1.0)
    refiner = PoseRefiner(data.volume, BAND, 1000 * NOISE)
    measured = refiner.measure(data.images, data.optics)
    there = refiner.refine(measured, data.rotation, data.shift, None, 8)
    turned = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 0.05])) @ there.rotation
    rotation = torch.where((torch.arange(30) < 10)[:, None, None], turned, there.rotation)
    asked: list[int] = []
    evaluate = PoseRefiner.evaluate

    def counted(*args: Any) -> Any:
        asked.append(len(args[2]))
        return evaluate(*args)

    monkeypatch.setattr(PoseRefiner, "evaluate", counted)
    again = refiner.refine(measured, rotation, there.shift_angstrom, None, 8)
    assert asked[0] == 30
    assert 10 <= asked[1] < 20  # the others have arrived, all but few
    assert sum(asked[1:]) < 60
    assert (again.log_likelihood_ratio - there.log_likelihood_ratio).abs().max() < 0.3


def test_mates_of_a_symmetric_map_off_centre_look_the_same_where_their_shifts_count() -> None:
    """Without its shift each mate would count as another view, and a right map as a blend."""
    offset = torch.tensor([3, -2, 1])  # x, y, z in pixels
    centred = protein_phantom(24, 8.0, seed=2, point_group="D2")
    volume = torch.roll(centred, offset.flip(0).tolist(), (0, 1, 2))
    refiner = PoseRefiner(volume, FrequencyBand(24, 8.0, 10), torch.ones(13))
    rotation = random_rotations(5, generator=torch.Generator().manual_seed(1)).double()
    for mate in point_group("D2").matrices[1:].double():
        turned = rotation @ mate
        moved = 8.0 * ((rotation - turned) @ offset.double())[:, :2]
        pose = Pose(rotation.float(), torch.zeros(5, 2))
        same = refiner.correlation(pose, Pose(turned.float(), moved.float()), 10)
        assert same.min() > 0.98
        assert refiner.correlation(pose, replace(pose, rotation=turned.float()), 10).min() < 0.7
