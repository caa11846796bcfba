r"""How evenly a set of orientations samples Fourier space.

Every image is a central slice; the sampling S(u) of a direction u is the number of slices that
contain it, over the mean. The sampling compensation factor is the harmonic mean,

.. math::

    \mathrm{SCF} = \Big(\Big\langle \frac{1}{S(u)} \Big\rangle_u\Big)^{-1},

1 for uniform orientations, 0 where whole regions are never seen. It is also the thesis' measure of
Fourier completeness (its SQ factor: 1 if complete, 0 for a single view).

Source: Baldwin and Lyumkis, Prog. Biophys. Mol. Biol. 150 (2020) 160; evaluated on the points of a
Fibonacci lattice as in their second paper, same journal 160 (2021) 53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 2000
HALF_WIDTH_DEG = 3.0
LEAST_COUNT = 0.5  # slices; stands for none
_BLOCK = 4096


@dataclass(frozen=True)
class FourierSampling:
    """What :func:`fourier_sampling` found.

    Args:
        direction: ``(points, 3)`` unit vectors, on one hemisphere (Friedel's law gives the other).
        sampling: ``(points,)``, S, mean 1.
        scf: sampling compensation factor, 0 to 1.
        empty: share of directions that no slice contains.
    """

    direction: Tensor
    sampling: Tensor
    scf: float
    empty: float


def fibonacci_hemisphere(count: int) -> Tensor:
    """Nearly evenly spread unit vectors ``(count, 3)`` with z > 0.

    >>> points = fibonacci_hemisphere(500)
    >>> round(points[:, 2].mean().item(), 3)
    0.5
    """
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - i / count
    angle = math.pi * (3 - math.sqrt(5)) * i
    r = (1 - z.square()).sqrt()
    return torch.stack([r * angle.cos(), r * angle.sin(), z], dim=-1)


def fourier_sampling(
    rotations: Tensor, *, points: int = POINTS, half_width_deg: float = HALF_WIDTH_DEG
) -> FourierSampling:
    """Sampling of Fourier space by the central slices of images.

    Args:
        rotations: ``(b, 3, 3)``, volume to particle coordinates.
        points: directions at which it is evaluated.
        half_width_deg: angle from a slice up to which a direction counts as contained; what a
            slice is thick at the shell of interest. With few images chance lowers the factor by
            about one over the slices that contain a direction, b sin(half width).

    A direction in no slice counts as half a slice.

    Raises:
        ValueError: not ``(b, 3, 3)``, or none.

    >>> fourier_sampling(torch.eye(3).expand(1000, 3, 3)).scf < 0.02
    True
    """
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3) or not len(rotations):
        raise ValueError(f"rotations must be (b, 3, 3), got {tuple(rotations.shape)}")
    direction = fibonacci_hemisphere(points)
    reach = math.sin(math.radians(half_width_deg))
    count = torch.zeros(points, dtype=torch.float64)
    normals = rotations.detach().cpu().double()[:, 2]
    for piece in torch.split(normals, _BLOCK):
        count += ((direction @ piece.mT).abs() < reach).sum(1)
    mean = float(count.mean())
    if mean == 0:
        return FourierSampling(direction, count, 0.0, 1.0)
    held = count.clamp_min(LEAST_COUNT)
    return FourierSampling(
        direction=direction,
        sampling=count / mean,
        scf=min(1.0, 1.0 / float((mean / held).mean())),
        empty=float((count == 0).double().mean()),
    )
