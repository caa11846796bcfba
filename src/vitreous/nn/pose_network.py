"""Learned distribution of orientations, and a measure of its collapse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitreous.core.rotation import matrix_to_quaternion, rotation_6d_to_matrix
from vitreous.nn.layers import initialise


class LearnedPoseDistribution(nn.Module):
    r"""Residual network from six normal numbers to rotations.

    :math:`R = \mathrm{GS}(z + f(z))`, z six normal numbers, GS the orthonormalisation of eq. (40)
    of the thesis. With f = 0 rotations are uniform; f, two residual blocks of ``width`` neurons,
    starts near zero.

    >>> LearnedPoseDistribution()(torch.randn(4, 6)).shape
    torch.Size([4, 3, 3])
    """

    def __init__(self, width: int = 64, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, width), nn.LeakyReLU(0.1), nn.Linear(width, 6))
            for _ in range(2)
        )
        if generator is not None:
            initialise(self, generator)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.1)

    def forward(self, z: Tensor) -> Tensor:
        """Return rotations ``(b, 3, 3)`` of normal numbers ``(b, 6)``."""
        for block in self.blocks:
            z = z + block(z)
        return rotation_6d_to_matrix(z)


@torch.no_grad()
def orientation_moment(rotations: Tensor) -> Tensor:
    r"""Return the second moment :math:`\langle q q^T \rangle`, ``(4, 4)``, of unit quaternions.

    It does not depend on their signs. Uniform rotations have :math:`I / 4`; a single rotation has
    one eigenvalue that is not zero, rotations about one axis have two.
    """
    q = matrix_to_quaternion(rotations.detach())
    return q.mT @ q / len(q)


def coverage(moment: Tensor) -> float:
    """Return four times the least eigenvalue of :func:`orientation_moment`.

    1 for uniform rotations, 0 if they have collapsed to a single one or to one axis.

    >>> coverage(torch.eye(4) / 4)
    1.0
    """
    return 4 * float(torch.linalg.eigvalsh(moment.double().cpu())[0].clamp_min(0))
