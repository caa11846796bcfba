r"""Local resolution of a map from its half maps.

Frequencies are divided into overlapping bands, whose filters (raised cosines of log k) sum to one.
The correlation of the half maps in a band, within a soft ball around each voxel, is the voxel's
FSC at the band's frequency. The ball is 5 periods of the band wide: as small as the statistics
allow at every frequency. A band is worked on in a grid of its own, of 2.5 points per period of its
highest frequency: products of two maps of the band alias onto none of the frequencies that the
window passes. The coarse bands, which are most, then cost next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from vitreous.core.fourier import resize_spectrum
from vitreous.core.grid import radius_grid
from vitreous.maps.fsc import CUTOFF
from vitreous.maps.shell_filter import shell_radius

DEVIATIONS = 3.0
_PERIODS = 5.0  # of a band across its window
_RATIO = 1.15  # between the frequencies of neighbouring bands
_FIRST_SHELL = 3.5  # chance alone correlates more below
_WIDEST = 0.8  # of the box
_SAMPLES = 2.5  # of a band's grid per period of its highest frequency (2 would hold the band)
_SMALLEST_GRID = 24


@dataclass(frozen=True)
class ShellBand:
    """Band of frequencies, and the window of its local correlation.

    ``shell`` is its centre in cycles per box, ``below`` and ``above`` the centres of its
    neighbours, where its filter is zero, ``window_px`` the diameter of the window.
    """

    shell: float
    below: float
    above: float
    window_px: float

    def filter(self, radius: Tensor) -> Tensor:
        """Return the filter at radii in cycles per box; the filters of all bands sum to one."""
        low = (radius.clamp(min=1e-6) / self.below).log() / math.log(self.shell / self.below)
        high = (self.above / radius.clamp(min=1e-6)).log() / math.log(self.above / self.shell)
        return 0.5 - 0.5 * torch.cos(math.pi * torch.minimum(low, high).clamp(0, 1))


def bands(box_size: int) -> list[ShellBand]:
    """Return the bands of a box up to Nyquist; neighbours are one shell apart, or 15 % where more.

    >>> [round(band.shell, 1) for band in bands(16)]
    [3.5, 4.5, 5.5, 6.5, 7.5]
    """
    centres = [_FIRST_SHELL - 1, _FIRST_SHELL]
    while centres[-1] < box_size / 2:
        centres.append(max(centres[-1] + 1, centres[-1] * _RATIO))
    widest = _WIDEST * box_size
    return [
        ShellBand(shell, below, above, min(widest, _PERIODS * box_size / shell))
        for below, shell, above in zip(centres, centres[1:], centres[2:], strict=False)
    ]


def chance(band_filter: Tensor, window: Tensor) -> float:
    r"""Return the standard deviation of a local correlation of independent noise.

    For white noise, :math:`\sigma^2 = \sum_d (w \star w)(d)\, \rho(d)^2 / (\sum w)^2`, with w the
    window, given by its spectrum, and :math:`\rho` the noise's autocorrelation after the band's
    filter. Both are Hermitian halves ``(n, n, n // 2 + 1)``.
    """
    n = band_filter.shape[0]
    size, axes = (n, n, n), (0, 1, 2)
    correlation = torch.fft.irfftn(band_filter.square().to(window), s=size, dim=axes)
    correlation = correlation / correlation[0, 0, 0]
    overlap = torch.fft.irfftn(window.abs().square().to(window), s=size, dim=axes)
    total = float(window[0, 0, 0].real)
    return math.sqrt(float((overlap.double() * correlation.double().square()).sum())) / total


def local_correlations(half1: Tensor, half2: Tensor) -> Iterator[tuple[ShellBand, Tensor, float]]:
    r"""Yield the local correlation of two maps around points of a grid, band by band.

    :math:`\rho(r) = (w * a b) / \sqrt{(w * a^2)(w * b^2)}`, a and b the maps in the band, w its
    window, in a periodic box: the band, its correlations ``(m, m, m)``, and their standard
    deviation by chance. The grid, of ``m <= n`` points along the box, is the band's own; both grids
    begin at the same corner.

    Raises:
        ValueError: not cubic, or different boxes.
    """
    n = int(half1.shape[-1])
    if tuple(half1.shape) != (n, n, n) or half2.shape != half1.shape:
        raise ValueError(f"half maps must be two cubes, got {half1.shape} and {half2.shape}")
    axes = (0, 1, 2)
    spectra = [torch.fft.rfftn(half.float(), dim=axes) for half in (half1, half2)]
    for band in bands(n):
        least = max(_SMALLEST_GRID, math.ceil(_SAMPLES * band.above))
        m = min(n, next_fast_len(least, real=True))
        band_filter = band.filter(shell_radius(m, device=half1.device).float())
        window = _window(m, band.window_px * m / n, half1.device)
        own = spectra if m == n else [resize_spectrum(one, m, 3) for one in spectra]
        a, b = (torch.fft.irfftn(one * band_filter, s=(m, m, m), dim=axes) for one in own)
        cross, power_a, power_b = (_smooth(x, window) for x in (a * b, a * a, b * b))
        power = (power_a.clamp(min=0) * power_b.clamp(min=0)).sqrt()
        floor = 1e-6 * float(power.max()) + 1e-30  # below it, as outside a support, 0
        correlation = torch.where(power > floor, cross / power.clamp(min=floor), 0)
        yield band, correlation, chance(band_filter, window)


def local_resolution(
    half1: Tensor, half2: Tensor, mask: Tensor | None, pixel_size_angstrom: float
) -> Tensor:
    """Return the resolution in Å around every voxel, at which its local FSC falls below 0.143.

    The threshold is 0.143, or three standard deviations of noise where that is more: a window of 5
    periods holds few independent coefficients, and noise alone would often exceed 0.143. The
    crossing is interpolated in frequency between bands. Resolutions are smooth on a scale of about
    5 times their value, the width of a window. They go from twice the pixel size (Nyquist) to that
    of the coarsest band, box / 3.5, also where nothing correlates; outside the mask they are 0.

    Raises:
        ValueError: boxes differ.

    Source: the FSC in a moving window: Cardone, Heymann & Steven, J. Struct. Biol. 184 (2013) 226.

    >>> v = torch.randn(16, 16, 16)
    >>> local_resolution(v, v, None, 2.0).unique().tolist()
    [4.0]
    """
    n = int(half1.shape[-1])
    if mask is not None and mask.shape != half1.shape:
        raise ValueError(f"mask is {tuple(mask.shape)} but the maps are {tuple(half1.shape)}")
    last = torch.full_like(half1, bands(n)[0].shell, dtype=torch.float32)
    resolved = torch.ones_like(half1, dtype=torch.bool) if mask is None else mask > 0
    previous_excess = torch.zeros_like(last)
    previous = 0.0
    for band, correlation, deviation in local_correlations(half1, half2):
        excess = _on_finer_grid(correlation, n) - max(CUTOFF, DEVIATIONS * deviation)
        passed = excess >= 0
        if previous:
            ended = resolved & ~passed
            step = previous_excess / (previous_excess - excess).clamp(min=1e-6)
            last = torch.where(ended, previous + step * (band.shell - previous), last)
        resolved &= passed
        previous_excess, previous = excess, band.shell
        if not resolved.any():
            break
    shell = torch.where(resolved, n / 2, last)
    resolution = (n * pixel_size_angstrom / shell).clamp(min=2 * pixel_size_angstrom)
    return resolution if mask is None else torch.where(mask > 0, resolution, 0)


def local_low_pass(
    volume: Tensor, resolution_angstrom: Tensor, pixel_size_angstrom: float
) -> Tensor:
    """Low-pass filter a map at every voxel to its local resolution.

    Bands have full weight up to the local resolution (``(n, n, n)`` in Å from
    :func:`local_resolution`; 0 counts as its coarsest) and fade over one band beyond it.

    Raises:
        ValueError: boxes differ.

    >>> v = torch.randn(16, 16, 16)
    >>> same = local_low_pass(v, torch.full((16, 16, 16), 4.0), 2.0)
    >>> coarse = local_low_pass(v, torch.full((16, 16, 16), 12.0), 2.0)
    >>> bool(coarse.std() < 0.5 * same.std())
    True
    """
    n = int(volume.shape[-1])
    if resolution_angstrom.shape != volume.shape:
        raise ValueError(
            f"resolutions are {tuple(resolution_angstrom.shape)}, the map {tuple(volume.shape)}"
        )
    worst = float(resolution_angstrom.max())
    known = torch.where(resolution_angstrom > 0, resolution_angstrom, worst)
    limit = n * pixel_size_angstrom / known.clamp(min=1e-6)
    lowest, highest = float(limit.min()), float(limit.max())
    radius, every = shell_radius(n, device=volume.device).float(), bands(n)
    spectrum = torch.fft.rfftn(volume.float(), dim=(0, 1, 2))

    def filtered(weight: Tensor) -> Tensor:
        return torch.fft.irfftn(spectrum * weight, s=(n, n, n), dim=(0, 1, 2))

    whole = sum(band.shell <= lowest for band in every)  # these pass everywhere
    passed = _low_pass(every, whole, radius)
    out = filtered(passed)
    for count, band in enumerate(every[whole:], whole + 1):
        if band.below >= highest:
            break
        before, passed = passed, _low_pass(every, count, radius)
        weight = ((limit - band.below) / (band.shell - band.below)).clamp(0, 1)
        out = out + weight * filtered(passed - before)
    return out.to(volume.dtype)


def _low_pass(every: list[ShellBand], count: int, radius: Tensor) -> Tensor:
    """Return the filter that passes what lies below all bands, and the first ``count`` of them.

    The last band passes all frequencies beyond it too.
    """
    if count == len(every):
        return torch.ones_like(radius)
    if count == 0:
        first = every[0]
        return torch.where(radius < first.shell, 1 - first.filter(radius), 0)
    last = every[count - 1]
    return torch.where(radius < last.shell, 1, last.filter(radius))


def _on_finer_grid(x: Tensor, n: int) -> Tensor:
    """Interpolate periodic values ``(m, m, m)`` linearly at ``n`` points, from the same corner."""
    m = x.shape[0]
    if m == n:
        return x
    at = torch.arange(n, device=x.device) * (m / n)
    low = at.long()
    share = (at - low).to(x)
    for axis in range(3):
        below, above = (x.index_select(axis, index % m) for index in (low, low + 1))
        x = torch.lerp(below, above, share.view([n if d == axis else 1 for d in range(3)]))
    return x


def _window(n: int, diameter_px: float, device: torch.device) -> Tensor:
    """Return the spectrum of a raised-cosine ball centred on index 0."""
    distance = radius_grid(n, 3, device=device) / (diameter_px / 2)
    ball = 0.5 + 0.5 * torch.cos(math.pi * distance.clamp(max=1))
    return torch.fft.rfftn(torch.fft.ifftshift(ball), dim=(0, 1, 2))


def _smooth(x: Tensor, window: Tensor) -> Tensor:
    axes = (0, 1, 2)
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * window, s=x.shape, dim=axes)
