"""Root mean squares and weights of the Fourier shells of volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.core.grid import frequency_grid
from vitreous.maps.fsc import shell_sums


def shell_radius(n: int, *, device: torch.device | None = None) -> Tensor:
    """Return the radius in cycles per box of each Hermitian-half entry, float64.

    >>> shell_radius(4)[0, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    kx, ky = frequency_grid(n, 1.0 / n, device=device, dtype=torch.float64)
    return (kx**2 + ky**2 + ky[:, :, None] ** 2).sqrt()


def shell_rms(volume: Tensor) -> Tensor:
    """Return the root mean square of each shell of a spectrum, float64 ``(..., n // 2 + 1)``.

    >>> delta = torch.zeros(6, 6, 6); delta[3, 3, 3] = 2.0
    >>> shell_rms(delta).round(decimals=9).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    shape = tuple(volume.shape[-3:])
    power = rfft_centered(volume.double(), 3).abs().square()
    count = shell_sums(torch.ones_like(power[(0,) * (power.ndim - 3)]), shape)
    return (shell_sums(power, shape) / count).sqrt()


def weight_shells(volume: Tensor, weight: Tensor) -> Tensor:
    """Multiply a volume's spectrum by a function of frequency, interpolated between shells.

    ``weight`` is ``(n // 2 + 1,)``; its last value holds beyond the last shell.

    Raises:
        ValueError: a weight of another length.

    >>> v = torch.randn(8, 8, 8)
    >>> torch.allclose(weight_shells(v, torch.ones(5)), v, atol=1e-5)
    True
    """
    n = int(volume.shape[-1])
    if weight.shape != (n // 2 + 1,):
        raise ValueError(f"weight must be {(n // 2 + 1,)}, got {tuple(weight.shape)}")
    radius = shell_radius(n, device=volume.device)
    low = radius.floor().long().clamp(max=n // 2)
    high = (low + 1).clamp(max=n // 2)
    values = weight.double().to(volume.device)
    filter_ = torch.lerp(values[low], values[high], (radius - low).clamp(0, 1))
    spectrum = rfft_centered(volume.double(), 3) * filter_
    return irfft_centered(spectrum, (n, n, n)).to(volume.dtype)
