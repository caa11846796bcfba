"""Real images and imaging conditions at the box of a coarse-to-fine stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index
from vitreous.core.params import Optics

CACHE_BYTES = 2**31
BATCH_BYTES = 2**23


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


class ImagesInMemory:
    """An :class:`ImageSource` of images ``(b, n, n)`` that are there."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        return int(self._images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these rows."""
        return self._images[indices.to(self._images.device)]


class ChosenImages:
    """Images of chosen rows of others, repetitions allowed.

    >>> source = ImagesInMemory(torch.arange(3.0)[:, None, None].expand(3, 4, 4))
    >>> ChosenImages(source, torch.tensor([2, 0, 2])).read(torch.arange(3))[:, 0, 0].tolist()
    [2.0, 0.0, 2.0]
    """

    def __init__(self, images: ImageSource, rows: Tensor) -> None:
        self._images, self._rows = images, rows

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        return self._images.box_size

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these of the chosen rows."""
        wanted, back = torch.unique(self._rows[indices], return_inverse=True)
        return self._images.read(wanted)[back]


def read_ahead(
    images: ImageSource, rows: Tensor, *, at_most: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and images ``(b, n, n)``, a batch being read while the one before is worked on.

    Args:
        images: to be read.
        rows: of them, long.
        at_most: in a batch; there may be fewer, by their size.
    """
    fitting = max(1, BATCH_BYTES // (4 * images.box_size**2))
    pieces = torch.split(rows, min(fitting, at_most or fitting))
    with ThreadPoolExecutor(1, "vitreous-read") as reader:
        coming = reader.submit(images.read, pieces[0])
        for piece, following in itertools.zip_longest(pieces, pieces[1:]):
            read = coming.result()
            if following is not None:
                coming = reader.submit(images.read, following)
            yield piece, read


@torch.no_grad()
def shell_power(images: ImageSource, rows: Tensor) -> Tensor:
    """Mean of ``|rfft2|^2`` of images by shell, float64 ``(n // 2 + 1,)``.

    >>> from vitreous.core.images import ImagesInMemory
    >>> noise = torch.randn(50, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> power = shell_power(ImagesInMemory(noise), torch.arange(50))
    >>> bool((power[1:] / 16**2 - 1).abs().max() < 0.2)
    True
    """
    n = images.box_size
    shell = shell_index(n, 2)
    inside = shell <= n // 2
    total = torch.zeros(n // 2 + 1, dtype=torch.float64)
    for _, read in read_ahead(images, rows):
        power = torch.fft.rfft2(read.float().cpu()).abs().square().sum(0)
        total.index_add_(0, shell[inside], power[inside].double())
    return total / (torch.bincount(shell[inside]) * len(rows))


def check_rows(
    images: ImageSource,
    rotations: Tensor,
    shift: Tensor | None,
    optics: Optics | None,
    half: Tensor,
    n: int,
) -> None:
    """One row of everything for each image, and a box that the images hold.

    Raises:
        ValueError: otherwise.
    """
    total = len(images)
    lengths = {
        "rotations": len(rotations),
        "shift_angstrom": total if shift is None else len(shift),
        "optics": total if optics is None else len(optics),
        "half": len(half),
    }
    wrong = {name: length for name, length in lengths.items() if length != total}
    if wrong:
        raise ValueError(f"{total} images, but {wrong}; give one row for each image")
    if total == 0:
        raise ValueError("no images to reconstruct from")
    if not 2 <= n <= images.box_size:
        raise ValueError(f"box_size must be from 2 to the images' {images.box_size}, got {n}")


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


def normalise_images(images: Tensor) -> Tensor:
    """Each image ``(..., n, n)`` with zero mean and unit deviation; a constant one becomes zero.

    >>> normalise_images(torch.ones(1, 4, 4)).abs().max().item()
    0.0
    """
    centred = images - images.mean((-2, -1), keepdim=True)
    return centred * centred.square().mean((-2, -1), keepdim=True).clamp_min(1e-20).rsqrt()
