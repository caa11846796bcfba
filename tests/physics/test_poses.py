"""Samplers of orientation and shift: their moments, their range, their dependence on the seed."""

from __future__ import annotations

import math

import pytest
import torch

from vitreous.core.rotation import euler_to_matrix
from vitreous.physics.poses import (
    GaussianEulerPoses,
    GaussianShift,
    NoShift,
    PoseSampler,
    ShiftSampler,
    TablePoses,
    TriangularShift,
    UniformPoses,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TABLE = euler_to_matrix(torch.tensor([[0.0, 10, 20], [90, 50, -30], [120, 170, 5]]))


@pytest.mark.parametrize("poses", [UniformPoses(), GaussianEulerPoses(3.0), TablePoses(TABLE)])
def test_poses_are_rotations_and_repeat_with_the_seed(poses: PoseSampler) -> None:
    r = poses.sample(50, generator=seeded(), dtype=torch.float64)
    assert r.shape == (50, 3, 3)
    assert r.dtype == torch.float64
    torch.testing.assert_close(
        r @ r.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3), atol=1e-6, rtol=0
    )
    assert (torch.linalg.det(r) > 0.99).all()
    assert torch.equal(r, poses.sample(50, generator=seeded(), dtype=torch.float64))
    assert not torch.equal(r, poses.sample(50, generator=seeded(1), dtype=torch.float64))


@pytest.mark.parametrize("shifts", [TriangularShift(30.0), GaussianShift(3.0)])
def test_shifts_repeat_with_the_seed(shifts: ShiftSampler) -> None:
    t = shifts.sample(50, generator=seeded(), dtype=torch.float64)
    assert t.shape == (50, 2)
    assert t.dtype == torch.float64
    assert torch.equal(t, shifts.sample(50, generator=seeded(), dtype=torch.float64))
    assert not torch.equal(t, shifts.sample(50, generator=seeded(1), dtype=torch.float64))


def test_uniform_poses_average_to_nothing() -> None:
    r = UniformPoses().sample(40000, generator=seeded(), dtype=torch.float64)
    assert r.mean(0).abs().max().item() < 0.015
    assert (r**2).mean(0).sub(1 / 3).abs().max().item() < 0.01


@pytest.mark.parametrize("sigma", [0.5, 2.0, 3.0])
def test_gaussian_angles_have_the_stated_variances(sigma: float) -> None:
    # E[cos a] = exp(-variance / 2) of a zero-mean Gaussian angle in radians.
    r = GaussianEulerPoses(sigma).sample(60000, generator=seeded(), dtype=torch.float64)
    mean = r.mean(0)
    cos_rot, cos_tilt, cos_psi = (math.exp(-v / 2) for v in (sigma, 2.0, 1.0))
    assert mean[2, 2].item() == pytest.approx(cos_tilt, abs=0.015)
    assert mean[0, 0].item() == pytest.approx(cos_rot * cos_tilt * cos_psi, abs=0.015)
    assert mean[1, 1].item() == pytest.approx(cos_rot * cos_psi, abs=0.015)


def test_table_poses_are_rows_of_the_table_equally_often() -> None:
    r = TablePoses(TABLE).sample(3000, generator=seeded())
    hits = (r[:, None] == TABLE).all((-1, -2))
    assert (hits.sum(1) == 1).all()
    assert hits.double().mean(0).sub(1 / 3).abs().max().item() < 0.05


def test_no_shift_is_zero() -> None:
    assert torch.equal(NoShift().sample(3, generator=seeded()), torch.zeros(3, 2))


def test_triangular_shift_has_its_width_and_shape() -> None:
    width = 24.0
    t = TriangularShift(width).sample(50000, generator=seeded(), dtype=torch.float64)
    assert t.abs().max().item() <= width / 2
    assert t.abs().max().item() > 0.97 * width / 2
    assert t.mean(0).abs().max().item() < 0.1
    assert (t**2).mean(0).tolist() == pytest.approx([width**2 / 24] * 2, rel=0.02)
    assert (t.abs() < width / 4).double().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (t[:, 0] * t[:, 1]).mean().abs().item() < 0.3  # x and y are independent


def test_the_papers_whole_pixel_shifts() -> None:
    pixel, n = 1.274, 192
    t = TriangularShift(0.06 * n * pixel, round_to_angstrom=pixel).sample(4000, generator=seeded())
    pixels = t / pixel
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-5, rtol=0)
    assert set(pixels.round().long().flatten().tolist()) == set(range(-6, 7))


def test_gaussian_shift_has_its_deviation() -> None:
    t = GaussianShift(4.0).sample(50000, generator=seeded(), dtype=torch.float64)
    assert t.std(0).tolist() == pytest.approx([4.0, 4.0], rel=0.02)
    assert t.mean(0).abs().max().item() < 0.1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma"):
        GaussianEulerPoses(-1.0)
    with pytest.raises(ValueError, match="rotations must be"):
        TablePoses(torch.zeros(0, 3, 3))
    with pytest.raises(ValueError, match="rotations must be"):
        TablePoses(torch.eye(3))
    with pytest.raises(ValueError, match="width_angstrom"):
        TriangularShift(-1.0)
    with pytest.raises(ValueError, match="round_to_angstrom"):
        TriangularShift(1.0, round_to_angstrom=0.0)
    with pytest.raises(ValueError, match="sigma_angstrom"):
        GaussianShift(math.inf)
