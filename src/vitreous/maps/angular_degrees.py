"""Parts of a map by angular degree: its expansion in spherical harmonics about the centre."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, special
from torch import Tensor

_DIRECTIONS = 2000  # of a spiral, on which coefficients are summed
_STEP = 0.5  # pixels between radii

Array = NDArray[np.float64]


def degree_parts(volume: Tensor, most: int) -> Tensor:
    """Return the parts of a map that vary with direction as harmonics of degree 1 to ``most``.

    The mean over directions and higher degrees are left out, and so are voxels beyond the sphere
    that touches the box.

    Args:
        volume: ``(n, n, n)``.
        most: highest degree.

    Returns:
        ``(most, n, n, n)``, the part of degree 1 first.

    >>> axis = torch.arange(16.0) - 8
    >>> ball = torch.exp(-(axis**2 + axis[:, None] ** 2 + axis[:, None, None] ** 2) / 8)
    >>> first, second = degree_parts(ball * axis, 2)
    >>> bool(torch.allclose(first, ball * axis, atol=0.02)), bool(second.abs().max() < 0.01)
    (True, True)
    """
    n = int(volume.shape[-1])
    centre = n // 2
    axis = np.arange(n, dtype=np.float64) - centre
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    radii = np.arange(0.0, n / 2, _STEP)
    inside = radius < radii[-1]
    spiral = _spiral()
    at = spiral[:, ::-1].T[:, None] * radii[:, None] + centre  # z, y, x
    values = ndimage.map_coordinates(volume.detach().cpu().double().numpy(), at, order=3)
    table = _harmonics(spiral, most)
    coefficients = values @ table.T * (4 * math.pi / len(spiral))
    point = np.stack([x[inside], y[inside], z[inside]], -1)
    point /= np.maximum(radius[inside], 1e-9)[:, None]
    below = np.floor(radius[inside] / _STEP).astype(int)
    share = radius[inside] / _STEP - below
    of_point = _harmonics(point, most)
    parts = np.zeros((most, n, n, n))
    for degree in range(1, most + 1):
        own = slice(degree * degree - 1, (degree + 1) ** 2 - 1)
        one = coefficients[:, own]
        mean = (1 - share)[:, None] * one[below] + share[:, None] * one[below + 1]
        parts[degree - 1][inside] = np.einsum("pm,mp->p", mean, of_point[own])
    return torch.from_numpy(parts).to(volume)


def _spiral() -> Array:
    """Return directions that cover the sphere evenly, ``(d, 3)``."""
    i = np.arange(_DIRECTIONS)
    height = 1 - (2 * i + 1) / _DIRECTIONS
    turn, flat = i * math.pi * (3 - math.sqrt(5)), np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), height], 1)


def _harmonics(direction: Array, most: int) -> Array:
    """Return real orthonormal harmonics of degree 1 to ``most``, ``((most + 1)^2 - 1, d)``."""
    azimuth, height = np.arctan2(direction[:, 1], direction[:, 0]), direction[:, 2].clip(-1, 1)
    rows = []
    for degree in range(1, most + 1):
        for order in range(-degree, degree + 1):
            m = abs(order)
            norm = (2 * degree + 1) / (4 * math.pi) * (2 if m else 1)
            norm *= math.factorial(degree - m) / math.factorial(degree + m)
            wave = np.sin(m * azimuth) if order < 0 else np.cos(m * azimuth)
            rows.append(math.sqrt(norm) * special.lpmv(m, degree, height) * wave)
    return np.stack(rows)
