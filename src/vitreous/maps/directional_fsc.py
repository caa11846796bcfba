"""FSC by direction: how far half maps agree along each direction of Fourier space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.core.grid import shell_index
from vitreous.maps.fsc import hermitian_weight, without_mean
from vitreous.metrics.sampling import fibonacci_hemisphere

CONE_DEG = 20.0
_DIRECTIONS = 300  # that frequencies are sorted into; about 8 degrees apart
_FEWEST = 12.0  # frequencies of a cone within a shell; with fewer the whole shell counts
_CHUNK = 1 << 16


def fsc_by_direction(half1: Tensor, half2: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions ``(d, 3)``, (x, y, z), and the FSC within 20 degrees, ``(d, n // 2 + 1)``.

    A double cone of that half angle about each direction; every frequency counts for the direction
    that is nearest to it, and a cone sums those of the directions within it.

    Args:
        half1, half2: ``(n, n, n)``, masked.

    Source: Tan et al., Nat. Methods 14 (2017) 793, with hard cones.
    """
    n = len(half1)
    directions = fibonacci_hemisphere(_DIRECTIONS)
    a, b = (rfft_centered(without_mean(one.double().cpu()), 3) for one in (half1, half2))
    weight = hermitian_weight(n).expand(a.shape)
    shell = shell_index(n, 3)
    kept = (shell > 0) & (shell <= n // 2)
    z, y, x = kept.nonzero(as_tuple=True)
    frequencies = torch.stack([x, *(torch.where(k > n // 2, k - n, k) for k in (y, z))], -1)
    nearest = [
        (one @ directions.T).abs().argmax(1) for one in torch.split(frequencies.double(), _CHUNK)
    ]
    at = torch.cat(nearest) * (n // 2 + 1) + shell[kept]
    products = (a * b.conj()).real, a.abs().square(), b.abs().square(), torch.ones_like(weight)
    values = torch.stack([(one * weight)[kept] for one in products])
    sums = values.new_zeros(4, _DIRECTIONS * (n // 2 + 1)).index_add_(1, at, values)
    sums = sums.reshape(4, _DIRECTIONS, -1)
    near = (directions @ directions.T).abs() > math.cos(math.radians(CONE_DEG))
    cones = near.double() @ sums
    cones = torch.where(cones[3] < _FEWEST, sums.sum(1, keepdim=True), cones)
    curves = cones[0] / (cones[1] * cones[2]).sqrt().clamp_min(1e-300)
    curves[:, 0] = curves[:, 1]
    return directions, curves
