"""Parts of a map by angular degree."""

from __future__ import annotations

import torch

from vitreous.data.phantoms import protein_phantom
from vitreous.maps.angular_degrees import degree_parts


def test_degrees_of_known_functions() -> None:
    axis = torch.arange(24.0) - 12
    z, y, x = axis[:, None, None], axis[:, None], axis
    ball = torch.exp(-(x**2 + y**2 + z**2) / 18)
    functions = {1: ball * z, 2: ball * x * y, 3: ball * x * y * z}
    for degree, function in functions.items():
        parts = degree_parts(function, 5)
        error = (parts[degree - 1] - function).norm() / function.norm()
        assert error < 0.03, degree
        others = torch.cat([parts[: degree - 1], parts[degree:]])
        assert float(others.norm() / function.norm()) < 0.02, degree


def test_an_octahedral_map_has_the_degrees_of_its_group() -> None:
    volume = protein_phantom(24, 8.0, seed=5, point_group="O")
    power = degree_parts(volume, 10).square().sum((1, 2, 3))
    own = power[[3, 5, 7, 8, 9]].sum()  # 4, 6, 8, 9, 10
    assert power.sum() - own < 1e-3 * own
