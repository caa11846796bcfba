"""Two-dimensional generator of the VAE-GAN: class images for latent vectors."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from vitreous.core.fourier import fourier_resize, rfft_centered
from vitreous.core.grid import nyquist_disc, soft_mask, squared_frequency
from vitreous.core.resample import rotate_images
from vitreous.nn.layers import initialise
from vitreous.nn.slice_source import SliceSource

_MOST = 128  # channels
_SOFT = 2.0  # pixels: edge of the disc


class ImageGenerator(SliceSource):
    """Generator of noiseless particle images without a volume (DC-GAN; thesis, figure 20).

    A dense layer to 4 x 4 pixels, then blocks of [nearest neighbour up-sampling, 3 x 3 convolution,
    batch norm, ReLU], halving the channels to ``width``, and a last convolution. Images are rotated
    in their plane by a given angle, which the latent vector then need not encode; in the thesis the
    generator does that. A disc of ``mask_fraction`` box sizes holds the particle;
    :meth:`set_box_size` crops images in Fourier space.

    Raises:
        ValueError: a box below 8.

    >>> source = ImageGenerator(16, 4, generator=torch.Generator().manual_seed(0))
    >>> source.slices(torch.zeros(5, 4), None).shape, source.volume(torch.zeros(4)).shape
    (torch.Size([5, 16, 9]), torch.Size([16, 16]))
    """

    def __init__(
        self,
        box_size: int,
        latent: int,
        width: int = 16,
        *,
        mask_fraction: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if box_size < 8:
            raise ValueError(f"box_size must be at least 8, got {box_size}")
        self.largest = self.box_size = box_size
        self.latent, self.mask_fraction = latent, mask_fraction
        blocks = (-(-box_size // 4) - 1).bit_length()  # the least for which 4 * 2^blocks suffices
        channels = [min(_MOST, width * 2 ** (blocks - i)) for i in range(blocks + 1)]
        self.dense = nn.Linear(latent, 16 * channels[0])
        layers: list[nn.Module] = [nn.ReLU()]
        for inputs, outputs in itertools.pairwise(channels):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            norm = nn.BatchNorm2d(outputs)
            layers += [nn.Upsample(scale_factor=2), convolution, norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels[-1], 1, 3, padding=1)
        if generator is not None:
            initialise(self, generator)
        with torch.no_grad():
            self.last.weight.mul_(0.1)  # starts near zero, so that it does not imitate noise

    def forward(self, latent: Tensor) -> Tensor:
        """Return images ``(b, n, n)`` of latent vectors ``(b, d)``, not rotated."""
        start = self.dense(latent)
        images: Tensor = self.last(self.layers(start.view(len(latent), -1, 4, 4)))[:, 0]
        edge = (images.shape[-1] - self.largest) // 2
        images = images[:, edge : edge + self.largest, edge : edge + self.largest]
        radius = self.mask_fraction * self.largest
        support = soft_mask(self.largest, 2, radius, _SOFT, device=images.device)
        return fourier_resize(images * support, self.box_size, 2)

    def slices(
        self, latent: Tensor, rotations: Tensor | None, *, radius: float | None = None
    ) -> Tensor:
        """Return spectra ``(b, n, n // 2 + 1)`` of the images, rotated in plane if asked.

        Of rotations ``(b, 3, 3)`` only the in-plane direction of the first column counts, which is
        uniform for uniform rotations.
        """
        images = self.forward(latent)
        n = self.box_size
        disc = self._disc(radius, images)
        if rotations is not None:
            angle_rad = torch.atan2(rotations[:, 1, 0], rotations[:, 0, 0])
            images = rotate_images(images, angle_rad, nyquist_disc(n, device=images.device))
        return rfft_centered(images, 2) * disc

    def _disc(self, radius: float | None, like: Tensor) -> Tensor:
        """Return 1 below a radius in cycles per box, ``(n, n // 2 + 1)``."""
        n = self.box_size
        radius = n / 2 if radius is None else min(radius, n / 2)
        return (squared_frequency(n, 2) < radius**2).to(like)

    @torch.no_grad()
    def volume(self, latent: Tensor, *, radius: float | None = None) -> Tensor:
        """Return the class image ``(n, n)`` of a latent vector ``(d,)``; needs evaluation mode."""
        image = self.forward(latent[None])[0]
        n = self.box_size
        limited: Tensor = torch.fft.irfft2(
            torch.fft.rfft2(image) * self._disc(radius, image), s=(n, n)
        )
        return limited
