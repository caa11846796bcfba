r"""Volumes that are linear in K maps, with weights from a network of the latent vector.

.. math:: V(z) = V_0 + \sum_{k=1}^{K} h_k(z)\, V_k ,

where h is free, or positive with a sum of 1: then every volume is a mixture of K structures. Maps
are voxels inside a sphere. Slices are linear in the volume: those of the K + 1 maps come from the
package's projector and are summed with the weights of each image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid, squared_frequency
from vitreous.nn.layers import initialise
from vitreous.nn.slice_source import SliceSource
from vitreous.physics.projector import central_slices, oversampled_spectrum

COARSE = 6  # pixels: edge of the random field that initialises the maps
VARIATION = 0.5  # its deviation
SHARPNESS = 2.0  # of the softmax: initially most latent vectors have one structure


class BasisGenerator(SliceSource):
    """Generator of central slices of volumes that are linear in K maps, K being ``maps``.

    Args:
        box_size: edge of images and volumes in pixels.
        latent: d, dimension of the latent space.
        width: neurons of the network h, which has one hidden layer.
        mask_fraction: radius of the sphere, in box sizes.
        mixture: h is a softmax, K at least 2.
        gain: grey value of a voxel per unit of its parameter; with 100 an optimiser's step of 1e-3
            changes voxels by 0.1. Maps start at zero.

    Raises:
        ValueError: a mixture of fewer than two maps.

    >>> source = BasisGenerator(16, 4, 2, generator=torch.Generator().manual_seed(0))
    >>> source.slices(torch.zeros(5, 4), torch.eye(3).expand(5, 3, 3)).shape
    torch.Size([5, 16, 9])
    """

    inside: Tensor
    on: Tensor

    def __init__(
        self,
        box_size: int,
        latent: int,
        maps: int = 8,
        *,
        width: int = 64,
        mask_fraction: float = 0.45,
        mixture: bool = False,
        gain: float = 100.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mixture and maps < 2:
            raise ValueError(f"a mixture needs at least 2 maps, got {maps}")
        self.mixture = mixture
        self.box_size, self.latent, self.maps = box_size, latent, maps
        self.mask_fraction, self.gain = mask_fraction, gain
        self.weights = nn.Sequential(
            nn.Linear(latent, width), nn.LeakyReLU(0.1), nn.Linear(width, maps)
        )
        if generator is not None:
            initialise(self.weights, generator)
        self.register_buffer("inside", self._sphere(), persistent=False)
        self.voxels = nn.Parameter(torch.zeros(maps + 1, int(self.inside.sum())))
        self.register_buffer("on", torch.ones(()))

    @torch.no_grad()
    def freeze_variation(self) -> None:
        """Use the mean map only, until :meth:`start_variation`."""
        self.on.zero_()

    @torch.no_grad()
    def start_variation(self, generator: torch.Generator) -> None:
        """Initialise the other maps as the mean times smooth random fields, and use them.

        Structures differ where there is density. From zero all maps would have the same gradient
        and stay copies of each other. The generator is on the CPU.
        """
        n = self.box_size
        coarse = torch.randn(self.maps, *[COARSE] * 3, generator=generator)
        smooth = fourier_resize(coarse, n, 3)
        smooth = smooth / smooth.flatten(1).std(1)[:, None, None, None]
        self.voxels[1:] = VARIATION * self.voxels[0] * smooth.to(self.voxels)[:, self.inside]
        self.on.fill_(1.0)

    def _sphere(self) -> Tensor:
        """Return a bool mask ``(n, n, n)`` of the voxels that are parameters."""
        return radius_grid(self.box_size, 3) <= self.mask_fraction * self.box_size

    @torch.no_grad()
    def set_box_size(self, box_size: int) -> None:
        """Resample the maps to another box; the voxels become new parameters."""
        if box_size == self.box_size:
            return
        maps = fourier_resize(self._maps(), box_size, 3)
        self.box_size = box_size
        self.inside = self._sphere().to(maps.device)
        self.voxels = nn.Parameter(maps[:, self.inside] / self.gain)

    def _maps(self) -> Tensor:
        """Return the maps ``(K + 1, n, n, n)``, the mean first, before the factor 4 / n."""
        n = self.box_size
        flat = self.voxels.new_zeros(self.maps + 1, n**3)
        index = self.inside.flatten().nonzero()[:, 0]
        return flat.index_copy(1, index, self.gain * self.voxels).view(-1, n, n, n)

    def _shares(self, latent: Tensor) -> Tensor:
        """Return the weights ``(b, K + 1)``; 4 / n keeps grey values alike at every box."""
        shares: Tensor = self.weights(latent)
        if self.mixture:
            shares = (SHARPNESS * shares).softmax(-1)
        shares = shares * self.on
        return torch.cat([shares.new_ones(len(shares), 1), shares], 1) * (4 / self.box_size)

    def slices(
        self, latent: Tensor, rotations: Tensor | None, *, radius: float | None = None
    ) -> Tensor:
        """Return central slices; see :meth:`vitreous.nn.slice_source.SliceSource.slices`."""
        if rotations is None:
            raise ValueError("slices of a volume need rotations (b, 3, 3), got None")
        n, shares = self.box_size, self._shares(latent)
        total = None
        for k, volume in enumerate(self._maps()):
            part = central_slices(oversampled_spectrum(volume), rotations, n)
            part = part * shares[:, k, None, None]
            total = part if total is None else total + part
        if total is None:
            raise ValueError("maps must not be negative")
        if radius is None:
            return total
        return total * (squared_frequency(n, 2) < radius**2).to(self.voxels)

    @torch.no_grad()
    def volume(self, latent: Tensor, *, radius: float | None = None) -> Tensor:
        """Return the volume ``(n, n, n)`` of a latent vector ``(d,)``, zero beyond ``radius``."""
        volume = torch.einsum("k,kzyx->zyx", self._shares(latent[None])[0], self._maps())
        if radius is None or radius >= self.box_size / 2:
            return volume
        ball = (squared_frequency(self.box_size, 3) < radius**2).to(volume)
        filtered: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * ball, s=volume.shape)
        return filtered
