"""Real images and imaging conditions at the box of a coarse-to-fine stage."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import frequency_grid, radius_grid
from vitreous.physics.noise import BackgroundPatches, prepare_patches
from vitreous.physics.simulator import Simulator
from vitreous.solvers.losses import normalise_images

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
        self._images, self.box_size, self._device = images, n, device
        self._all: Tensor | None = None
        if len(images) * n * n * 4 <= CACHE_BYTES:
            pieces = torch.split(torch.arange(len(images)), 512)
            self._all = torch.cat([self._fetch(piece) for piece in pieces])

    def _fetch(self, indices: Tensor) -> Tensor:
        images = self._images.read(indices.cpu()).to(self._device, torch.float32)
        return fourier_resize(images, self.box_size, 2)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the device."""
        if self._all is None:
            return self._fetch(indices)
        return self._all[indices.to(self._device)]


def background_share(images: ImageSource, device: torch.device) -> float:
    """Share of the images' variance that is noise, from the pixels outside the particle.

    Of up to 2000 images, band-limited to the Nyquist circle; outside means the box's corners.
    """
    n = images.box_size
    kx, ky = frequency_grid(n, device=device)
    band = (kx**2 + ky**2 < 0.25).to(torch.float32)
    outside = radius_grid(n, 2, device=device) > 0.5 * n
    variances = []
    for rows in torch.split(torch.arange(len(images))[:: max(1, len(images) // 2000)], 256):
        spectra = torch.fft.rfft2(images.read(rows).to(device, torch.float32)) * band
        normal = normalise_images(torch.fft.irfft2(spectra, s=(n, n)))
        variances.append(normal[:, outside].var(dim=1))
    return min(0.98, max(1e-4, float(torch.cat(variances).mean())))


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
