"""Centred Fourier transform pair of the package, and Fourier cropping and padding.

Real-space arrays have their origin at index ``n // 2`` of every axis. Spectra are the Hermitian
half in FFT order: frequency 0 at index 0, the last axis holding ``n // 2 + 1`` entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _axes(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def rfft_centered(x: Tensor, ndim: int) -> Tensor:
    r"""Return the Hermitian-half spectrum of a real array whose origin is at ``n // 2``.

    :math:`X(k) = \sum_r x(r) \exp(-2 \pi i\, k \cdot (r - c) / n)`, :math:`c = n // 2`, over the
    last ``ndim`` (2 or 3) axes of ``x (..., [n,] n, n)``: complex ``(..., n, [n,] n // 2 + 1)`` in
    FFT order.

    >>> delta = torch.zeros(4, 4); delta[2, 2] = 1.0
    >>> bool((rfft_centered(delta, 2) == 1).all())
    True
    """
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=_axes(ndim)), dim=_axes(ndim))


def irfft_centered(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`rfft_centered`; ``shape`` is the real-space shape of the transformed axes.

    >>> x = torch.randn(5, 5, dtype=torch.float64)
    >>> torch.allclose(irfft_centered(rfft_centered(x, 2), (5, 5)), x)
    True
    """
    axes = _axes(len(shape))
    return torch.fft.fftshift(torch.fft.irfftn(spectrum, s=tuple(shape), dim=axes), dim=axes)


def fourier_resize(x: Tensor, size: int, ndim: int) -> Tensor:
    """Resample to ``size`` along the last ``ndim`` axes by cropping or zero-padding the spectrum.

    ``x`` is real, ``(..., n, n)`` or ``(..., n, n, n)``. A constant keeps its value, and the origin
    stays at ``size // 2``. At an even boundary the Nyquist planes are dropped, so the result stays
    real.

    Raises:
        ValueError: ``size`` below 2 or axes of different length.

    >>> round(fourier_resize(torch.ones(1, 8, 8), 5, 2).mean().item(), 5)
    1.0
    """
    n = x.shape[-1]
    if size < 2 or any(s != n for s in x.shape[-ndim:]):
        raise ValueError(
            f"cannot resize {tuple(x.shape)} to {size}: needs equal axes and size >= 2"
        )
    if size == n:
        return x
    spectrum = resize_spectrum(rfft_centered(x, ndim), size, ndim)
    return irfft_centered(spectrum, [size] * ndim) * (size / n) ** ndim


def resize_spectrum(spectrum: Tensor, size: int, ndim: int) -> Tensor:
    """Crop or zero-pad Hermitian halves ``(..., [n,] n, n // 2 + 1)`` to those of a box ``size``.

    >>> resize_spectrum(torch.ones(4, 3), 3, 2).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    n, device = spectrum.shape[-2], spectrum.device
    half = (min(n, size) - 1) // 2  # highest frequency strictly below the smaller Nyquist
    out = spectrum.new_zeros((*spectrum.shape[:-ndim], *([size] * (ndim - 1)), size // 2 + 1))
    source = torch.cat([torch.arange(half + 1), torch.arange(n - half, n)]).to(device)
    target = torch.cat([torch.arange(half + 1), torch.arange(size - half, size)]).to(device)
    columns = torch.arange(half + 1, device=device)
    if ndim == 2:
        out[..., target[:, None], columns] = spectrum[..., source[:, None], columns]
    else:
        out[..., target[:, None, None], target[:, None], columns] = spectrum[
            ..., source[:, None, None], source[:, None], columns
        ]
    return out


def resampling_kernel(n: int, size: int, ratio: float) -> Tensor:
    r"""Return the matrix ``(size, n)`` that evaluates a Fourier series on another grid, float64.

    Both grids are centred at index ``n // 2``; the new spacing is ``ratio`` times the old one:
    :math:`K_{ts} = n^{-1} \sum_f \cos(2 \pi f (x_t - x_s) / n)`, over the frequencies below both
    Nyquists. Rows that lie more than half a pixel outside the old field of view are zero.

    >>> resampling_kernel(9, 5, 1.3).sum(-1).std().item() < 1e-12
    True
    """
    highest = min((n - 1) // 2, math.ceil(n / (2 * ratio)) - 1)
    source = torch.arange(n, dtype=torch.float64) - n // 2
    target = (torch.arange(size, dtype=torch.float64) - size // 2) * ratio
    angle = 2 * math.pi * (target[:, None] - source) / n
    kernel = torch.ones_like(angle)
    for f in range(1, highest + 1):
        kernel += 2 * torch.cos(f * angle)
    return kernel / n * (target.abs() <= n / 2 + 0.5)[:, None]
