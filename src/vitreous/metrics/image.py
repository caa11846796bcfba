"""Scores that compare two images or volumes: correlation, PSNR, signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def _common_axes(a: Tensor, b: Tensor, ndim: int) -> tuple[int, ...]:
    if a.shape[-ndim:] != b.shape[-ndim:] or min(a.ndim, b.ndim) < ndim:
        raise ValueError(
            f"the last {ndim} axes must agree, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return tuple(range(-ndim, 0))


def correlation(a: Tensor, b: Tensor, ndim: int) -> Tensor:
    """Return the Pearson correlation over the last ``ndim`` axes, 2 or 3; 0 if either is constant.

    Raises:
        ValueError: trailing axes differ.

    >>> v = torch.randn(3, 8, 8)
    >>> correlation(v, 1 - 2 * v, 2).round(decimals=5).tolist()
    [-1.0, -1.0, -1.0]
    """
    axes = _common_axes(a, b, ndim)
    a = a - a.mean(axes, keepdim=True)
    b = b - b.mean(axes, keepdim=True)
    power = (a.square().sum(axes) * b.square().sum(axes)).sqrt()
    cross = (a * b).sum(axes)
    return torch.where(power > 0, cross / power.clamp(min=torch.finfo(a.dtype).tiny), 0 * cross)


def psnr(image: Tensor, reference: Tensor, ndim: int) -> Tensor:
    r"""Return the peak signal-to-noise ratio, :math:`10 \log_{10}(\mathrm{range}^2/\mathrm{MSE})`.

    In dB. The range of the reference (maximum minus minimum) is the peak. Means are over the last
    ``ndim`` (2 or 3) axes; infinity for equal arrays.

    Raises:
        ValueError: trailing axes differ.

    >>> reference = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> round(psnr(reference + 0.1, reference, 2).item(), 4)
    20.0
    """
    axes = _common_axes(image, reference, ndim)
    peak = reference.amax(axes) - reference.amin(axes)
    return 10 * torch.log10(peak.square() / (image - reference).square().mean(axes))


def snr_db(clean: Tensor, noisy: Tensor, ndim: int) -> Tensor:
    r"""Return the signal-to-noise ratio of a data set ``(..., n, n[, n])`` in dB, one number.

    :math:`10 \log_{10} (\overline{\mathrm{var}(s)} / \overline{\mathrm{var}(y - s)})`, variances
    over whole images (the last ``ndim`` axes), averaged over the leading axes.

    Raises:
        ValueError: trailing axes differ.

    >>> g = torch.Generator().manual_seed(0)
    >>> clean = torch.randn(50, 32, 32, generator=g)
    >>> noise = torch.randn(50, 32, 32, generator=g)
    >>> round(snr_db(clean, clean + 10 * noise, 2).item())
    -20
    """
    axes = _common_axes(clean, noisy, ndim)
    signal = clean.var(axes, correction=0).mean()
    noise = (noisy - clean).var(axes, correction=0).mean()
    return 10 * torch.log10(signal / noise)
