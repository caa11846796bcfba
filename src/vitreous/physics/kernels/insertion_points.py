"""Geometry of the Fourier grid into which slices are inserted.

The grid samples the spectrum in steps of 1 / :data:`SPREAD` cycles per box. It holds planes of
kx >= 0 with ky and kz of both signs, zero frequency in the middle; real part, imaginary part and
weight are adjacent, so that the two taps along kz are six consecutive numbers. Tables list half of
the Nyquist disc: one of each pair of opposite frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SPREAD = 2


@dataclass(frozen=True)
class HalfDisc:
    """Half of the frequencies strictly inside the Nyquist circle, row by row.

    Args:
        kx, ky: ``(points,)`` cycles per box, kx >= 0; on the line kx = 0 only ky >= 0.
        table: ``(rows, 4)`` ky, first kx, last kx (excluded) and index of the first point.
    """

    kx: NDArray[np.int64]
    ky: NDArray[np.int64]
    table: NDArray[np.int64]


@lru_cache(maxsize=16)
def half_disc(n: int) -> HalfDisc:
    """Return the points of images of ``n`` pixels; the zero frequency comes first.

    >>> half_disc(4).table.tolist()
    [[0, 0, 2, 0], [1, 0, 2, 2], [-1, 1, 2, 4]]
    """
    axis = np.arange(n // 2 + 1)
    table: list[tuple[int, int, int, int]] = []
    place = 0
    for ky in np.fft.fftfreq(n, 1 / n).round().astype(np.int64).tolist():
        first = 0 if ky >= 0 else 1
        last = int((4 * (axis**2 + ky**2) < n**2).sum())
        if last > first:
            table.append((ky, first, last, place))
            place += last - first
    kx = np.concatenate([np.arange(first, last) for _, first, last, _ in table])
    ky = np.concatenate([np.full(last - first, ky) for ky, first, last, _ in table])
    return HalfDisc(kx, ky, np.array(table, dtype=np.int64))
