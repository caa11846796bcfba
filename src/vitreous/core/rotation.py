"""Rotations as 3x3 matrices: conversions, random and regular samples, angles between them.

A matrix acts on ``(x, y, z)`` column vectors and takes volume coordinates to particle coordinates.
Every function is batched over leading dimensions, keeps dtype and device, and is differentiable.
Wrong trailing shapes and integer tensors raise ValueError.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _require(tensor: Tensor, trailing: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape[tensor.ndim - len(trailing) :]) != trailing:
        raise ValueError(f"{name} must end in {trailing}, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def _matrix(*rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def euler_to_matrix(angles_deg: Tensor) -> Tensor:
    r"""Convert RELION's Euler angles (rot, tilt, psi) to rotation matrices.

    :math:`R = R_z(-\psi) R_y(-\theta) R_z(-\phi)` with :math:`R_z, R_y` counter-clockwise: the
    inverse of the intrinsic ZYZ rotation. RELION writes the same matrix as ``Rz(psi) Ry(tilt)
    Rz(rot)`` with clockwise elementary matrices.

    Args:
        angles_deg: ``(..., 3)`` rot, tilt, psi in degrees.

    Returns:
        ``(..., 3, 3)``, from volume to particle coordinates.

    Raises:
        ValueError: wrong trailing shape or an integer tensor.

    Source: Heymann, Chagoyen & Belnap, J. Struct. Biol. 151 (2005) 196, the 3DEM convention.

    >>> (euler_to_matrix(torch.tensor([90.0, 0.0, 0.0])).round() + 0.0).tolist()
    [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _require(angles_deg, (3,), "angles_deg")
    rot, tilt, psi = torch.deg2rad(angles_deg).unbind(-1)
    ca, sa, cb, sb = rot.cos(), rot.sin(), tilt.cos(), tilt.sin()
    cg, sg = psi.cos(), psi.sin()
    return _matrix(
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    )


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """Convert rotation matrices to RELION's Euler angles; inverts :func:`euler_to_matrix`.

    At tilt 0 or 180 only the sum or the difference of rot and psi is defined; rot is set to 0.

    Args:
        matrix: ``(..., 3, 3)`` rotations.

    Returns:
        ``(..., 3)`` rot in (-180, 180], tilt in [0, 180], psi in (-180, 180], degrees.

    Raises:
        ValueError: wrong trailing shape or an integer tensor.

    >>> angles = torch.tensor([30.0, 60.0, -120.0], dtype=torch.float64)
    >>> [round(a, 9) for a in matrix_to_euler(euler_to_matrix(angles)).tolist()]
    [30.0, 60.0, -120.0]
    """
    _require(matrix, (3, 3), "matrix")
    x, y, z = matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2]
    sine_squared = x * x + y * y
    pole = sine_squared < (4 * torch.finfo(matrix.dtype).eps) ** 2
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rot = torch.atan2(torch.where(pole, zero, y), torch.where(pole, one, x))
    sine = torch.where(pole, zero, torch.where(pole, one, sine_squared).sqrt())
    tilt = torch.atan2(sine, z)
    # Without rot, Rz(-psi) Ry(-tilt) remains: its y column is (sin psi, cos psi, 0) at any tilt.
    ca, sa = rot.cos(), rot.sin()
    psi = torch.atan2(
        ca * matrix[..., 0, 1] - sa * matrix[..., 0, 0],
        ca * matrix[..., 1, 1] - sa * matrix[..., 1, 0],
    )
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


def axis_angle_to_matrix(rotvec_rad: Tensor) -> Tensor:
    r"""Convert rotation vectors (axis times angle, radians) to rotation matrices, smoothly at zero.

    :math:`R = I + \frac{\sin t}{t} K + \frac{1 - \cos t}{t^2} K^2`, :math:`t = |v|`, K the cross
    product matrix of v ``(..., 3)`` (Rodrigues), counter-clockwise. The gradient is finite
    everywhere.

    >>> axis_angle_to_matrix(torch.tensor([0.0, 0.0, torch.pi / 2])).round().abs().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _require(rotvec_rad, (3,), "rotvec_rad")
    x, y, z = rotvec_rad.unbind(-1)
    t2 = (rotvec_rad * rotvec_rad).sum(-1)
    small = t2 < 1e-2  # the series below is then exact to 1e-18
    safe = torch.where(small, torch.ones_like(t2), t2)
    t = safe.sqrt()
    sinc_series = 1 - t2 / 6 * (1 - t2 / 20 * (1 - t2 / 42 * (1 - t2 / 72)))
    cosc_series = 0.5 - t2 / 24 * (1 - t2 / 30 * (1 - t2 / 56 * (1 - t2 / 90)))
    a = torch.where(small, sinc_series, t.sin() / t)
    b = torch.where(small, cosc_series, (1 - t.cos()) / safe)
    diagonal = 1 - b * t2
    return _matrix(
        [diagonal + b * x * x, b * x * y - a * z, b * x * z + a * y],
        [b * x * y + a * z, diagonal + b * y * y, b * y * z - a * x],
        [b * x * z - a * y, b * y * z + a * x, diagonal + b * z * z],
    )


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Convert rotation matrices to vectors ``(..., 3)``: axis times angle in [0, pi], radians.

    >>> v = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    >>> torch.allclose(matrix_to_axis_angle(axis_angle_to_matrix(v)), v)
    True
    """
    quaternion = matrix_to_quaternion(matrix)
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    s2 = (vector * vector).sum(-1, keepdim=True)
    small = s2 < 1e-12
    s = torch.where(small, torch.ones_like(s2), s2).sqrt()
    scale = torch.where(small, 2 * torch.ones_like(s), 2 * torch.atan2(s, w) / s)
    return vector * scale


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Convert quaternions ``(..., 4)`` (w, x, y, z), normalised first, to rotation matrices.

    >>> quaternion_to_matrix(torch.tensor([2.0, 0.0, 0.0, 0.0])).trace().item()
    3.0
    """
    _require(quaternion, (4,), "quaternion")
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    return _matrix(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    )


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Convert rotation matrices to unit quaternions ``(..., 4)`` (w, x, y, z) with w >= 0.

    Normalises the row of :math:`4 q q^T` (linear in R) with the largest diagonal entry, which is
    well conditioned at all angles.

    Source: Shepperd, J. Guidance Control 1 (1978) 223.

    >>> matrix_to_quaternion(torch.diag(torch.tensor([1.0, -1.0, -1.0]))).abs().tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    _require(matrix, (3, 3), "matrix")
    m = [[matrix[..., i, j] for j in range(3)] for i in range(3)]
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    rows = _matrix(
        [1 + m[0][0] + m[1][1] + m[2][2], wx, wy, wz],
        [wx, 1 + m[0][0] - m[1][1] - m[2][2], xy, xz],
        [wy, xy, 1 - m[0][0] + m[1][1] - m[2][2], yz],
        [wz, xz, yz, 1 - m[0][0] - m[1][1] + m[2][2]],
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    row = rows.gather(-2, index).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def rotation_6d_to_matrix(six: Tensor) -> Tensor:
    """Convert six numbers to rotation matrices by Gram-Schmidt of the first two columns.

    ``six (..., 6)`` holds the first column, then the second; neither zero nor parallel.

    Source: Zhou et al., CVPR 2019, equation (15).

    >>> rotation_6d_to_matrix(torch.tensor([2.0, 0, 0, 1.0, 3.0, 0])).trace().item()
    3.0
    """
    _require(six, (6,), "six")
    first = torch.nn.functional.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def random_rotations(
    n: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw ``n`` rotations ``(n, 3, 3)`` uniformly (Haar measure) from SO(3).

    They are made of normal quaternions, on the generator's device.

    >>> r = random_rotations(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> torch.allclose(r @ r.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    True
    """
    quaternion = torch.randn(n, 4, generator=generator, dtype=dtype, device=generator.device)
    return quaternion_to_matrix(quaternion)


def so3_grid(spacing_deg: float, *, device: torch.device | None = None) -> Tensor:
    r"""Return a near-uniform grid of rotations ``(m, 3, 3)``, one per cell of edge ``spacing_deg``.

    :math:`m = \lceil 8 \pi^2 / \delta^3 \rceil` rotations (as many as HEALPix at that step; 4401
    for 15 degrees) on a super-Fibonacci spiral: every rotation lies within ``spacing_deg`` (up to
    120) of one of them, on average at half of it. The grid is deterministic.

    Raises:
        ValueError: spacing outside its range.

    Source: Alexa, CVPR 2022, "Super-Fibonacci spirals", algorithm 1.

    >>> len(so3_grid(30.0))
    551
    """
    if not 0 < spacing_deg <= 120:
        raise ValueError(f"spacing_deg must be in (0, 120], got {spacing_deg}")
    m = math.ceil(8 * math.pi**2 / math.radians(spacing_deg) ** 3)
    s = torch.arange(m, dtype=torch.float64) + 0.5
    inner, outer = (s / m).sqrt(), (1 - s / m).sqrt()
    alpha = 2 * math.pi * s / math.sqrt(2.0)
    beta = 2 * math.pi * s / 1.533751168755204288118041
    quaternion = torch.stack(
        [inner * alpha.sin(), inner * alpha.cos(), outer * beta.sin(), outer * beta.cos()], dim=-1
    )
    return quaternion_to_matrix(quaternion).to(device=device, dtype=torch.float32)


def geodesic_distance_deg(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the angle in degrees, in [0, 180], of the rotation from one orientation to another.

    :math:`\theta = 2\,\mathrm{atan2}(|a - b|_F / \sqrt 8, \sqrt{1 + \mathrm{tr}\, a^T b} / 2)`,
    accurate at small and at large angles; a and b ``(..., 3, 3)`` broadcast.

    >>> geodesic_distance_deg(torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))).item()
    180.0
    """
    _require(a, (3, 3), "a")
    _require(b, (3, 3), "b")
    sine = (a - b).square().sum((-2, -1)).div(8).sqrt()
    cosine = (1 + (a * b).sum((-2, -1))).clamp(min=0).sqrt() / 2
    return torch.rad2deg(2 * torch.atan2(sine, cosine))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the closest rotation (Frobenius norm) to each matrix of full rank or reflection.

    Source: Kabsch, Acta Cryst. A32 (1976) 922.

    >>> nearest_rotation(3 * torch.eye(3)).trace().item()
    3.0
    """
    _require(matrix, (3, 3), "matrix")
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh)
    ones = torch.ones_like(sign)
    rotation: Tensor = (u * torch.stack([ones, ones, sign], dim=-1)[..., None, :]) @ vh
    return rotation
