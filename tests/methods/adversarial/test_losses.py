"""Losses: the penalty's norm, place and derivatives; a critic that finds a known distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitreous.core.images import normalise_images
from vitreous.methods.adversarial.losses import gradient_penalty
from vitreous.nn.critic import Critic


class _Linear(nn.Module):
    """A critic of known slope everywhere."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.slope).sum((-2, -1))


class _Quadratic(nn.Module):
    """Slope ``2 y`` at the image y; remembers where it was asked."""

    asked: Tensor

    def forward(self, images: Tensor) -> Tensor:
        self.asked = images.detach().clone()
        return images.square().sum((-2, -1))


@pytest.mark.parametrize("length", [0.0, 0.5, 1.0, 3.0])
def test_penalty_of_a_known_slope(length: float, generator: torch.Generator) -> None:
    """The norm is over all pixels of one image: neither per pixel, nor over the batch."""
    slope = torch.randn(6, 6, generator=generator)
    slope *= length / slope.norm()
    real, simulated = torch.randn(2, 5, 6, 6, generator=generator)
    penalty = gradient_penalty(_Linear(slope), real, simulated, torch.rand(5))
    assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_penalty_is_the_mean_over_images() -> None:
    lengths = torch.tensor([0.5, 1.0, 2.0])
    images = lengths[:, None, None] / 2 * torch.full((3, 4, 4), 0.25)  # slope 2 y, norm = length
    penalty = gradient_penalty(_Quadratic(), images, images, torch.rand(3))
    assert penalty.item() == pytest.approx(((lengths - 1) ** 2).mean().item(), abs=1e-6)


def test_penalty_is_taken_between_real_and_simulated(generator: torch.Generator) -> None:
    real, simulated = torch.randn(2, 3, 4, 4, generator=generator)
    alpha = torch.tensor([0.0, 0.25, 1.0])
    critic = _Quadratic()
    gradient_penalty(critic, real, simulated, alpha)
    wanted = [simulated[0], 0.25 * real[1] + 0.75 * simulated[1], real[2]]
    assert torch.allclose(critic.asked, torch.stack(wanted), atol=1e-6)


def test_penalty_moves_the_critic_and_not_the_images(generator: torch.Generator) -> None:
    real = torch.randn(3, 4, 4, generator=generator, requires_grad=True)
    simulated = torch.randn(3, 4, 4, generator=generator, requires_grad=True)
    critic = _Linear(torch.full((4, 4), 0.5))
    gradient_penalty(critic, real, simulated, torch.rand(3)).backward()
    assert real.grad is None
    assert simulated.grad is None
    assert critic.slope.grad is not None
    assert torch.allclose(critic.slope.grad, torch.full((4, 4), 2 * (2.0 - 1) * 0.25))


def test_derivatives_of_the_penalty(generator: torch.Generator) -> None:
    """Double backward through convolutions and layers against finite differences."""
    critic = nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv2d(1, 2, 3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(32, 3),
        nn.Tanh(),
        nn.Linear(3, 1),
    ).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    real, simulated = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    alpha = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    names = [k for k, _ in critic.named_parameters()]

    class With(nn.Module):
        def __init__(self, values: tuple[Tensor, ...]) -> None:
            super().__init__()
            self.values = dict(zip(names, values, strict=True))

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = torch.func.functional_call(critic, self.values, (images,))
            return scores

    def penalty(*values: Tensor) -> Tensor:
        return gradient_penalty(With(values), real, simulated, alpha)

    values = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())
    assert torch.autograd.gradcheck(penalty, values, atol=1e-6)


@pytest.mark.slow
def test_critic_finds_a_known_distance() -> None:
    """Two Gaussian clouds of images apart by a fixed pattern: W1 = d, the pattern's norm.

    The best critic is linear; its slope s maximises s d - lambda (s - 1)^2, so the penalty lets the
    estimate come out as d (1 + d / (2 lambda)).
    """
    generator = torch.Generator().manual_seed(4)
    pattern = torch.randn(8, 8, generator=generator)
    distance, weight = 2.5, 25.0
    pattern *= distance / pattern.norm()
    critic = Critic(8, 64, "dense", generator=generator)
    optimiser = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))
    estimates = []
    for step in range(400):
        real = 0.5 * torch.randn(64, 8, 8, generator=generator) + pattern
        simulated = 0.5 * torch.randn(64, 8, 8, generator=generator)
        alpha = torch.rand(64, generator=generator)
        gap = critic(real).mean() - critic(simulated).mean()
        loss = weight * gradient_penalty(critic, real, simulated, alpha) - gap
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step >= 300:
            estimates.append(gap.item())
    expected = distance * (1 + distance / (2 * weight))
    assert sum(estimates) / len(estimates) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6), (2, 3, 7, 7)])
def test_normalised_images(shape: tuple[int, ...], generator: torch.Generator) -> None:
    images = 40 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    normal = normalise_images(images)
    assert normal.shape == images.shape
    assert normal.mean((-2, -1)).abs().max() < 1e-12
    assert torch.allclose(normal.var((-2, -1), correction=0), torch.ones(()).double())
    assert torch.allclose(normalise_images(5 * images - 7), normal, atol=1e-10)


def test_constant_image_becomes_zero_with_a_finite_gradient() -> None:
    images = torch.full((2, 4, 4), 3.0, requires_grad=True)
    normal = normalise_images(images)
    assert normal.abs().max() == 0
    (normal * torch.randn(2, 4, 4)).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
