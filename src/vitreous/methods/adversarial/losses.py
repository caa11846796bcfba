"""Losses of adversarial distribution matching."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gradient_penalty(critic: nn.Module, real: Tensor, simulated: Tensor, alpha: Tensor) -> Tensor:
    r"""Return the mean squared departure of the critic's slope from 1 between real and simulated.

    :math:`\frac1M \sum_m (\|\nabla_y D(y^m_{int})\| - 1)^2`,
    :math:`y_{int} = \alpha y_{data} + (1 - \alpha) y_{sim}`: the last term of eq. (14) of CryoGAN's
    paper. The norm is over all pixels of one image.

    Args:
        critic: images ``(m, n, n)`` to scores ``(m,)``.
        real, simulated: ``(m, n, n)``.
        alpha: ``(m,)`` in [0, 1].

    >>> slope = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False))
    >>> _ = slope[1].weight.data.fill_(0.75)  # a norm of 3 over 16 pixels
    >>> gradient_penalty(slope, torch.ones(2, 4, 4), torch.zeros(2, 4, 4), torch.rand(2)).item()
    4.0
    """
    weight = alpha[:, None, None]
    between = (weight * real + (1 - weight) * simulated).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm: Tensor = slope.flatten(1).norm(dim=1)
    return (norm - 1).square().mean()


def divergence_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return the Kullback-Leibler divergence of normal distributions from the standard one.

    :math:`\frac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)`, the mean over images and dimensions.

    Args:
        mean, log_variance: ``(b, d)``.

    >>> divergence_from_normal(torch.full((3, 2), 2.0), torch.zeros(3, 2)).item()
    2.0
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def gaussian_nll(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return the negative log likelihood of vectors under normal distributions, up to a constant.

    :math:`\frac12 ((z - \mu)^2 / \sigma^2 + \log \sigma^2)`, the mean over images and dimensions.

    Args:
        z, mean, log_variance: ``(b, d)``.

    >>> gaussian_nll(torch.full((3, 2), 2.0), torch.zeros(3, 2), torch.zeros(3, 2)).item()
    2.0
    """
    return 0.5 * ((z - mean).square() * torch.exp(-log_variance) + log_variance).mean()
