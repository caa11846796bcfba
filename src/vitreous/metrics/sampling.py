r"""Sampling of Fourier space by a set of orientations, and its compensation factor.

Every image is a central slice; the sampling S(u) of a direction u is the number of slices that
contain it, over the mean. The sampling compensation factor is the harmonic mean,

.. math::

    \mathrm{SCF} = \Big(\Big\langle \frac{1}{S(u)} \Big\rangle_u\Big)^{-1},

1 for uniform orientations, 0 where regions are not sampled. In the thesis it measures Fourier
completeness (SQ factor: 1 if complete, 0 for a single view).

Source: Baldwin and Lyumkis, Prog. Biophys. Mol. Biol. 150 (2020) 160; evaluated on a Fibonacci
lattice as in Prog. Biophys. Mol. Biol. 160 (2021) 53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 2000
HALF_WIDTH_DEG = 3.0
LEAST_COUNT = 0.5  # slices counted for a direction that no slice contains
_BLOCK = 4096


@dataclass(frozen=True)
class FourierSampling:
    """Sampling of Fourier space, from :func:`fourier_sampling`.

    Args:
        direction: ``(points, 3)`` unit vectors, on one hemisphere (Friedel's law gives the other).
        sampling: ``(points,)``, S, mean 1.
        scf: sampling compensation factor, 0 to 1.
        empty: fraction of directions that no slice contains.
    """

    direction: Tensor
    sampling: Tensor
    scf: float
    empty: float


def fibonacci_hemisphere(count: int) -> Tensor:
    """Return nearly uniform unit vectors ``(count, 3)`` with z > 0.

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
    """Measure the sampling of Fourier space, at ``points`` directions, by the slices of images.

    A direction in no slice counts as half a slice. With few images the factor falls by chance, by
    about one over the number of slices that contain a direction, b sin(half width). The half width
    is the largest angle from a slice of a direction that it contains: half the thickness of a slice
    at the shell of interest. Rotations ``(b, 3, 3)`` go from volume to particle coordinates.

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
    for block in torch.split(normals, _BLOCK):
        count += ((direction @ block.mT).abs() < reach).sum(1)
    mean = float(count.mean())
    if mean == 0:
        return FourierSampling(direction, count, 0.0, 1.0)
    return FourierSampling(
        direction=direction,
        sampling=count / mean,
        scf=min(1.0, 1.0 / float((mean / count.clamp_min(LEAST_COUNT)).mean())),
        empty=float((count == 0).double().mean()),
    )
