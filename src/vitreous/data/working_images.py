"""Particle images with protein positive, as solvers read them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.core.fourier import fourier_resize
from vitreous.data.bad_images import DAMAGE, finite_and_constant
from vitreous.data.grey_values import GreyValues

if TYPE_CHECKING:
    from vitreous.data.particles import Particles

Rows = Tensor | slice | Sequence[int] | NDArray[Any]


def as_index(indices: Rows) -> Any:
    """Return a slice, a mask or whole numbers as a numpy index; TypeError for others."""
    if isinstance(indices, slice):
        return indices
    index = to_numpy(indices)
    if index.size == 0:
        return np.empty(0, dtype=np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iub":
        raise TypeError(f"indices must be a row of whole numbers, got {index.dtype} {index.shape}")
    return index


def to_numpy(values: Any) -> NDArray[Any]:
    """Return values, which may be a tensor, as a numpy array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


class SignedImages:
    """Particle images with protein positive, Fourier-cropped to a box, read on demand.

    ``grey`` says how grey values are treated; ``box_size`` is the particles' own by default. The
    attribute ``pixel_size_angstrom`` is that at this box.

    Raises:
        UsageError: ``box_size`` is below 2 or larger than the images.

    Attributes:
        box_size: edge ``n`` of the images in pixels.
        pixel_size_angstrom: pixel size at this box in Å.
    """

    def __init__(
        self, particles: Particles, grey: GreyValues, *, box_size: int | None = None
    ) -> None:
        full = particles.box_size
        if box_size is not None and not 2 <= box_size <= full:
            raise UsageError(f"`box_size` {box_size}: choose from 2 to the images' {full} px")
        self._particles, self._grey = particles, grey
        self.box_size = box_size or full
        self.pixel_size_angstrom = particles.pixel_size_angstrom * full / self.box_size

    def __len__(self) -> int:
        return len(self._particles)

    def read(self, indices: Rows) -> Tensor:
        """Return the images ``(b, n, n)`` of these rows, a slice, or a mask, float32 on the CPU."""
        return fourier_resize(self._grey.apply(self._particles.read(indices)), self.box_size, 2)

    def __getitem__(self, indices: int | Rows) -> Tensor:
        if isinstance(indices, int):
            return self.read([indices])[0]
        return self.read(indices)


class CheckedImages:
    """Images that are checked and hashed while they are read, for commands that read them once.

    ``names`` are those of the images, for error texts; ``constant`` counts the images read so far
    whose pixels are all equal.
    """

    def __init__(self, images: SignedImages, names: Sequence[str]) -> None:
        self.constant = 0
        self.box_size = images.box_size
        self._images, self._names = images, names
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """Hash of all pixels read so far."""
        return self._digest.hexdigest()[:16]

    def read(self, indices: Tensor) -> Tensor:
        """Read the images ``(b, n, n)`` of these rows, on the CPU.

        Raises:
            InputError: an image is damaged; the text names it.
        """
        images = self._images.read(indices)
        self._digest.update(images.numpy().data)
        finite, constant = (mask.numpy() for mask in finite_and_constant(images))
        if not finite.all():
            name = self._names[int(indices[finite.argmin()])]
            raise InputError(f"{name}: {DAMAGE}; leave such images out with `skip_bad`")
        self.constant += int(np.count_nonzero(constant))
        return images
