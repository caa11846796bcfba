"""Search for images that must not enter a reconstruction: damaged, or constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError

DAMAGE = "NaN or infinite pixels, or a few far beyond all others"
_SCAN_BYTES = 1 << 26
_LARGEST = 1e30  # grey value that can be computed with in single precision, once it is scaled
_FAR = 1e5  # times as far from the median as 99 % of the pixels are: no image of anything
_SAMPLE = 1024  # pixels of an image from which these are estimated


def finite_and_constant(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks ``(b,)`` of the images without :data:`DAMAGE`, and of the constant ones.

    >>> finite_and_constant(torch.tensor([[[1.0, 2.0]], [[3.0, 3.0]], [[torch.nan, 0.0]]]))
    (tensor([ True,  True, False]), tensor([False,  True, False]))
    """
    pixels = images.flatten(1).numpy()  # torch would use the threads of a solver
    low, high = pixels.min(axis=1).astype(np.float64), pixels.max(axis=1).astype(np.float64)
    sample = pixels[:, :: (pixels.shape[1] // _SAMPLE) | 1].copy()
    most = min(sample.shape[1] - 1, round(0.99 * sample.shape[1]))
    with np.errstate(all="ignore"):  # of images that are not finite
        finite = np.maximum(high, -low) < _LARGEST  # false of NaN
        # The mean distance from the mean, which is cheap, bounds that of 99 % from below: it is at
        # most twice that from the median, of which one pixel in a hundred may be the range.
        spread = np.abs(sample - sample.mean(axis=1, keepdims=True)).mean(axis=1)
        least = spread / 2 - (1 - most / sample.shape[1]) * (high - low)
        doubtful = ~(high - low < 0.9 * _FAR * least)
    finite[doubtful] &= ~_far_beyond(sample[doubtful], most, low[doubtful], high[doubtful])
    return torch.from_numpy(finite), torch.from_numpy(finite & (low == high))


def _far_beyond(
    sample: NDArray[np.float32], most: int, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return whether extremes lie :data:`_FAR` beyond the ``most``-th distance from the median."""
    with np.errstate(all="ignore"):
        median = np.median(sample, axis=1, keepdims=True)
        usual = np.partition(np.abs(sample - median), most, axis=1)[:, most].astype(np.float64)
        farthest = np.maximum(high - median[:, 0], median[:, 0] - low)
        return np.asarray(~((usual == 0) | (farthest < _FAR * usual)))


@dataclass(frozen=True)
class BadImages:
    """0-based indices of images with :data:`DAMAGE`, and of images of equal pixels.

    Messages count images from 1, as tables do.
    """

    non_finite: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.non_finite or self.constant)

    def refuse_non_finite(self, ids: Sequence[str], source: object) -> None:
        """Refuse images with :data:`DAMAGE`; ``source`` is the file of the particles.

        Raises:
            InputError: there are such images; the first ten are named.
        """
        if not self.non_finite:
            return
        names = ", ".join(f"{i + 1} ({ids[i]})" for i in self.non_finite[:10])
        more = f" and {len(self.non_finite) - 10} more" if len(self.non_finite) > 10 else ""
        raise InputError(
            f"{source}: images {names}{more}: {DAMAGE}; leave them out with `skip_bad`"
        )


def find_bad_images(
    read: Callable[[slice], Tensor],
    count: int,
    box_size: int,
    progress: Callable[[int, int], None] | None = None,
    on_images: Callable[[Tensor], object] | None = None,
) -> BadImages:
    """Read every image once, batch by batch, and list those that cannot be used.

    ``read`` returns the images ``(b, n, n)`` of a slice. ``progress`` is called with the number of
    images read and of all images, ``on_images`` with every batch, in order.
    """
    step = max(1, _SCAN_BYTES // (4 * box_size**2))
    non_finite: list[int] = []
    constant: list[int] = []
    for start in range(0, count, step):
        images = read(slice(start, start + step))
        finite, flat = finite_and_constant(images)
        if on_images is not None:
            on_images(images)
        non_finite += (start + (~finite).nonzero().flatten()).tolist()
        constant += (start + flat.nonzero().flatten()).tolist()
        if progress is not None:
            progress(min(start + step, count), count)
    return BadImages(tuple(non_finite), tuple(constant))
