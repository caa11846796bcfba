"""The noise network: scales of pixels, both kinds of noise, diversity."""

from __future__ import annotations

import math

import pytest
import torch

from vitreous.nn.noise_network import NoiseNetwork, add_noise, diversity_loss


@pytest.mark.parametrize("box_size", [8, 16, 32, 45, 64])
def test_scales_are_positive_and_begin_near_one(box_size: int, generator: torch.Generator) -> None:
    network = NoiseNetwork(box_size, generator=generator)
    scale = network(torch.randn(8, 100, generator=generator))
    assert scale.shape == (8, box_size, box_size)
    assert scale.min() >= 0
    assert scale.mean().item() == pytest.approx(1.0, abs=0.3)
    assert scale.std() > 1e-3
    assert network(torch.zeros(2, 100), 12).shape == (2, 12, 12)


def test_gaussian_and_poisson(generator: torch.Generator) -> None:
    clean = torch.full((200, 8, 8), 9.0)
    unit = torch.randn(200, 8, 8, generator=generator)
    scale = torch.tensor(0.5)
    assert torch.equal(add_noise(clean, scale, unit), clean + 0.5 * unit)
    counting = add_noise(-clean, scale, unit, "poisson")
    assert counting.std().item() == pytest.approx(1.5, rel=0.05)
    assert counting.mean().item() == pytest.approx(-9.0, rel=0.01)


def test_poisson_noise_of_nothing_has_a_finite_slope() -> None:
    clean = torch.zeros(1, 2, 2, requires_grad=True)
    add_noise(clean, torch.ones(()), torch.ones(1, 2, 2), "poisson").sum().backward()
    assert clean.grad is not None
    assert clean.grad.isfinite().all()


def test_diversity_is_a_ratio_of_distances(generator: torch.Generator) -> None:
    first, second = torch.randn(2, 3, 4, 4, generator=generator)
    z, w = torch.randn(2, 3, 5, generator=generator)
    slow = 0.0
    for i in range(3):
        far = math.sqrt(float(((first[i] - second[i]) ** 2).sum()))
        slow += far / math.sqrt(float(((z[i] - w[i]) ** 2).sum())) / 3
    assert diversity_loss(first, second, z, w).item() == pytest.approx(slow, rel=1e-5)
    same = first.clone().requires_grad_()
    diversity_loss(same, same.detach(), z, w).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_weights_come_from_the_generator_alone() -> None:
    z = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    made = [NoiseNetwork(8, generator=torch.Generator().manual_seed(s))(z) for s in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
