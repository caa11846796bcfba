"""Sources of particle images, read in batches and cropped to a working box."""

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
    """Interface of particle images that are read in batches.

    Any object with these three members serves as one:

    >>> class WhiteImages:
    ...     box_size = 16
    ...     def __len__(self): return 100
    ...     def read(self, indices): return torch.ones(len(indices), 16, 16)
    >>> images: ImageSource = WhiteImages()
    >>> shell_power(images, torch.arange(len(images))).round()[:3].tolist()
    [65536.0, 0.0, 0.0]
    """

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """Return the images ``(b, n, n)`` with the given indices ``(b,)``."""
        ...


class ImagesInMemory:
    """An :class:`ImageSource` of images ``(b, n, n)`` held in a tensor.

    >>> source = ImagesInMemory(torch.zeros(5, 16, 16))
    >>> len(source), source.box_size, source.read(torch.tensor([4, 0])).shape
    (5, 16, torch.Size([2, 16, 16]))
    """

    def __init__(self, images: Tensor) -> None:
        self._images, self.box_size = images, int(images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images ``(b, n, n)`` with the given indices."""
        return self._images[indices.to(self._images.device)]


class ImageSubset:
    """Selected rows of another :class:`ImageSource`, repetitions allowed.

    >>> source = ImagesInMemory(torch.arange(3.0)[:, None, None].expand(3, 4, 4))
    >>> ImageSubset(source, torch.tensor([2, 0, 2])).read(torch.arange(3))[:, 0, 0].tolist()
    [2.0, 0.0, 2.0]
    """

    def __init__(self, images: ImageSource, rows: Tensor) -> None:
        self._images, self._rows, self.box_size = images, rows, images.box_size

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images ``(b, n, n)`` with the given indices into the subset."""
        unique_rows, inverse = torch.unique(self._rows[indices], return_inverse=True)
        return self._images.read(unique_rows)[inverse]


def pixel_size_of(images: ImageSource, given_angstrom: float | None = None) -> float:
    """Return the pixel size in Å, given or carried by the images; ValueError without either.

    >>> pixel_size_of(ImagesInMemory(torch.zeros(1, 8, 8)), 2.5)
    2.5
    """
    own = getattr(images, "pixel_size_angstrom", None)
    pixel_size = own if given_angstrom is None else given_angstrom
    if pixel_size is None:
        raise ValueError("pixel_size_angstrom: give it, as the images do not carry one")
    return float(pixel_size)


def read_ahead(
    images: ImageSource, rows: Tensor, *, max_batch: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``rows`` (long) and their images ``(b, n, n)``, reading one batch ahead in a thread.

    A batch holds at most ``max_batch`` images; large images come in smaller batches.
    """
    fitting = max(1, BATCH_BYTES // (4 * images.box_size**2))
    batches = torch.split(rows, min(fitting, max_batch or fitting))
    with ThreadPoolExecutor(1, "vitreous-read") as reader:
        pending = reader.submit(images.read, batches[0])
        for batch, next_batch in itertools.zip_longest(batches, batches[1:]):
            loaded = pending.result()
            if next_batch is not None:
                pending = reader.submit(images.read, next_batch)
            yield batch, loaded


@torch.no_grad()
def shell_power(images: ImageSource, rows: Tensor) -> Tensor:
    """Return the mean of ``|rfft2|^2`` of images by shell, float64 ``(n // 2 + 1,)``.

    >>> noise = torch.randn(50, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> power = shell_power(ImagesInMemory(noise), torch.arange(50))
    >>> bool((power[1:] / 16**2 - 1).abs().max() < 0.2)
    True
    """
    n = images.box_size
    shell = shell_index(n, 2)
    inside = shell <= n // 2
    total = torch.zeros(n // 2 + 1, dtype=torch.float64)
    for _, batch in read_ahead(images, rows):
        power = torch.fft.rfft2(batch.float().cpu()).abs().square().sum(0)
        total.index_add_(0, shell[inside], power[inside].double())
    return total / (torch.bincount(shell[inside]) * len(rows))


def check_image_rows(
    images: ImageSource,
    rotations: Tensor,
    shift: Tensor | None,
    optics: Optics | None,
    half: Tensor,
    n: int,
) -> None:
    """Check that every table has one row for each image and that ``n`` fits into the images.

    Raises:
        ValueError: another number of rows, no images, a box that does not fit.
    """
    total = len(images)
    tables = {"rotations": rotations, "shift_angstrom": shift, "optics": optics, "half": half}
    lengths = {name: len(table) for name, table in tables.items() if table is not None}
    wrong = {name: length for name, length in lengths.items() if length != total}
    if wrong:
        raise ValueError(f"{total} images, but {wrong}; give one row for each image")
    if total == 0:
        raise ValueError("no images to reconstruct from")
    if not 2 <= n <= images.box_size:
        raise ValueError(f"box_size must be from 2 to the images' {images.box_size}, got {n}")


class ImageCache:
    """Particle images Fourier-cropped to a working box, kept in memory if they fit."""

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
        """Return the images ``(b, n, n)`` with the given indices, on the device."""
        if self._all is None:
            return self._fetch(indices)
        return self._all[indices.to(self._device)]


def normalise_images(images: Tensor) -> Tensor:
    """Scale images ``(..., n, n)`` to zero mean and unit deviation; constant ones become zero.

    >>> normalise_images(torch.ones(1, 4, 4)).abs().max().item()
    0.0
    """
    centred = images - images.mean((-2, -1), keepdim=True)
    return centred * centred.square().mean((-2, -1), keepdim=True).clamp_min(1e-20).rsqrt()
