"""Sub-pixel shifts of images by phase ramps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitreous.linop.operator import FourierFilter


def _axis_phases(frequency_index: Tensor, n: int, shift_px: Tensor) -> Tensor:
    """Return exp(-2 pi i j t / n) for one axis, at the Nyquist index of even boxes its cosine."""
    turns = frequency_index * shift_px[..., None] / n
    angle = (-2 * math.pi) * (turns - turns.detach().round())
    sine = torch.where(2 * frequency_index.abs() == n, torch.zeros_like(angle), torch.sin(angle))
    return torch.complex(torch.cos(angle), sine)


def axis_phases(
    n: int, shift_angstrom: Tensor, pixel_size_angstrom: float
) -> tuple[Tensor, Tensor]:
    """Return the factors of :func:`shift_phases`, kx ``(..., n // 2 + 1)`` and ky ``(..., n)``.

    Raises:
        ValueError: shifts that do not end in 2.

    >>> x, y = axis_phases(4, torch.tensor([3.0, 0.0]), 3.0)
    >>> x.real.round().tolist(), y.real.tolist()
    ([1.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0])
    """
    if shift_angstrom.shape[-1:] != (2,):
        raise ValueError(f"shift_angstrom must be (..., 2), got {tuple(shift_angstrom.shape)}")
    shift_px = shift_angstrom.double() / pixel_size_angstrom
    device = shift_angstrom.device
    half = torch.arange(n // 2 + 1, device=device, dtype=torch.float64)
    full = torch.fft.fftfreq(n, 1.0 / n, device=device, dtype=torch.float64).round()
    complex_dtype = torch.promote_types(shift_angstrom.dtype, torch.complex64)
    x = _axis_phases(half, n, shift_px[..., 0]).to(complex_dtype)
    y = _axis_phases(full, n, shift_px[..., 1]).to(complex_dtype)
    return x, y


def shift_phases(n: int, shift_angstrom: Tensor, pixel_size_angstrom: float) -> Tensor:
    r"""Return the filter of the Hermitian half-spectrum that moves an image by +t.

    :math:`S(k) = e^{-2 \pi i (k_x t_x + k_y t_y)}`, complex ``(..., n, n // 2 + 1)`` in FFT order,
    for shifts ``(..., 2)`` (x, y) in Å, x along the last axis. In even boxes the factor of an axis
    at its Nyquist frequency is the mean over both signs, :math:`\cos(\pi t / p)`: images stay real,
    the conjugate is the exact adjoint, and shifts by whole pixels are circular rolls; sub-pixel
    shifts damp the Nyquist frequency.

    Raises:
        ValueError: shifts that do not end in 2.

    >>> shift_phases(4, torch.tensor([3.0, 0.0]), 3.0)[0].real.round().tolist()
    [1.0, 0.0, -1.0]
    """
    x, y = axis_phases(n, shift_angstrom, pixel_size_angstrom)
    return y[..., :, None] * x[..., None, :]


class Shift(FourierFilter):
    """Circular sub-pixel shift of each image by +t, as a linear operator.

    Args:
        shift_angstrom: ``(..., 2)`` displacement (x, y) in Å; the domain is ``(..., n, n)``.
        n: box size in pixels.
        pixel_size_angstrom: pixel size in Å.

    >>> image = torch.zeros(4, 4); image[2, 2] = 1.0
    >>> moved = Shift(torch.tensor([2.0, 0.0]), 4, 2.0)(image)
    >>> divmod(int(moved.argmax()), 4)
    (2, 3)
    """

    def __init__(self, shift_angstrom: Tensor, n: int, pixel_size_angstrom: float) -> None:
        super().__init__(shift_phases(n, shift_angstrom, pixel_size_angstrom), n)
