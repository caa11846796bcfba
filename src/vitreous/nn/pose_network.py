"""A learned distribution of orientations, and a measure of its collapse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitreous.core.rotation import matrix_to_quaternion, rotation_6d_to_matrix
from vitreous.nn.layers import initialise


class LearnedPoseDistribution(nn.Module):
    r"""Rotations from six normal numbers, moved by a residual network.

    :math:`R = \mathrm{GS}(z + f(z))`, z six normal numbers, GS the orthonormalisation of eq. (40)
    of the thesis. Without f the rotations are uniform, and f begins at almost nothing.

    Args:
        width: neurons of each of the two residual blocks.
        generator: draws the weights; None: PyTorch's defaults from the global one.

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
        """Rotations ``(b, 3, 3)`` of ``(b, 6)``."""
        for block in self.blocks:
            z = z + block(z)
        return rotation_6d_to_matrix(z)


@torch.no_grad()
def orientation_moment(rotations: Tensor) -> Tensor:
    r"""Second moment :math:`\langle q q^T \rangle`, ``(4, 4)``, of rotations as unit quaternions.

    The sign of a quaternion does not matter to it. Uniform rotations have :math:`I / 4`; one
    rotation has an eigenvalue of 1, and turns about one axis have two that are not zero.
    """
    q = matrix_to_quaternion(rotations.detach())
    return q.mT @ q / len(q)


def coverage(moment: Tensor) -> float:
    """Four times the least eigenvalue of :func:`orientation_moment`.

    1 for uniform rotations, 0 where they have collapsed to one or to turns about one axis.

    >>> coverage(torch.eye(4) / 4)
    1.0
    """
    return 4 * float(torch.linalg.eigvalsh(moment.double().cpu())[0].clamp_min(0))
