"""Noise network: the strength of the noise at each pixel, learned with the signal."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

from vitreous.nn.layers import initialise

NoiseKind = Literal["gaussian", "poisson"]
_START = 0.5413  # softplus(_START) = 1


class NoiseNetwork(nn.Module):
    r"""Network from a latent vector :math:`z_n` to a deviation :math:`\sigma \geq 0` per pixel.

    A dense layer to 4 x 4 pixels, then blocks of [nearest neighbour up-sampling, 3 x 3 convolution,
    leaky ReLU], halving the channels to ``width``, until ``box_size`` is reached; larger maps, and
    others that :meth:`forward` is asked for, are resized bilinearly. Initial deviations are about
    1. In the thesis :math:`z_n` has 100 dimensions.

    Source: algorithms 5 and 6 of the thesis.

    >>> NoiseNetwork(32)(torch.zeros(2, 100)).shape
    torch.Size([2, 32, 32])
    """

    def __init__(
        self,
        box_size: int,
        latent: int = 100,
        width: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.box_size, self.latent = box_size, latent
        blocks = (-(-box_size // 4) - 1).bit_length()  # the least for which 4 * 2^blocks suffices
        channels = [min(32, width * 2 ** (blocks - i)) for i in range(blocks + 1)]
        self.dense = nn.Linear(latent, channels[0] * 16)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular"),
                nn.LeakyReLU(0.1),
            ]
        self.layers = nn.Sequential(nn.LeakyReLU(0.1), *layers)
        self.last = nn.Conv2d(channels[-1], 1, 1)
        if generator is not None:
            initialise(self, generator)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            if self.last.bias is not None:
                self.last.bias.fill_(_START)

    def forward(self, latent: Tensor, box_size: int | None = None) -> Tensor:
        """Return deviations ``(b, n, n)`` of latent vectors ``(b, latent)``."""
        n = self.box_size if box_size is None else box_size
        x = self.dense(latent).view(len(latent), -1, 4, 4)
        x = self.last(self.layers(x))
        if x.shape[-1] != n:
            x = nn.functional.interpolate(x, (n, n), mode="bilinear", align_corners=False)
        return nn.functional.softplus(x[:, 0])


def add_noise(clean: Tensor, scale: Tensor, unit: Tensor, kind: NoiseKind = "gaussian") -> Tensor:
    r"""Return noisy images :math:`I + \epsilon\,\sigma`, or :math:`I + \epsilon\,\sigma\sqrt{|I|}`.

    Eqs. (3), ``kind="gaussian"``, and (2), ``"poisson"``, of the article; the second models
    counting noise, its image taken after the CTF, as the detector sees it. I is ``clean (b, n,
    n)``, epsilon ``unit``, noise of unit variance, and sigma ``scale``, which broadcasts.

    >>> add_noise(torch.tensor(4.0), torch.tensor(1.0), torch.tensor(0.5), "poisson").item()
    5.0
    """
    if kind == "poisson":
        scale = scale * clean.abs().clamp_min(1e-6).sqrt()  # the root has no slope at zero
    return clean + scale * unit


def diversity_loss(first: Tensor, second: Tensor, z_first: Tensor, z_second: Tensor) -> Tensor:
    r"""Return the mean distance of outputs per distance of latent vectors, eq. (39) of the thesis.

    :math:`\|G(z_1) - G(z_2)\| / \|z_1 - z_2\|`, to be maximised, which prevents mode collapse.

    >>> z = torch.eye(2)
    >>> diversity_loss(3 * z, 3 * z.flip(0), z, z.flip(0)).item()
    3.0
    """
    far = (first - second).flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
    apart = (z_first - z_second).flatten(1).norm(dim=1).clamp_min(1e-6)
    return (far / apart).mean()
