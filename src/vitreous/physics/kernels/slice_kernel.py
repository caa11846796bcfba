"""Interpolation kernel and packed spectrum of the Fourier-slice projector.

The oversampled spectrum is stored as lines along kz, one for each (kx, ky) that a central slice
can touch: kx from -1 to N / 2 + 1 and, at each kx, |ky| up to the edge of the Nyquist sphere plus
the width of the interpolation kernel. The four taps along z are adjacent, taps along x and y never
wrap or mirror, and the corners outside the sphere are neither stored nor transformed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import i0

OVERSAMPLING = 1.5
TAPS = 4
_DEGREE = 7
# 1.12 times Beatty's first-order choice minimises the root-mean-square aliasing over the inner
# 70 % of the box for 4 taps at 1.5-fold oversampling.
BETA = 1.12 * math.pi * TAPS * (1 - 0.5 / OVERSAMPLING)

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


def padded_size(n: int) -> int:
    """Return the edge of the oversampled spectrum of an ``n`` box: even, no primes above 5.

    >>> padded_size(64), padded_size(65)
    (96, 100)
    """
    size = math.ceil(OVERSAMPLING * n)
    while True:
        cofactor = size
        for prime in (2, 3, 5):
            while cofactor % prime == 0:
                cofactor //= prime
        if cofactor == 1 and size % 2 == 0:
            return size
        size += 1


def kernel(u: FloatArray) -> FloatArray:
    """Return the Kaiser-Bessel window ``u`` grid units from its centre, 1 there, 0 from 2 on."""
    root = np.sqrt(np.maximum(1 - (2 * u / TAPS) ** 2, 0))
    value: FloatArray = i0(BETA * root) / i0(BETA)
    return value


@lru_cache(maxsize=4)
def polynomials(dtype: type) -> tuple[FloatArray, FloatArray]:
    """Fit the weights of the taps and their slopes by polynomials of the fraction in [-0.5, 0.5).

    Both ``(terms, TAPS)``, highest power first. The slopes are the exact derivatives of the
    weights, so that gradients to rotations are exact too.
    """
    f = 0.5 * np.cos(np.pi * (np.arange(256) + 0.5) / 256)
    values, slopes = [], []
    for tap in range(TAPS):
        fit = np.polynomial.Chebyshev.fit(f, kernel((tap - 1) - (f + 0.5)), _DEGREE)
        power = fit.convert(kind=np.polynomial.Polynomial)
        values.append(power.coef[::-1])
        slopes.append(power.deriv().coef[::-1])
    return np.array(values, dtype).T.copy(), np.array(slopes, dtype).T.copy()


@lru_cache(maxsize=16)
def deapodisation(n: int) -> FloatArray:
    """Return one axis of the reciprocal transform of the kernel in the ``n`` box, float64."""
    x = (np.arange(n) - n // 2) / padded_size(n)
    root = np.sqrt((BETA**2 - (np.pi * TAPS * x) ** 2).astype(complex))
    transform = (TAPS * np.sinh(root) / root).real / i0(BETA)
    return 1 / transform


def z_weights(n: int) -> FloatArray:
    """Return the de-apodisation along z; its alternating sign puts kz = -N / 2 first in a line."""
    return deapodisation(n) * (1 - 2 * (np.abs(np.arange(n) - n // 2) % 2))


@lru_cache(maxsize=16)
def disc(n: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return (kx, ky) and flat index of the half-plane points strictly inside the Nyquist circle.

    In tiles of 8 x 8, so that successive points touch the same cache lines.
    """
    ky, kx = np.meshgrid(
        np.fft.fftfreq(n, 1 / n).round().astype(np.int64), np.arange(n // 2 + 1), indexing="ij"
    )
    inside = 4 * (kx**2 + ky**2) < n**2
    x, y, target = kx[inside], ky[inside], np.flatnonzero(inside)
    order = np.lexsort((x, y, x // 8, y // 8))
    return x[order], y[order], target[order]


@dataclass(frozen=True)
class Lines:
    """Index of the line of each (kx, ky) in the packed spectrum.

    Args:
        size: N, edge of the oversampled grid and length of every line.
        reach: ``(N / 2 + 3,)``, the largest stored abs(ky) at kx = -1, 0, ..., N / 2 + 1.
        middle: ``(N / 2 + 3,)``, index of the line (kx, 0).
        count: number of lines.
    """

    size: int
    reach: IntArray
    middle: IntArray
    count: int


@lru_cache(maxsize=16)
def lines(size: int) -> Lines:
    """Return the table of stored lines of an oversampled grid of edge ``size``."""
    half = size // 2
    nearest = np.maximum(np.arange(-1, half + 2) - 2, 0)  # least kx whose taps reach this column
    edge = np.ceil(np.sqrt(half**2 - nearest**2)).astype(np.int64)
    reach = np.minimum(edge + 2, half + 1)
    ends = np.cumsum(2 * reach + 1)
    return Lines(size, reach, ends - reach - 1, int(ends[-1]))
