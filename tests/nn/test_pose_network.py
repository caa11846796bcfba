"""The learned camera: uniform at first, rotations always, and a measure that sees its collapse."""

from __future__ import annotations

import pytest
import torch

from vitreous.core.rotation import axis_angle_to_matrix, random_rotations
from vitreous.nn.pose_network import LearnedPoseDistribution, coverage, orientation_moment


def test_begins_uniform_and_gives_rotations(generator: torch.Generator) -> None:
    camera = LearnedPoseDistribution(generator=generator)
    with torch.no_grad():
        rotations = camera(torch.randn(20_000, 6, generator=generator))
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-3)
    assert torch.linalg.det(rotations).min() > 0.99
    assert coverage(orientation_moment(rotations)) > 0.85


def test_coverage_of_uniform_rotations_is_one(generator: torch.Generator) -> None:
    moment = orientation_moment(random_rotations(100_000, generator=generator))
    assert torch.allclose(moment, torch.eye(4) / 4, atol=0.01)
    assert coverage(moment) > 0.97


@pytest.mark.parametrize("turns", [False, True])
def test_coverage_of_a_collapse_is_nothing(turns: bool, generator: torch.Generator) -> None:
    """One orientation, or one axis turned about by any angle."""
    base = random_rotations(1, generator=generator)
    angle = 6.28 * torch.rand(500, 1, generator=generator) * turns
    spread = 0.05 * torch.randn(500, 3, generator=generator)
    about = axis_angle_to_matrix(angle * torch.tensor([0.0, 0.0, 1.0]))
    rotations = axis_angle_to_matrix(spread) @ about @ base
    assert coverage(orientation_moment(rotations)) < 0.02


def test_the_camera_can_be_trained(generator: torch.Generator) -> None:
    camera = LearnedPoseDistribution(generator=generator)
    (camera(torch.randn(8, 6, generator=generator))[:, 0, 0]).sum().backward()
    for name, parameter in camera.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
