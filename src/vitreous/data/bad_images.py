"""Images that must not enter a reconstruction: not finite, or constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

_SCAN_BYTES = 1 << 26


def finite_and_constant(images: Tensor) -> tuple[Tensor, Tensor]:
    """Which images ``(b, y, x)`` have finite pixels only, and which of these equal ones.

    >>> import torch
    >>> finite_and_constant(torch.tensor([[[1.0, 2.0]], [[3.0, 3.0]], [[torch.nan, 0.0]]]))
    (tensor([ True,  True, False]), tensor([False,  True, False]))
    """
    pixels = images.flatten(1)
    finite = pixels.isfinite().all(dim=1)
    return finite, finite & (pixels.amax(dim=1) == pixels.amin(dim=1))


@dataclass(frozen=True)
class BadImages:
    """0-based places of images that must not enter a reconstruction.

    Args:
        non_finite: images with NaN or infinite pixels.
        constant: images whose pixels are all equal.
    """

    non_finite: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.non_finite or self.constant)


def bad_images(
    read: Callable[[slice], Tensor],
    count: int,
    box_size: int,
    progress: Callable[[int, int], None] | None = None,
    look: Callable[[Tensor], object] | None = None,
) -> BadImages:
    """Read every image once, piece by piece, and list what cannot be used.

    Args:
        read: images ``(b, n, n)`` of a slice.
        count: of all.
        box_size: n.
        progress: called with images done and images in all.
        look: shown every piece, in order.
    """
    step = max(1, _SCAN_BYTES // (4 * box_size**2))
    non_finite: list[int] = []
    constant: list[int] = []
    for start in range(0, count, step):
        images = read(slice(start, start + step))
        finite, flat = finite_and_constant(images)
        if look is not None:
            look(images)
        non_finite += (start + (~finite).nonzero().flatten()).tolist()
        constant += (start + flat.nonzero().flatten()).tolist()
        if progress is not None:
            progress(min(start + step, count), count)
    return BadImages(tuple(non_finite), tuple(constant))
