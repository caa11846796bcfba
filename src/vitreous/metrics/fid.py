r"""Fréchet distance between sets of images, with features of a network trained on the data.

.. math::

    d^2 = |m_1 - m_2|^2 + \operatorname{tr}\big(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2}\big)

of means and covariances of the features. Networks trained on photographs do not suit particles; the
thesis trains a VGG-19 for 200,000 steps to classify cropped 2D classes. Here a small network of the
same kind (convolutions, maxima, hinge loss) serves thousands of images of 32 to 64 pixels.
Distances of different networks cannot be compared.

Sources: Heusel et al., arXiv:1706.08500, equation (6); the thesis of the VAE-GAN, section 13.1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from vitreous.core.images import normalise_images

FEATURES = 64
_BATCH = 256

Features = Callable[[Tensor], Tensor]


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of the Gaussians that fit two sets of rows ``(b, f)``.

    Raises:
        ValueError: shapes that do not fit.

    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + torch.tensor([3.0, 0.0, 4.0])), 3)
    25.0
    """
    if first.ndim != 2 or second.shape[1:] != first.shape[1:] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"expected (b, f) and (c, f) with b, c > 1, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    a, b = first.detach().double().cpu(), second.detach().double().cpu()
    values, vectors = torch.linalg.eigh(a.mT.cov())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b.mT.cov() @ root).clamp_min(0).sqrt().sum()
    traces = a.mT.cov().trace() + b.mT.cov().trace()
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross))


def image_distance(real: Tensor, generated: Tensor, features: Features) -> float:
    """Return the :func:`frechet_distance` between sets of images ``(b, n, n)`` and ``(c, n, n)``.

    ``features`` takes images to features ``(b, f)``; see :func:`train_features`.
    """
    return frechet_distance(
        *(
            torch.cat([features(batch) for batch in torch.split(images, _BATCH)])
            for images in (real, generated)
        )
    )


class FeatureNetwork(nn.Module):
    """Network of convolutions and maxima, mean over the map, and a linear layer to classes."""

    def __init__(self, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = (1, 16, 32, FEATURES)
        self.body = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            self.body.extend([layer, nn.ReLU(), nn.MaxPool2d(2)])
        self.head = nn.Linear(FEATURES, classes)
        nn.init.kaiming_normal_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """Return features ``(b, 64)`` of images ``(b, n, n)``, n at least 8."""
        features: Tensor = self.body(normalise_images(images)[:, None])
        return features.mean((-2, -1))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(b, classes)`` of images ``(b, n, n)``."""
        scores: Tensor = self.head(self.features(images))
        return scores


def train_features(
    images: Tensor,
    label: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 600,
    batch: int = 64,
    learning_rate: float = 1e-3,
) -> FeatureNetwork:
    """Train a network that classifies images; its ``features`` serve :func:`image_distance`.

    Squared hinge loss, one class against all others. Augmentation: random quarter turns, mirrors,
    cyclic shifts and contrast. Images ``(b, n, n)``, labels (long, from 0 on) and generator are on
    the CPU.

    Raises:
        ValueError: lengths that differ, or fewer than two classes.
    """
    classes = int(label.max()) + 1 if len(label) else 0
    if len(images) != len(label) or classes < 2:
        raise ValueError(f"{len(images)} images, {len(label)} labels of {classes} classes")
    network = FeatureNetwork(classes, generator)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator)
        sign = 2.0 * nn.functional.one_hot(label[rows].long(), classes) - 1.0
        scores = network(_augmented(images[rows], generator))
        loss = (1 - sign * scores).clamp_min(0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shift and mirror a batch as a whole at random, and scale each image."""
    turns, flip, x, y = torch.randint(1 << 30, (4,), generator=generator).tolist()
    n = images.shape[-1]
    images = images.rot90(turns % 4, (-2, -1)).roll((x % n, y % n), (-2, -1))
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, generator=generator)
    return contrast * (images.flip(-1) if flip % 2 else images)
