"""Proximal maps against brute-force minimisation of what they minimise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitreous.optim.priors import SquaredNorm
from vitreous.optim.prox import lengths, project, prox_l1, prox_l21

POINTS = [(-2.0, 0.3), (0.4, 0.5), (3.0, -4.0), (0.0, 0.0), (1.0, 0.0)]


def nearest(u: Tensor, phi: Callable[[Tensor], Tensor], mu: float) -> Tensor:
    """Minimise 1/2 |z - u|^2 + mu phi(z) over the plane on ever finer grids of z ``(2,)``."""
    centre, width = torch.zeros(2, dtype=torch.float64), 6.0
    ticks = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for _ in range(12):
        grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
        z = torch.cat([centre + width * grid, centre[None], torch.zeros(1, 2).double()])
        cost = 0.5 * (z - u).square().sum(1) + mu * phi(z)
        centre, width = z[cost.argmin()], width / 4
    return centre


@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("prox", "phi"),
    [
        (prox_l1, lambda z: z.abs().sum(1)),
        (lambda u, mu: prox_l21(u, mu, 0), lambda z: z.norm(dim=1)),
        (lambda u, mu: SquaredNorm(mu).prox(u, 1.0), lambda z: 0.5 * z.square().sum(1)),
        (lambda u, mu: project(u), lambda z: 1e9 * z.clamp_max(0).abs().sum(1)),
    ],
    ids=["l1", "l21", "l2", "nonnegative"],
)
def test_against_brute_force(
    prox: Callable[[Tensor, float], Tensor],
    phi: Callable[[Tensor], Tensor],
    point: tuple[float, float],
    mu: float,
) -> None:
    u = torch.tensor(point, dtype=torch.float64)
    assert torch.allclose(prox(u, mu), nearest(u, phi, mu), atol=1e-5)


def test_every_gradient_is_shortened_on_its_own() -> None:
    u = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    short = prox_l21(u, 1.0)
    for index in [(0, 0, 0, 0), (1, 3, 4, 5), (0, 2, 1, 3)]:
        vector = u[index[0], :, *index[1:]]
        wanted = vector * max(0.0, 1 - 1 / float(vector.norm()))
        assert torch.allclose(short[index[0], :, *index[1:]], wanted)


def test_thresholds_may_vary() -> None:
    u = torch.tensor([2.0, 2.0])
    assert prox_l1(u, torch.tensor([0.0, 1.5])).tolist() == [2.0, 0.5]


def test_projection_onto_a_mask() -> None:
    u, mask = torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([True, False, False])
    assert project(u, nonnegative=False, mask=mask).tolist() == [-1.0, 0.0, 0.0]
    assert u.tolist() == [-1.0, 2.0, -3.0]


@pytest.mark.parametrize("dim", [-4, 0, 2])
def test_lengths_are_those_of_the_vectors(dim: int) -> None:
    u = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(lengths(u, dim), u.norm(dim=dim, keepdim=True), rtol=1e-12)
    assert lengths(-u[:1], 0).min() >= 0
