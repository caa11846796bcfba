"""Critics: convolutional networks that give an image a score, high for real, low for simulated."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

CriticKind = Literal["paper", "strided"]
_SLOPE = 0.1


class Critic(nn.Module):
    """Scores of normalised particle images.

    Every block halves the image and doubles the channels (C, 2C, 4C, ...) until 2 x 2 or 3 x 3
    pixels are left, so the depth follows the box; then ten neurons, leaky ReLU, one number.

    Args:
        box_size: edge of the images in pixels, at least 8.
        channels: C of the first block.
        kind: ``"paper"``, the blocks of figure 2 of CryoGAN's paper (3 x 3 convolution, 2 x 2
            max-pooling, leaky ReLU 0.1), at most ``max_blocks`` of them; ``"strided"``, one 4 x 4
            convolution of stride 2 and leaky ReLU, some four times cheaper and smooth in the
            pixels, which a gradient penalty likes (``docs/ablations.md``).
        max_blocks: at most so many blocks (the paper has six).
        generator: draws the weights (PyTorch's default distributions); None: the global one.

    Raises:
        ValueError: a box too small to halve twice.

    >>> import torch
    >>> Critic(32, 4)(torch.zeros(3, 32, 32)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        box_size: int,
        channels: int,
        kind: CriticKind = "strided",
        *,
        max_blocks: int = 6,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if box_size < 8:
            raise ValueError(f"box_size must be at least 8 for a critic, got {box_size}")
        if channels < 1:
            raise ValueError(f"channels must be positive, got {channels}")
        blocks: list[nn.Module] = []
        before, size = 1, box_size
        for block in range(max_blocks):
            if size < 4:
                break
            after = channels * 2**block
            blocks += _block(kind, before, after)
            before, size = after, size // 2
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * size * size, 10),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(10, 1),
        )
        if generator is not None:
            _initialise(self, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(b,)`` of images ``(b, n, n)``."""
        scores: Tensor = self.head(self.features(images[:, None]))
        return scores[:, 0]


def _block(kind: CriticKind, before: int, after: int) -> list[nn.Module]:
    if kind == "strided":
        return [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
    return [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.LeakyReLU(_SLOPE)]


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default distributions, drawn from a generator of our own."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    if parameter is not None:
                        uniform = torch.rand(parameter.shape, generator=generator)
                        parameter.copy_((2 * uniform - 1) * bound)
