"""Real-space and frequency grids, masks and Fourier shells."""

from __future__ import annotations

import torch
from torch import Tensor


def frequency_grid(
    n: int,
    pixel_size_angstrom: float = 1.0,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return ``kx (1, n // 2 + 1)`` and ``ky (n, 1)`` of an image's Hermitian half, in 1/Å.

    >>> kx, ky = frequency_grid(4, 2.0)
    >>> kx.tolist(), ky.flatten().tolist()
    ([[0.0, 0.125, 0.25]], [0.0, 0.125, -0.25, -0.125])
    """
    kx = torch.fft.rfftfreq(n, pixel_size_angstrom, device=device, dtype=dtype)
    ky = torch.fft.fftfreq(n, pixel_size_angstrom, device=device, dtype=dtype)
    return kx[None, :], ky[:, None]


def nyquist_disc(n: int, *, device: torch.device | None = None) -> Tensor:
    """Return 1 inside the Nyquist circle, 0 elsewhere: float32 ``(n, n // 2 + 1)``, FFT order.

    >>> nyquist_disc(4)[:, -1].tolist(), nyquist_disc(4).sum().item()
    ([0.0, 0.0, 0.0, 0.0], 6.0)
    """
    kx, ky = frequency_grid(n, device=device)
    return (kx**2 + ky**2 < 0.25).to(torch.float32)


def radius_grid(
    n: int, ndim: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the distance in pixels from the centre ``n // 2``, of shape ``(n,) * ndim``.

    >>> radius_grid(3, 2)[1].tolist()
    [1.0, 0.0, 1.0]
    """
    axis = torch.arange(n, device=device, dtype=dtype) - n // 2
    squared = torch.zeros((), device=device, dtype=dtype)
    for d in range(ndim):
        squared = squared + (axis**2).reshape([-1 if i == d else 1 for i in range(ndim)])
    return squared.sqrt()


def soft_mask(
    n: int,
    ndim: int,
    radius_px: float,
    edge_px: float = 3.0,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Return a disc or ball of the given radius with a raised-cosine edge outside it.

    >>> soft_mask(8, 2, 2.0, 2.0)[4, 4].item()
    1.0
    """
    distance = radius_grid(n, ndim, device=device)
    if edge_px <= 0:
        return (distance <= radius_px).float()
    t = ((distance - radius_px) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * t)


def squared_frequency(n: int, ndim: int, *, device: torch.device | None = None) -> Tensor:
    """Return the squared radius in cycles per box of each Hermitian-half entry, float32.

    >>> squared_frequency(4, 2)[1].tolist()
    [1.0, 2.0, 5.0]
    """
    full = torch.fft.fftfreq(n, 1.0 / n, device=device)
    squared = torch.fft.rfftfreq(n, 1.0 / n, device=device) ** 2
    for _ in range(ndim - 1):
        squared = squared + (full**2).reshape(-1, *([1] * squared.ndim))
    return squared


def shell_index(n: int, ndim: int, *, device: torch.device | None = None) -> Tensor:
    """Return the Fourier shell, rounded radius in cycles per box, of each Hermitian-half entry.

    >>> shell_index(4, 2)[0].tolist()
    [0, 1, 2]
    """
    return squared_frequency(n, ndim, device=device).sqrt().round().long()
