"""Particle images whose poses are known."""

from dataclasses import dataclass

from torch import Tensor

from vitreous.core.images import ImageSource, ImageSubset, check_image_rows
from vitreous.core.params import Optics


@dataclass(frozen=True)
class PosedParticles:
    """Particle images with their poses, CTFs and half sets."""

    images: ImageSource  # protein positive; read in order, a few thousand at a time
    rotations: Tensor  # ``(b, 3, 3)``, volume to particle coordinates
    # ``(b, 2)`` displacement (x, y) of each particle in its image; None for none
    shift_angstrom: Tensor | None
    optics: Optics | None  # CTF of each image; None for images without
    pixel_size_angstrom: float  # of the images as read, Å
    half_set: Tensor  # long ``(b,)`` of 1 and 2; images with another number are left out

    def subset(self, rows: Tensor) -> "PosedParticles":
        """Return the particles ``rows``, long ``(m,)``."""
        return PosedParticles(
            ImageSubset(self.images, rows),
            self.rotations[rows],
            None if self.shift_angstrom is None else self.shift_angstrom[rows],
            None if self.optics is None else self.optics[rows],
            self.pixel_size_angstrom,
            self.half_set[rows],
        )

    def checked_box(self, box_size: int | None) -> int:
        """Return the box to work in, the images' own by default.

        Raises:
            ValueError: lengths that do not agree, or a box larger than the images'.
        """
        n = self.images.box_size if box_size is None else box_size
        check_image_rows(
            self.images, self.rotations, self.shift_angstrom, self.optics, self.half_set, n
        )
        return n
