"""Images of a few flat shapes, turned, shifted and seen through CTFs, for tests of 2D classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matching_case import astigmatic
from vitreous.core.params import Optics
from vitreous.core.resample import rotate_images
from vitreous.physics.ctf import ctf_half

BOX, PIXEL = 32, 6.0


@dataclass(frozen=True)
class Planar:
    """Shapes ``(k, n, n)``, and images of them with what they were made with."""

    shapes: Tensor
    images: Tensor
    label: Tensor
    angle: Tensor
    shift: Tensor
    optics: Optics
    half: Tensor


def shapes(count: int, n: int = BOX) -> Tensor:
    """Each some blobs within 0.3 of the box from its centre."""
    stream = torch.Generator().manual_seed(7)
    axis = torch.arange(n, dtype=torch.float32) - n // 2
    made = []
    for _ in range(count):
        place = n * 0.28 * (2 * torch.rand(5, 2, generator=stream) - 1)
        y, x = (torch.exp(-0.5 * ((axis - p[:, None]) / 2.0) ** 2) for p in place.mT)
        made.append(torch.einsum("by,bx->yx", y, x))
    return torch.stack(made)


def planar(
    count: int, classes: int = 3, noise: float = 0.0, reach: float = 9.0, seed: int = 2
) -> Planar:
    """Images; ``noise`` in units of the signal's deviation, shifts in Å."""
    stream = torch.Generator().manual_seed(seed)
    shown = shapes(classes)
    label = torch.randint(classes, (count,), generator=stream)
    angle = 2 * math.pi * torch.rand(count, generator=stream)
    shift = reach * (2 * torch.rand(count, 2, generator=stream) - 1)
    optics = astigmatic(count, stream)
    factor = torch.ones(BOX, BOX // 2 + 1)
    factor[BOX // 2], factor[:, BOX // 2] = 0, 0
    turned = rotate_images(shown[label], angle, factor)
    k = torch.fft.fftfreq(BOX), torch.fft.rfftfreq(BOX)
    phase = shift[:, 1, None, None] * k[0][:, None] + shift[:, 0, None, None] * k[1]
    ramp = torch.polar(torch.ones_like(phase), -2 * math.pi / PIXEL * phase)
    spectra = torch.fft.rfft2(turned) * ramp * ctf_half(BOX, PIXEL, optics).float() * factor
    images = torch.fft.irfft2(spectra, s=(BOX, BOX))
    images = images + noise * images.std() * torch.randn(images.shape, generator=stream)
    half = 1 + torch.arange(count) % 2
    return Planar(shown, images, label, angle, shift, optics, half)
