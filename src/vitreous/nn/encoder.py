"""Encoders and critics of the VAE-GAN, with a trunk that is invariant to shifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vitreous.nn.critic import Critic, dense_layers
from vitreous.nn.layers import GaborLayer, PolyphaseDown, initialise

Norm = Literal["batch", "layer", "none"]
_SLOPE = 0.1
_SMALLEST = 4  # pixels: edge of the feature map


class Trunk(nn.Module):
    """Network from images to feature maps and feature vectors.

    A Gabor layer, then blocks of [3 x 3 convolution, norm, leaky ReLU 0.1, half the pixels, twice
    the channels] until about 4 pixels remain or the edge is odd; the vector is the mean over the
    map. Cyclic edges and polyphase down-sampling make the vector invariant to cyclic shifts of the
    image by whole pixels, for any weights: the statistics of the norms are sums over whole maps.

    Args:
        box_size: edge of the images in pixels, a multiple of 4, at least 8.
        width: channels after the first block.
        invariant: False for the ablation of the thesis: zero padding, max-pooling, a plain 5 x 5
            convolution in place of the Gabor functions.
        norm: after each convolution: "batch" as in the thesis, "layer" over all pixels and channels
            of one image, or "none".
        gabor: number of Gabor functions; gabor_size: their edge in pixels.
        generator: draws the weights; None: PyTorch's defaults from the global one.

    Raises:
        ValueError: a box that cannot be halved twice, no channels.

    Source: figures 21 and 24 of the thesis.

    >>> trunk = Trunk(32, 8)
    >>> trunk.channels, [tuple(t.shape) for t in trunk(torch.zeros(2, 32, 32))]
    (32, [(2, 32, 4, 4), (2, 32)])
    """

    def __init__(
        self,
        box_size: int,
        width: int,
        *,
        invariant: bool = True,
        norm: Norm = "batch",
        gabor: int = 8,
        gabor_size: int = 7,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if box_size < 8 or box_size % 4:
            raise ValueError(
                f"box_size must be a multiple of 4 and at least 8, got {box_size}; "
                "resize the images first"
            )
        if width < 1 or gabor < 1:
            raise ValueError(f"width and gabor must be at least 1, got {width} and {gabor}")
        first: nn.Module = nn.Conv2d(1, gabor, 5, padding=2)
        if invariant:
            first = GaborLayer(1, gabor, gabor_size, generator=generator)
        down: Callable[[], nn.Module] = PolyphaseDown if invariant else lambda: nn.MaxPool2d(2)
        layers, inputs, outputs, size = [first], gabor, width, box_size
        edges: Literal["circular", "zeros"] = "circular" if invariant else "zeros"
        bias = norm == "none"
        while size > _SMALLEST and size % 2 == 0:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=edges, bias=bias))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(outputs))
            elif norm == "layer":
                layers.append(nn.GroupNorm(1, outputs))
            layers += [nn.LeakyReLU(_SLOPE), down()]
            inputs, outputs, size = outputs, 2 * outputs, size // 2
        self.layers = nn.Sequential(*layers)
        self.box_size, self.channels = box_size, inputs
        if generator is not None:
            initialise(self, generator)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return feature maps ``(b, c, m, m)`` and vectors ``(b, c)`` of images ``(b, n, n)``."""
        features = self.layers(images[:, None])
        return features, features.mean((-2, -1))


def _head(inputs: int, last: nn.Linear, generator: torch.Generator | None) -> nn.Sequential:
    """Return two dense layers from feature vectors to the outputs of ``last``."""
    head = nn.Sequential(nn.Linear(inputs, inputs), nn.LeakyReLU(_SLOPE), last)
    if generator is not None:
        initialise(head, generator)
    return head


@torch.no_grad()
def _near_prior(last: nn.Linear, generator: torch.Generator | None) -> None:
    """Shrink the weights so that encodings start near the prior."""
    if generator is not None:
        last.weight.mul_(0.3)


def _gaussian(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Split outputs ``(b, 2 d)`` into mean and log variance."""
    mean, log_variance = outputs.chunk(2, -1)
    return mean, log_variance.clamp(-10.0, 4.0)


class Encoder(nn.Module):
    """Network from images to the mean and log variance of their latent vectors.

    For the arguments see :class:`Trunk`; ``latent`` is the dimension of the latent space.

    >>> mean, log_variance = Encoder(16, 10, 8)(torch.zeros(3, 16, 16))
    >>> mean.shape, log_variance.shape
    (torch.Size([3, 10]), torch.Size([3, 10]))
    """

    def __init__(
        self,
        box_size: int,
        latent: int,
        width: int,
        *,
        invariant: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(box_size, width, invariant=invariant, generator=generator)
        last = nn.Linear(self.trunk.channels, 2 * latent)
        self.head = _head(self.trunk.channels, last, generator)
        _near_prior(last, generator)
        self.latent = latent

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each ``(b, d)``, of images ``(b, n, n)``."""
        return _gaussian(self.head(self.trunk(images)[1]))


class DenseEncoder(nn.Module):
    """Encoder of two fully connected layers, of ``width`` and half of it, not invariant to shifts.

    >>> mean, log_variance = DenseEncoder(16, 10, 8)(torch.zeros(3, 16, 16))
    >>> mean.shape, log_variance.shape
    (torch.Size([3, 10]), torch.Size([3, 10]))
    """

    def __init__(
        self, box_size: int, latent: int, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        last = nn.Linear(width // 2, 2 * latent)
        self.layers = nn.Sequential(*dense_layers(box_size, width), last)
        if generator is not None:
            initialise(self.layers, generator)
        _near_prior(last, generator)
        self.latent = latent

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each ``(b, d)``, of images ``(b, n, n)``."""
        return _gaussian(self.layers(images))


class SortingCritic(nn.Module):
    """Critic with a trunk that is invariant to shifts, whose features compare images.

    Without batch norm, against the thesis: with it an image's score depends on the others of its
    batch, and the gradient penalty does not constrain the slope for any single image (Gulrajani et
    al., NeurIPS 2017, section 4). For the arguments see :class:`Trunk`.

    >>> features, vector, score = SortingCritic(16, 8).features_and_score(torch.zeros(3, 16, 16))
    >>> features.shape, vector.shape, score.shape
    (torch.Size([3, 16, 4, 4]), torch.Size([3, 16]), torch.Size([3]))
    """

    def __init__(
        self,
        box_size: int,
        width: int,
        *,
        invariant: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(box_size, width, invariant=invariant, norm="none", generator=generator)
        c = self.trunk.channels
        self.head = _head(c, nn.Linear(c, 1), generator)

    def features_and_score(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps ``(b, c, m, m)``, vectors ``(b, c)`` and scores ``(b,)`` of ``(b, n, n)``."""
        features, vector = self.trunk(images)
        return features, vector, self.head(vector)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(b,)`` of images ``(b, n, n)``."""
        return self.features_and_score(images)[2]


class DenseCritic(Critic):
    """Fully connected critic, whose last hidden layer gives the features; not invariant.

    >>> features, vector, score = DenseCritic(16, 8).features_and_score(torch.zeros(3, 16, 16))
    >>> features.shape, vector.shape, score.shape
    (torch.Size([3, 4]), torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self, box_size: int, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(box_size, width, "dense", generator=generator)

    def features_and_score(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features ``(b, width // 2)`` twice and scores ``(b,)`` of ``(b, n, n)``."""
        vector = self.features(images[:, None])
        return vector, vector, self.head(vector)[:, 0]
