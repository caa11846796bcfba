"""Critics: networks that score images, high for real and low for simulated ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

CriticKind = Literal["dense", "strided", "paper"]
_SLOPE = 0.1
_MAX_BLOCKS = 6  # as in CryoGAN's paper


class Critic(nn.Module):
    """Network from normalised particle images to scores.

    Args:
        box_size: edge of the images in pixels, at least 8.
        width: neurons of the first layer (dense), channels of the first block (others).
        kind: ``"dense"``, two fully connected layers of ``width`` and half of it, leaky ReLU 0.1:
            the fastest by far on small boxes and centred particles (``docs/ablations.md``);
            ``"strided"``, 4 x 4 convolutions of stride 2 and leaky ReLU; ``"paper"``, the blocks
            of figure 2 of CryoGAN's paper: 3 x 3 convolution, 2 x 2 max-pooling, leaky ReLU. Up to
            six convolutional blocks halve the image and double the channels until 2 or 3 pixels
            remain. All end in ten neurons, leaky ReLU, one number.

    Raises:
        ValueError: a box too small to halve twice, no neurons.

    >>> Critic(32, 4, "strided")(torch.zeros(3, 32, 32)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        box_size: int,
        width: int,
        kind: CriticKind = "dense",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if box_size < 8:
            raise ValueError(f"box_size must be at least 8 for a critic, got {box_size}")
        if width < 2:
            raise ValueError(f"width must be at least 2, got {width}")
        if kind == "dense":
            self.features, outputs = nn.Sequential(*dense_layers(box_size, width)), width // 2
        else:
            self.features, outputs = _convolutions(box_size, width, kind)
        self.head = nn.Sequential(nn.Linear(outputs, 10), nn.LeakyReLU(_SLOPE), nn.Linear(10, 1))
        if generator is not None:
            _initialise(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(b,)`` of images ``(b, n, n)``."""
        scores: Tensor = self.head(self.features(images[:, None]))
        return scores[:, 0]


def dense_layers(box_size: int, width: int) -> list[nn.Module]:
    """Return two fully connected layers for images, of ``width`` neurons and half of it."""
    first = nn.Flatten(), nn.Linear(box_size**2, width), nn.LeakyReLU(_SLOPE)
    return [*first, nn.Linear(width, width // 2), nn.LeakyReLU(_SLOPE)]


def _convolutions(box_size: int, width: int, kind: CriticKind) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    inputs, size = 1, box_size
    for block in range(_MAX_BLOCKS):
        if size < 4:
            break
        outputs = width * 2**block
        if kind == "strided":
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
        else:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2)]
        layers.append(nn.LeakyReLU(_SLOPE))
        inputs, size = outputs, size // 2
    return nn.Sequential(*layers, nn.Flatten()), inputs * size * size


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights from PyTorch's default distributions with a generator."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    if parameter is not None:
                        uniform = torch.rand(parameter.shape, generator=generator)
                        parameter.copy_((2 * uniform - 1) * bound)
