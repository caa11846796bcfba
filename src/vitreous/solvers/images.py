"""Real images and imaging conditions at the box of a coarse-to-fine stage."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.physics.noise import BackgroundPatches, prepare_patches
from vitreous.physics.simulator import Simulator

CACHE_BYTES = 2**31


class ImageSource(Protocol):
    """Real particle images, read a batch at a time."""

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these rows."""
        ...


class ImageCache:
    """Particles Fourier-cropped to the stage's box, kept in memory while they fit."""

    def __init__(self, images: ImageSource, n: int, device: torch.device) -> None:
        self._images, self._n, self._device = images, n, device
        self._all: Tensor | None = None
        if len(images) * n * n * 4 <= CACHE_BYTES:
            pieces = torch.split(torch.arange(len(images)), 512)
            self._all = torch.cat([self._fetch(piece) for piece in pieces])

    def _fetch(self, indices: Tensor) -> Tensor:
        images = self._images.read(indices.cpu()).to(self._device, torch.float32)
        return fourier_resize(images, self._n, 2)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the device."""
        if self._all is None:
            return self._fetch(indices)
        return self._all[indices.to(self._device)]


def at_box(simulator: Simulator, n: int) -> Simulator:
    """The same field of view at another box: pixel size and noise patches follow."""
    full = simulator.box_size
    if n == full:
        return simulator
    noise = simulator.noise
    if isinstance(noise, BackgroundPatches):
        size = max(n, round(noise.patches.shape[-1] * n / full))
        noise = dataclasses.replace(noise, patches=prepare_patches(noise.patches, size))
    pixel = simulator.pixel_size_angstrom * full / n
    return dataclasses.replace(simulator, box_size=n, pixel_size_angstrom=pixel, noise=noise)
