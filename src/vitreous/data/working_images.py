"""Particle images with protein positive."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.data.particles import Particles


class SignedImages:
    """Particle images with protein positive, as a solver reads them.

    Args:
        particles: of one half set.
        invert: whether protein is dark in the files.
    """

    def __init__(self, particles: Particles, *, invert: bool) -> None:
        self._particles, self._sign = particles, -1.0 if invert else 1.0

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels, as on disk."""
        return self._particles.box_size

    def __len__(self) -> int:
        return len(self._particles)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the CPU."""
        images = self._particles.read(indices)
        return images if self._sign > 0 else -images


class CheckedImages:
    """Images checked and hashed while they are read, for commands that read them but once.

    Args:
        images: what is read.
        names: of the images, for errors.

    Attributes:
        constant: how many images read so far had all pixels equal.
    """

    def __init__(self, images: SignedImages, names: Sequence[str]) -> None:
        self.constant = 0
        self._images, self._names = images, names
        self._digest = hashlib.sha256()

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels, as on disk."""
        return self._images.box_size

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """A hash of all pixels read so far."""
        return self._digest.hexdigest()[:16]

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the CPU.

        Raises:
            InputError: one of them has NaN or infinite pixels; it is named.
        """
        images = self._images.read(indices)
        self._digest.update(images.numpy().data)
        pixels = images.flatten(1).numpy()  # torch would take threads from the solver
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if bad.size:
            name = self._names[int(indices[bad[0]])]
            raise InputError(
                f"{name}: NaN or infinite pixels; leave such images out with --skip-bad"
            )
        self.constant += int(np.count_nonzero(low == high))
        return images
