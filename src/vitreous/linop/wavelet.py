"""Orthonormal wavelet transform of volumes, on whatever device they are."""

from __future__ import annotations

import pywt
import torch
from torch import Tensor
from torch.nn import functional

from vitreous.linop.operator import LinearOperator

_AXES = (-3, -2, -1)


class Wavelet(LinearOperator):
    r"""Separable periodised wavelet transform W of volumes, :math:`W^T W = I`.

    Coefficients lie where the volume lay, the coarse ones at the low end of every axis, as
    ``pywt.coeffs_to_array(pywt.wavedecn(x, wavelet, "periodization", levels))`` has them. Axes that
    do not halve ``levels`` times are padded with zeros, which keeps :math:`W^T W = I`.

    Takes any batch in front of its domain.

    Args:
        shape: ``(z, y, x)`` of the volumes.
        wavelet: an orthogonal one by PyWavelets' name: haar, db2, sym4, coif1 ...
        levels: how often the coarse part is transformed again.

    Raises:
        ValueError: not three axes, no levels, or a wavelet that is unknown or not orthogonal.

    >>> w = Wavelet((4, 4, 4), "haar", 2)(torch.ones(4, 4, 4))
    >>> round(w[0, 0, 0].item(), 4), round(w.square().sum().item(), 4)
    (8.0, 64.0)
    """

    def __init__(self, shape: tuple[int, ...], wavelet: str = "db2", levels: int = 3) -> None:
        if len(shape) != 3:
            raise ValueError(f"volumes have axes (z, y, x), got the shape {tuple(shape)}")
        if levels < 1:
            raise ValueError(f"levels must be 1 or more, got {levels}")
        if wavelet not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(wavelet).orthogonal:
            raise ValueError(f"{wavelet} is no orthogonal wavelet; take haar, db2, sym4 or coif1")
        filters = pywt.Wavelet(wavelet)
        self.levels = levels
        self._taps = (tuple(filters.dec_lo), tuple(filters.dec_hi))
        block = 2**levels
        self.domain_shape = tuple(shape)
        self.range_shape = tuple(-(-n // block) * block for n in shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the coefficients of volumes."""
        growth = [m - n for m, n in zip(self.range_shape, self.domain_shape, strict=True)]
        w = functional.pad(x, [0, growth[2], 0, growth[1], 0, growth[0]])
        for level in range(self.levels):
            part = _corner(w, self._size(level))
            for dim in _AXES:
                part = _analyse(part, dim, self._taps)
            w = _with_corner(w, part)
        return w

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the volumes of coefficients."""
        for level in reversed(range(self.levels)):
            part = _corner(y, self._size(level))
            for dim in _AXES:
                part = _synthesise(part, dim, self._taps)
            y = _with_corner(y, part)
        return _corner(y, self.domain_shape).contiguous()

    def normal(self, x: Tensor) -> Tensor:
        """Return the identity."""
        return x.clone()

    def normal_spectrum(self, like: Tensor) -> Tensor:
        """Return the eigenvalues of the identity, to be broadcast; dtype and device of ``like``."""
        return like.new_ones(())

    def details(self, like: Tensor) -> Tensor:
        """Return 1 for detail coefficients and 0 for the coarsest averages, as ``like``.

        >>> int(Wavelet((8, 8, 8), "haar", 2).details(torch.zeros(1)).sum())
        504
        """
        mask = like.new_ones(self.range_shape)
        _corner(mask, self._size(self.levels)).zero_()
        return mask

    def _size(self, level: int) -> tuple[int, ...]:
        return tuple(n >> level for n in self.range_shape)


def _corner(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x[..., : size[0], : size[1], : size[2]]


def _with_corner(x: Tensor, part: Tensor) -> Tensor:
    if part.shape == x.shape:
        return part
    y = x.clone()
    _corner(y, tuple(part.shape[-3:])).copy_(part)
    return y


def _analyse(x: Tensor, dim: int, taps: tuple[tuple[float, ...], ...]) -> Tensor:
    r"""Return both halves: :math:`y_h[k] = \sum_m h[m]\, x[2 k + |h| / 2 - m]`, periodic."""
    phases = torch.unflatten(x, dim, (-1, 2)).unbind(dim)
    halves = []
    for taps_h in taps:
        total = torch.zeros_like(phases[0])
        for m, tap in enumerate(taps_h):
            lag, phase = divmod(len(taps_h) // 2 - m, 2)
            total = total + tap * torch.roll(phases[phase], -lag, dim)
        halves.append(total)
    return torch.cat(halves, dim)


def _synthesise(y: Tensor, dim: int, taps: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the adjoint of :func:`_analyse`, which is its inverse; ``dim`` is negative."""
    halves = y.chunk(2, dim)
    phases = [torch.zeros_like(halves[0]), torch.zeros_like(halves[0])]
    for half, taps_h in zip(halves, taps, strict=True):
        for m, tap in enumerate(taps_h):
            lag, phase = divmod(len(taps_h) // 2 - m, 2)
            phases[phase] = phases[phase] + tap * torch.roll(half, lag, dim)
    return torch.stack(phases, dim).flatten(dim - 1, dim)
