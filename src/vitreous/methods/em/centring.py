"""Centring of images, so that a cyclic shift of the input changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.grid import radius_grid


@torch.no_grad()
def centring_template(images: Tensor) -> Tensor:
    """Return the template that images are centred by: their mean over images and directions.

    Poses are uniform and shifts have no preferred direction, so that the mean image of all
    particles is round but for chance.

    Args:
        images: ``(b, n, n)``, as they are to be centred.

    Returns:
        ``(n, n)``, mean 0.
    """
    n = images.shape[-1]
    ring = radius_grid(n, 2, device=images.device).round().long().clamp(max=n - 1).flatten()
    total = torch.zeros(n, device=images.device).index_add_(0, ring, images.mean(0).flatten())
    profile = total / torch.bincount(ring, minlength=n).clamp_min(1)
    template = profile[ring].view(n, n)
    return template - template.mean()


@torch.no_grad()
def best_centres(images: Tensor, template: Tensor) -> Tensor:
    """Return the pixel about which each image agrees best with a template.

    Args:
        images: ``(b, n, n)``.
        template: ``(n, n)``, its centre at ``n // 2``.

    Returns:
        (x, y), long ``(b, 2)``.
    """
    n = images.shape[-1]
    origin = torch.fft.rfft2(torch.fft.ifftshift(template))
    agreement = torch.fft.irfft2(torch.fft.rfft2(images) * origin.conj(), s=(n, n))
    place = agreement.flatten(1).argmax(1)
    return torch.stack([place % n, place // n], -1)


def centred(images: Tensor, template: Tensor) -> Tensor:
    """Return images shifted cyclically by whole pixels to where they agree best with a template.

    The output of any network of the result does not change when its input is shifted cyclically.
    The shift is a constant to gradients.

    Args:
        images: ``(b, n, n)``.
        template: ``(n, n)``.

    >>> image = torch.zeros(1, 8, 8); image[0, 1, 6] = 1.0
    >>> blob = torch.zeros(8, 8); blob[4, 4] = 1.0
    >>> centred(image, blob)[0].nonzero().tolist()
    [[4, 4]]
    """
    n = images.shape[-1]
    step = torch.arange(n, device=images.device) - n // 2
    x, y = ((centre[:, None] + step) % n for centre in best_centres(images, template).unbind(-1))
    pixel = y[:, :, None] * n + x[:, None, :]
    return images.flatten(1).gather(1, pixel.flatten(1)).view(-1, n, n)
