"""Fourier shell correlation (FSC), resolution, correction for masks, and solvent masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.core.grid import shell_index
from vitreous.core.resample import cubic_edge
from vitreous.core.resolution import AtNyquist

CUTOFF = 0.143
"""Threshold of the FSC between half maps."""


@dataclass(frozen=True)
class FscResult:
    """FSC curves over shells 0 to n // 2.

    Args:
        corrected: masked FSC corrected for the correlation of the mask itself.
        unmasked, masked: FSC of the maps without and with the mask.
        randomised: FSC within the mask after randomising phases from ``randomised_from`` on.
        randomised_from: first shell with random phases; n // 2 + 1 when there is none.
    """

    corrected: Tensor
    unmasked: Tensor
    masked: Tensor
    randomised: Tensor
    randomised_from: int


def hermitian_weight(n: int, *, device: torch.device | None = None) -> Tensor:
    """Return the number of entries of the full spectrum per column of the Hermitian half.

    >>> hermitian_weight(4).tolist(), hermitian_weight(5).tolist()
    ([1.0, 2.0, 1.0], [1.0, 2.0, 2.0])
    """
    weight = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[-1] = 1.0
    return weight


def _shells(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the shell of each Hermitian-half entry, in rounded cycles per longest edge."""
    n = max(shape)
    if len(set(shape)) == 1:
        return shell_index(n, 3, device=device)
    z, y = (torch.fft.fftfreq(edge, 1.0 / n, device=device) for edge in shape[:2])
    x = torch.fft.rfftfreq(shape[2], 1.0 / n, device=device)
    return (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt().round().long()


def shell_sums(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum real Hermitian-half values ``(..., z, y, x//2+1)`` over shells 0 to longest // 2."""
    last = max(shape) // 2
    shell = _shells(shape, values.device).flatten()
    weight = hermitian_weight(shape[-1], device=values.device)
    weighted = (values.double() * weight).flatten(-3)
    keep = shell <= last
    sums = values.new_zeros((*values.shape[:-3], last + 1), dtype=torch.float64)
    return sums.index_add_(-1, shell[keep], weighted[..., keep])


def fsc(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the Fourier shell correlation of two volumes.

    :math:`\mathrm{FSC}(s) = \mathrm{Re} \sum_{k \in s} A(k) B^*(k) /
    \sqrt{\sum |A|^2 \sum |B|^2}` over the full spectrum's entries whose rounded radius is s.

    Of volumes with one support, as half maps have, the means over it (:func:`without_mean`) are
    taken off first: a pedestal that both have in common is no agreement.

    Args:
        a, b: real ``(..., z, y, x)`` on the same device, broadcast against each other. Shells are
            balls of frequency, in cycles per n voxels, n the longest edge.

    Returns:
        float64 ``(..., n // 2 + 1)``; 0 where a volume's shell is empty. Shell 0 holds nothing but
        means and repeats shell 1.

    Raises:
        ValueError: different boxes.

    Source: Harauz & van Heel, Optik 73 (1986) 146, equation (2).

    >>> v = torch.randn(6, 6, 6)
    >>> fsc(v, -2 * v).round(decimals=9).tolist()
    [-1.0, -1.0, -1.0, -1.0]
    >>> fsc(torch.ones(2, 4, 6), torch.ones(2, 4, 6)).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    return _correlation(*without_common_mean(a.double(), b.double()))


def without_common_mean(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs of volumes less their means (:func:`without_mean`) where supports are the same.

    Elsewhere, as between a map and a model, they would get edges that are not theirs.

    Raises:
        ValueError: different boxes.

    >>> a, b = torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([[[5.0, 1.0, 3.0]]])
    >>> without_common_mean(a, b)[0].tolist()
    [[[0.0, 1.0, 3.0]]]
    """
    shape = tuple(a.shape[-3:])
    if len(shape) != 3 or tuple(b.shape[-3:]) != shape:
        raise ValueError(
            f"boxes differ: {shape} and {tuple(b.shape[-3:])}; resample one of the maps first"
        )
    same = ((a != 0) == (b != 0)).all(-1, True).all(-2, True).all(-3, True)
    return torch.where(same, without_mean(a), a), torch.where(same, without_mean(b), b)


def without_mean(volume: Tensor) -> Tensor:
    """Return volumes ``(..., z, y, x)`` less the mean of their voxels that are not exactly zero.

    >>> without_mean(torch.tensor([[[0.0, 1.0, 3.0]]])).tolist()
    [[[0.0, -1.0, 1.0]]]
    """
    support, axes = volume != 0, (-3, -2, -1)
    mean = volume.sum(axes, keepdim=True) / support.sum(axes, keepdim=True).clamp(min=1)
    return torch.where(support, volume - mean, 0.0)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the FSC of volumes as they are; shell 0, which holds means, repeats shell 1."""
    shape = tuple(a.shape[-3:])
    a, b = rfft_centered(a.double(), 3), rfft_centered(b.double(), 3)
    cross = shell_sums((a * b.conj()).real, shape)
    power = (shell_sums(a.abs().square(), shape) * shell_sums(b.abs().square(), shape)).sqrt()
    # shells that hold only rounding errors count as empty
    empty = power <= power.amax(-1, keepdim=True) * 1e-26
    curve = torch.where(empty, torch.zeros_like(cross), cross / power.clamp(min=1e-300))
    curve[..., :1] = curve[..., 1:2]
    return curve


def fsc_resolution(
    curve: Tensor, threshold: float, box_size: int, pixel_size_angstrom: float
) -> float:
    """Return the resolution in Å at which an FSC curve first falls below a threshold.

    The crossing is interpolated linearly in frequency. Shell 0 (the mean) is ignored.

    Args:
        curve: ``(n // 2 + 1,)`` from :func:`fsc`.
        threshold: 0.143 between half maps, 0.5 against a known map.
        box_size: n in pixels, the longest edge.
        pixel_size_angstrom: pixel size in Å.

    Returns:
        Å; an :class:`~vitreous.core.resolution.AtNyquist`, twice the pixel size, if the curve
        never falls below the threshold; infinity if it is below at the first shell.

    Raises:
        ValueError: curve of another length than ``n // 2 + 1``.

    >>> round(fsc_resolution(torch.tensor([1.0, 1.0, 0.6, 0.4, 0.0]), 0.5, 8, 1.0), 4)
    3.2
    """
    if curve.shape != (box_size // 2 + 1,):
        raise ValueError(f"curve must be {(box_size // 2 + 1,)}, got {tuple(curve.shape)}")
    values = [float(v) for v in curve.double()]
    for shell in range(1, len(values)):
        if not values[shell] >= threshold:  # NaN counts as below
            if shell == 1:
                return float("inf")
            above, below = values[shell - 1], values[shell]
            step = (above - threshold) / (above - below) if not math.isnan(below) else 0.0
            return box_size * pixel_size_angstrom / (shell - 1 + step)
    return AtNyquist(2.0 * pixel_size_angstrom)


def randomise_phases(volume: Tensor, first_shell: int, generator: torch.Generator) -> Tensor:
    """Replace the phases of shells from ``first_shell`` on by uniform random ones.

    The phases are those of white noise drawn in real space, on the generator's device, so that the
    real volume ``(..., n, n, n)`` stays real.

    Raises:
        ValueError: volume not cubic.

    >>> v = torch.randn(6, 6, 6)
    >>> torch.allclose(randomise_phases(v, 9, torch.Generator()), v, atol=1e-6)
    True
    """
    n = cubic_edge(volume, "volume")
    noise = torch.randn(
        volume.shape, generator=generator, dtype=torch.float64, device=generator.device
    )
    random = rfft_centered(noise.to(volume.device), 3)
    spectrum = rfft_centered(volume.double(), 3)
    changed = spectrum.abs() * random / random.abs().clamp(min=1e-30)
    far = shell_index(n, 3, device=volume.device) >= first_shell
    return irfft_centered(torch.where(far, changed, spectrum), (n, n, n)).to(volume.dtype)


def fsc_true(half1: Tensor, half2: Tensor, mask: Tensor, generator: torch.Generator) -> FscResult:
    r"""Return the FSC of two half maps within a mask, corrected for the correlation of the mask.

    :math:`\mathrm{FSC}_{true} = (\mathrm{FSC}_t - \mathrm{FSC}_n) / (1 - \mathrm{FSC}_n)`, t of the
    masked maps, n of the maps masked after randomising phases from the shell on at which the
    unmasked FSC first falls below 0.8. Up to two shells beyond it, where the mask (0 to 1, see
    :func:`solvent_mask`) mixes random with true phases, the masked FSC is kept.

    Raises:
        ValueError: not cubic, or different boxes.

    Source: Chen et al., Ultramicroscopy 135 (2013) 24, equation (4).

    >>> v = torch.randn(8, 8, 8)
    >>> fsc_true(v, v, torch.ones(8, 8, 8), torch.Generator()).corrected.round().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    n = cubic_edge(half1, "half1")
    if mask.shape[-3:] != half1.shape[-3:]:
        raise ValueError(f"mask is {tuple(mask.shape)} but the maps are {tuple(half1.shape)}")
    half1, half2 = without_common_mean(half1.double(), half2.double())
    unmasked = _correlation(half1, half2)
    masked = _correlation(half1 * mask, half2 * mask)
    below = (unmasked[1:] < 0.8).nonzero()
    first = int(below[0]) + 1 if len(below) else n // 2 + 1
    if first > n // 2:
        return FscResult(masked.clone(), unmasked, masked, torch.zeros_like(masked), first)
    random1 = randomise_phases(half1, first, generator)
    random2 = randomise_phases(half2, first, generator)
    randomised = _correlation(random1 * mask, random2 * mask)
    corrected = masked.clone()
    beyond = slice(first + 2, None)
    noise = randomised[beyond].clamp(max=0.999)
    corrected[beyond] = (masked[beyond] - noise) / (1 - noise)
    return FscResult(corrected, unmasked, masked, randomised, first)


_SMOOTH = 3  # shells averaged to either side
_SIGNIFICANT = 3.0  # standard deviations of a correlation by chance
_PLAIN = 0.25  # sufficient correlation in small shells


def fsc_confirmed(halves: tuple[Tensor, Tensor], independent: tuple[Tensor, Tensor]) -> Tensor:
    r"""Return the FSC of half maps that share a prior, corrected by half maps without it.

    A prior (or positivity, or a mask) makes half maps alike, so that the FSC between them is too
    high. The correlation of a half map with a map of the *other* half made without prior
    (``independent``, such as by direct reconstruction) is not affected. With p and d the maps with
    and without prior, and C the correlation of p with the truth,

    .. math::

        \mathrm{FSC}(p_1, d_2) = C\, r, \quad \mathrm{FSC}(d_1, d_2) = r^2, \qquad
        \mathrm{FSC}_{conf} = C^2 = \mathrm{FSC}(p, d)^2 / \mathrm{FSC}(d_1, d_2),

    which is the FSC of two independent half maps of p's quality. Both are averaged over three
    shells to either side. The result is 0 from the first shell on where :math:`\mathrm{FSC}(d_1,
    d_2)` is less than three deviations of chance, or 0.25 if that is less; it is never above
    :math:`\mathrm{FSC}(p_1, p_2)`.

    >>> a, b = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> fsc_confirmed((a, a), (a, a)).min().item() > 0.999
    True
    >>> fsc_confirmed((a, a), (a, b))[1:].max().item() < 0.1
    True
    """
    (p1, p2), (d1, d2) = halves, independent
    n = cubic_edge(p1, "half1")
    crossed = _running_mean((fsc(p1, d2) + fsc(p2, d1)) / 2)
    free = _running_mean(fsc(d1, d2))
    counts = torch.bincount(shell_index(n, 3).flatten())[: n // 2 + 1].to(free)
    chance = _running_mean(1 / counts, of_means=True).sqrt()
    confirmed = crossed.clamp_min(0).square() / free.clamp_min(1e-6)
    significant = free > (_SIGNIFICANT * chance).clamp(max=_PLAIN)
    significant[0] = True
    return torch.minimum(confirmed, fsc(p1, p2)).clamp(0, 1) * significant.long().cumprod(0)


def _running_mean(curve: Tensor, *, of_means: bool = False) -> Tensor:
    """Average shells around each but the zeroth; ``of_means``: variances of these means."""
    smooth = curve.clone()
    last = len(curve) - 1
    for k in range(1, len(curve)):
        width = min(_SMOOTH, k - 1, last - k)
        around = curve[k - width : k + width + 1]
        smooth[k] = around.mean() / (len(around) if of_means else 1)
    return smooth


def solvent_mask(
    volume: Tensor,
    *,
    lowpass_px: float = 2.0,
    threshold: float = 0.1,
    dilate_px: int = 2,
    edge_px: int = 4,
) -> Tensor:
    """Return a soft mask around the largest connected region of a map.

    The map is smoothed by a Gaussian and thresholded at a fraction of its maximum (99.9th
    percentile); holes are filled, the largest region is kept, dilated, and given a raised-cosine
    edge.

    Args:
        volume: ``(n, n, n)``, protein positive.
        lowpass_px: sigma of the smoothing, pixels.
        threshold: fraction of the maximum.
        dilate_px, edge_px: dilation of the region and width of the edge, pixels.

    Returns:
        ``(n, n, n)`` from 0 to 1, dtype and device of the volume; all ones for a map without
        positive density.

    Raises:
        ValueError: volume not ``(n, n, n)``.

    >>> v = torch.zeros(16, 16, 16); v[6:10, 6:10, 6:10] = 1.0
    >>> m = solvent_mask(v, lowpass_px=0.5, dilate_px=1, edge_px=2)
    >>> m[8, 8, 8].item(), m[0, 0, 0].item()
    (1.0, 0.0)
    """
    if volume.ndim != 3:
        raise ValueError(f"volume must be (n, n, n), got {tuple(volume.shape)}")
    cubic_edge(volume, "volume")
    smooth = ndimage.gaussian_filter(volume.detach().cpu().double().numpy(), lowpass_px)
    top = float(np.quantile(smooth, 0.999))
    if not top > 0:
        return torch.ones_like(volume)
    labels, count = ndimage.label(ndimage.binary_fill_holes(smooth >= threshold * top))
    if count > 1:
        labels = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    distance = ndimage.distance_transform_edt(labels == 0)
    edge = np.clip((distance - dilate_px) / max(edge_px, 1e-6), 0, 1)
    soft = 0.5 + 0.5 * np.cos(np.pi * edge)
    return torch.from_numpy(soft).to(volume)
