"""One trunk for the encoder and the critic of mixed particles, shift-invariant by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vitreous.nn.critic import Critic
from vitreous.nn.layers import GaborLayer, PolyphaseDown, initialise

Norm = Literal["batch", "layer", "none"]
_SLOPE = 0.1
_SMALLEST = 4  # pixels: edge of the feature map


class Trunk(nn.Module):
    """Image to feature map and feature vector.

    A Gabor layer, then blocks of [3 x 3 convolution, norm, leaky ReLU 0.1, half the pixels, twice
    the channels] until about 4 pixels are left or the edge is odd; the vector is the mean over the
    map. With cyclic edges and polyphase down-sampling a cyclic shift of the image by whole pixels
    leaves the vector as it is, whatever the weights: no layer knows where a pixel is, and the
    statistics of either norm are sums over whole maps.

    Args:
        box_size: edge of the images in pixels, a multiple of 4, at least 8.
        width: channels after the first block.
        invariant: False for the ablation of the thesis: zero padding, max-pooling, a plain 5 x 5
            convolution in place of the Gabor functions.
        norm: after each convolution. "batch" is the thesis's; "layer" takes the statistics of all
            pixels and channels of one image; "none" takes none.
        gabor: number of Gabor functions; gabor_size: their edge in pixels.
        generator: draws the weights; None: PyTorch's defaults from the global one.

    Raises:
        ValueError: a box that cannot be halved twice, no channels.

    Source: figures 21 and 24 of the thesis.

    >>> kept = Trunk(32, 8)
    >>> kept.channels, [tuple(t.shape) for t in kept(torch.zeros(2, 32, 32))]
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
        layers, before, after, size = [first], gabor, width, box_size
        while size > _SMALLEST and size % 2 == 0:
            edges: Literal["circular", "zeros"] = "circular" if invariant else "zeros"
            bias = norm == "none"
            layers.append(nn.Conv2d(before, after, 3, padding=1, padding_mode=edges, bias=bias))
            if norm != "none":
                layers.append(nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(1, after))
            layers += [nn.LeakyReLU(_SLOPE), down()]
            before, after, size = after, 2 * after, size // 2
        self.layers = nn.Sequential(*layers)
        self.box_size, self.channels = box_size, before
        if generator is not None:
            initialise(self, generator)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map ``(b, c, m, m)`` and vector ``(b, c)`` of images ``(b, n, n)``."""
        features = self.layers(images[:, None])
        return features, features.mean((-2, -1))


class Encoder(nn.Module):
    """Images to the mean and the log variance of their place in latent space.

    Args:
        box_size: edge of the images in pixels, see :class:`Trunk`.
        latent: dimension d of the latent space.
        width, invariant, norm, gabor, generator: of the trunk.

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
        norm: Norm = "batch",
        gabor: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(
            box_size, width, invariant=invariant, norm=norm, gabor=gabor, generator=generator
        )
        c = self.trunk.channels
        last = nn.Linear(c, 2 * latent)
        self.head = nn.Sequential(nn.Linear(c, c), nn.LeakyReLU(_SLOPE), last)
        if generator is not None:
            initialise(self.head, generator)
            with torch.no_grad():
                last.weight.mul_(0.3)  # begins near the prior
        self.latent = latent

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each ``(b, d)``, of images ``(b, n, n)``."""
        _, vector = self.trunk(images)
        mean, log_variance = self.head(vector).chunk(2, -1)
        return mean, log_variance.clamp(-10.0, 4.0)


class DenseEncoder(nn.Module):
    """The same of two fully connected layers, which know where a pixel is.

    Args:
        box_size: edge of the images in pixels.
        latent: dimension d of the latent space.
        width: neurons of the first layer; the second has half of them.
        generator: draws the weights; None: PyTorch's defaults from the global one.

    >>> mean, log_variance = DenseEncoder(16, 10, 8)(torch.zeros(3, 16, 16))
    >>> mean.shape, log_variance.shape
    (torch.Size([3, 10]), torch.Size([3, 10]))
    """

    def __init__(
        self, box_size: int, latent: int, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        last = nn.Linear(width // 2, 2 * latent)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(box_size**2, width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(width, width // 2),
            nn.LeakyReLU(_SLOPE),
            last,
        )
        if generator is not None:
            initialise(self.layers, generator)
            with torch.no_grad():
                last.weight.mul_(0.3)
        self.latent = latent

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each ``(b, d)``, of images ``(b, n, n)``."""
        mean, log_variance = self.layers(images).chunk(2, -1)
        return mean, log_variance.clamp(-10.0, 4.0)


class SortingCritic(nn.Module):
    """Scores of images, and the features that images are compared by.

    Batch norm is left out by default, against the thesis: with it an image's score depends on the
    others of its batch, so that the slope between a real and a generated image, which the gradient
    penalty holds at 1, is not that of any one image (Gulrajani et al., NeurIPS 2017, section 4).

    Args:
        box_size: edge of the images in pixels, see :class:`Trunk`.
        width, invariant, norm, gabor, generator: of the trunk.

    >>> features, vector, score = SortingCritic(16, 8).look(torch.zeros(3, 16, 16))
    >>> features.shape, vector.shape, score.shape
    (torch.Size([3, 16, 4, 4]), torch.Size([3, 16]), torch.Size([3]))
    """

    def __init__(
        self,
        box_size: int,
        width: int,
        *,
        invariant: bool = True,
        norm: Norm = "none",
        gabor: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(
            box_size, width, invariant=invariant, norm=norm, gabor=gabor, generator=generator
        )
        c = self.trunk.channels
        self.head = nn.Sequential(nn.Linear(c, c), nn.LeakyReLU(_SLOPE), nn.Linear(c, 1))
        if generator is not None:
            initialise(self.head, generator)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature map ``(b, c, m, m)``, vector ``(b, c)`` and score ``(b,)`` of ``(b, n, n)``."""
        features, vector = self.trunk(images)
        return features, vector, self.head(vector)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(b,)`` of images ``(b, n, n)``."""
        return self.look(images)[2]


class DenseCritic(Critic):
    """The fully connected critic of CryoGAN, its last hidden layer for features; not invariant.

    Args:
        box_size: edge of the images in pixels, at least 8.
        width: neurons of the first layer.
        generator: draws the weights; None: PyTorch's defaults from the global one.

    >>> features, vector, score = DenseCritic(16, 8).look(torch.zeros(3, 16, 16))
    >>> features.shape, vector.shape, score.shape
    (torch.Size([3, 4]), torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self, box_size: int, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(box_size, width, "dense", generator=generator)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(b, width // 2)`` twice and score ``(b,)`` of images ``(b, n, n)``."""
        vector = self.features(images[:, None])
        return vector, vector, self.head(vector)[:, 0]
