"""Rotations against scipy, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vitreous.core import rotation as rot


def _angles(generator: torch.Generator, n: int = 200) -> torch.Tensor:
    u = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return u * torch.tensor([360.0, 180.0, 360.0]) - torch.tensor([180.0, 0.0, 180.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euler_matches_scipy_inverse_zyz(generator: torch.Generator, dtype: torch.dtype) -> None:
    angles = _angles(generator)
    oracle = Rotation.from_euler("ZYZ", angles.numpy(), degrees=True).inv().as_matrix()
    got = rot.euler_to_matrix(angles.to(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.numpy(), oracle, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_euler_round_trip_including_poles(generator: torch.Generator) -> None:
    angles = _angles(generator)
    assert torch.allclose(rot.matrix_to_euler(rot.euler_to_matrix(angles)), angles, atol=1e-9)
    poles = torch.tensor([[40.0, 0.0, 50.0], [40.0, 180.0, 50.0], [-10.0, 1e-9, 20.0]]).double()
    matrices = rot.euler_to_matrix(poles)
    back = rot.matrix_to_euler(matrices)
    assert torch.allclose(rot.euler_to_matrix(back), matrices, atol=1e-12)
    assert back[0, 0].abs() < 1e-9
    assert torch.allclose(back[:2, 1], poles[:2, 1])
    assert torch.isfinite(back).all()


def test_axis_angle_and_quaternion_match_scipy(generator: torch.Generator) -> None:
    vectors = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    vectors[:20] *= 1e-4
    vectors[20:25] = 0
    oracle = Rotation.from_rotvec(vectors.numpy())
    matrix = rot.axis_angle_to_matrix(vectors)
    np.testing.assert_allclose(matrix.numpy(), oracle.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(
        rot.matrix_to_axis_angle(matrix).numpy(), oracle.as_rotvec(), atol=1e-12
    )
    quaternion = rot.matrix_to_quaternion(matrix).numpy()
    xyzw = oracle.as_quat(canonical=True)
    np.testing.assert_allclose(quaternion, xyzw[:, [3, 0, 1, 2]], atol=1e-12)
    np.testing.assert_allclose(
        rot.quaternion_to_matrix(torch.from_numpy(3.0 * quaternion)).numpy(), matrix, atol=1e-12
    )


def test_half_turns_keep_axis_and_angle(generator: torch.Generator) -> None:
    axis = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=generator, dtype=torch.float64), dim=-1
    )
    matrix = rot.axis_angle_to_matrix(torch.pi * axis)
    back = rot.matrix_to_axis_angle(matrix)
    assert torch.allclose(back.norm(dim=-1), torch.full((50,), torch.pi, dtype=torch.float64))
    assert torch.allclose((back * axis).sum(-1).abs(), torch.tensor(torch.pi).double())


def test_axis_angle_is_differentiable_at_and_around_zero() -> None:
    for start in ([0.0, 0.0, 0.0], [1e-3, 0.0, 2e-3], [0.0999, 0.0, 0.0], [0.4, -2.0, 0.7]):
        v = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(rot.axis_angle_to_matrix, (v,))
        assert torch.autograd.gradgradcheck(rot.axis_angle_to_matrix, (v,))


def test_conversions_are_differentiable(generator: torch.Generator) -> None:
    matrix = rot.random_rotations(4, generator=generator, dtype=torch.float64)
    six = torch.cat([matrix[..., 0], matrix[..., 1]], -1).requires_grad_()
    assert torch.autograd.gradcheck(rot.rotation_6d_to_matrix, (six,))
    for function in (rot.matrix_to_euler, rot.matrix_to_axis_angle, rot.matrix_to_quaternion):
        leaf = six.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s, f=function: f(rot.rotation_6d_to_matrix(s)), (leaf,)
        )
    angles = torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rot.euler_to_matrix, (angles,))


def test_six_numbers_round_trip(generator: torch.Generator) -> None:
    matrix = rot.random_rotations(20, generator=generator, dtype=torch.float64)
    noisy = torch.cat([2 * matrix[..., 0], 0.3 * matrix[..., 1] + matrix[..., 0]], dim=-1)
    columns = torch.cat([matrix[..., 0], matrix[..., 1]], dim=-1)
    assert torch.allclose(rot.rotation_6d_to_matrix(columns), matrix)
    assert torch.allclose(rot.rotation_6d_to_matrix(noisy), matrix)


def test_random_rotations_are_uniform(generator: torch.Generator) -> None:
    matrix = rot.random_rotations(40000, generator=generator, dtype=torch.float64)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(40000).double())
    # Haar: E R = 0, E R_ij^2 = 1/3, and the angle has density (1 - cos t) / pi.
    assert matrix.mean(0).abs().max() < 0.02
    assert (matrix.square().mean(0) - 1 / 3).abs().max() < 0.01
    angle = torch.deg2rad(rot.geodesic_distance_deg(matrix, torch.eye(3).double()))
    empirical = torch.stack([(angle < t).double().mean() for t in (1.0, 2.0, 3.0)])
    t = torch.tensor([1.0, 2.0, 3.0]).double()
    assert torch.allclose(empirical, (t - t.sin()) / torch.pi, atol=0.01)


def test_random_rotations_repeat_with_the_seed() -> None:
    a, b = (rot.random_rotations(3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(("spacing", "count"), [(30.0, 551), (15.0, 4401)])
def test_so3_grid_covers(generator: torch.Generator, spacing: float, count: int) -> None:
    grid = rot.so3_grid(spacing)
    assert grid.shape == (count, 3, 3)
    probes = rot.random_rotations(6000, generator=generator)
    trace = torch.einsum("pij,gij->pg", probes, grid).amax(1)
    nearest = torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1)))
    assert nearest.max() < spacing
    assert nearest.mean() < 0.55 * spacing
    with pytest.raises(ValueError, match="spacing_deg"):
        rot.so3_grid(0.0)


def test_geodesic_distance(generator: torch.Generator) -> None:
    a = rot.random_rotations(500, generator=generator, dtype=torch.float64)
    b = rot.random_rotations(500, generator=generator, dtype=torch.float64)
    oracle = (Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())).magnitude()
    np.testing.assert_allclose(rot.geodesic_distance_deg(a, b).numpy(), np.degrees(oracle))
    for angle in (1e-8, 1e-3, np.pi - 1e-6):
        step = rot.axis_angle_to_matrix(torch.tensor([0.0, angle, 0.0], dtype=torch.float64))
        got = rot.geodesic_distance_deg(a @ step, a)
        assert torch.allclose(got, torch.tensor(np.degrees(angle)), rtol=1e-6)


def test_nearest_rotation(generator: torch.Generator) -> None:
    clean = rot.random_rotations(50, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)
    near = rot.nearest_rotation(1.7 * (clean + noise))
    assert torch.allclose(near @ near.mT, torch.eye(3).double().expand(50, 3, 3))
    assert torch.allclose(torch.linalg.det(near), torch.ones(50).double())
    assert rot.geodesic_distance_deg(near, clean).max() < 4
    assert torch.linalg.det(rot.nearest_rotation(-clean)).min() > 0.999


def test_wrong_shapes_and_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="end in"):
        rot.euler_to_matrix(torch.zeros(2))
    with pytest.raises(ValueError, match="floating"):
        rot.euler_to_matrix(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="end in"):
        rot.matrix_to_quaternion(torch.zeros(3, 4))
