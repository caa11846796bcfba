"""Low frequencies of images: a smaller box that holds them, and the shifts they resolve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize

_MARGIN = 3  # shells between the band and the Nyquist frequency of the cropped box


@dataclass(frozen=True)
class FrequencyBand:
    """Low frequencies of images, and the smaller box that holds them.

    Args:
        full_box: edge of the images in pixels.
        full_pixel_angstrom: their pixel size, Å.
        radius: K, the highest shell, in cycles per box.

    Raises:
        ValueError: shells beyond Nyquist.

    >>> FrequencyBand(64, 3.0, 10).box_size, FrequencyBand(64, 3.0, 31).box_size
    (26, 64)
    """

    full_box: int
    full_pixel_angstrom: float
    radius: int

    def __post_init__(self) -> None:
        if not 1 <= self.radius <= (self.full_box - 1) // 2:
            raise ValueError(
                f"radius must be from 1 to {(self.full_box - 1) // 2} for a box of "
                f"{self.full_box} px, got {self.radius}"
            )

    @property
    def box_size(self) -> int:
        """Edge of the cropped images."""
        return min(self.full_box, 2 * (self.radius + _MARGIN))

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the cropped images, Å."""
        return self.full_pixel_angstrom * self.full_box / self.box_size

    @property
    def edge_angstrom(self) -> float:
        """Edge of the images, Å."""
        return self.full_pixel_angstrom * self.full_box

    @property
    def shift_step_angstrom(self) -> float:
        """Step between shifts, half of which moves the highest frequencies by 0.75 radians."""
        return 0.75 * self.box_size * self.pixel_size_angstrom / (math.pi * self.radius)

    def images(self, images: Tensor) -> Tensor:
        """Return cropped images ``(b, m, m)``, scaled as projections of :meth:`volume` are.

        >>> FrequencyBand(8, 2.0, 1).images(torch.ones(1, 8, 8)).mean().item()
        1.0
        """
        return fourier_resize(images, self.box_size, 2) * (self.box_size / self.full_box)

    def volume(self, volume: Tensor) -> Tensor:
        """Return the cropped volume ``(m, m, m)``."""
        return fourier_resize(volume, self.box_size, 3)

    def noise_power(self, full: Tensor) -> Tensor:
        """Return the power by shell, ``(K + 1,)``, in the spectra of cropped images.

        Args:
            full: mean of ``|rfft2|^2`` by shell in the full images, ``(n // 2 + 1,)``.
        """
        return full[: self.radius + 1] * (self.box_size / self.full_box) ** 6


def shift_grid(range_angstrom: float, step_angstrom: float) -> Tensor:
    """Return shifts (x, y) of a square grid on a disc, ``(s, 2)`` in Å, the nearest to 0 first.

    >>> len(shift_grid(0.0, 2.0)), len(shift_grid(2.0, 2.0)), len(shift_grid(4.0, 2.0))
    (1, 9, 21)
    """
    farthest = range_angstrom + step_angstrom / 2 if range_angstrom > 0 else 0.0
    reach = math.floor(farthest / step_angstrom)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32) * step_angstrom
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], -1)
    length = grid.norm(dim=1)
    order = length.argsort(stable=True)
    return grid[order[length[order] <= farthest]]
