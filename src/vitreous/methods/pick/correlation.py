r"""Local normalised cross-correlation of a micrograph with templates, and its peaks.

.. math::

    c(x) = \frac{\sum_m w\, t(m)\, I(x + m)}{\sigma_t\, \sigma_I(x)}, \qquad
    \sigma_I^2(x) = \sum_m w\, I^2(x + m) - \Big(\sum_m w\, I(x + m)\Big)^2

over the disc of the mask, with weights w of sum 1 and a template of mean 0: local mean and
deviation of the micrograph I under the mask do not matter. All sums are Fourier products.

Source: A. M. Roseman, Ultramicroscopy 94 (2003) 225-236.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor

from vitreous.core.grid import radius_grid

_BAD_MEAN, _BAD_DEVIATION = 8.0, 5.0  # robust deviations beyond which a region is no ice
_LEAST_DEVIATION = 0.2  # of the median: padding and masked areas
_SURROUNDINGS = 9  # half radii across the median filter of the local mean


@dataclass(frozen=True)
class ScoreMap:
    """Best score at every pixel ``(ny, nx)``, with the number of the template that reaches it.

    ``mean`` and ``deviation`` are those of the micrograph under the mask.
    """

    score: Tensor
    template: Tensor
    mean: Tensor
    deviation: Tensor


def local_correlation(image: Tensor, templates: Iterable[Tensor], radius_px: float) -> ScoreMap:
    """Correlate an image ``(ny, nx)`` with templates ``(n, n)`` under a disc about their centre.

    The image is continued by reflection. Its edges must be longer than n / 2.

    >>> image = torch.zeros(32, 32); image[20, 9] = 1.0
    >>> spot = torch.zeros(9, 9); spot[4, 4] = 1.0
    >>> divmod(int(local_correlation(image, [spot], 4.0).score.argmax()), 32)
    (20, 9)
    """
    templates = list(templates)
    n = templates[0].shape[-1]
    before, after = n // 2, (n - 1) // 2
    x = torch.nn.functional.pad(image[None].double(), (before, after, before, after), "reflect")[0]
    shape = [fft.next_fast_len(edge, real=True) for edge in x.shape]
    mask = (radius_grid(n, 2) <= radius_px).double()
    mask = mask / mask.sum()
    spectrum = torch.fft.rfft2(x, s=shape)

    def correlate(spectrum: Tensor, kernel: Tensor) -> Tensor:
        product = spectrum * torch.fft.rfft2(kernel, s=shape).conj()
        return torch.fft.irfft2(product, s=shape)[: image.shape[0], : image.shape[1]]

    mean = correlate(spectrum, mask)
    square = correlate(torch.fft.rfft2(x**2, s=shape), mask)
    deviation = (square - mean**2).clamp_min(1e-12 * float(square.abs().max())).sqrt()
    best, which = torch.full_like(mean, -torch.inf), torch.zeros(mean.shape, dtype=torch.long)
    for number, template in enumerate(templates):
        centred = template.double() - (template.double() * mask).sum()
        norm = (centred**2 * mask).sum().sqrt()
        score = correlate(spectrum, centred * mask / norm) / deviation
        better = score > best
        best, which = torch.where(better, score, best), torch.where(better, number, which)
    return ScoreMap(best, which, mean, deviation)


def bad_regions(scores: ScoreMap, radius_px: float) -> Tensor:
    """Return the mask ``(ny, nx)`` of pixels whose surroundings are no ice with particles.

    These are outliers of the local mean, less its median over 4.5 radii, or of the logarithm of the
    local deviation: ice crystals, carbon edges, padding. Both are measured in robust deviations of
    the micrograph, so at most a third of it may be bad.
    """
    step = max(1, round(radius_px / 2))
    mean = scores.mean.numpy()
    coarse = ndimage.median_filter(mean[::step, ::step], size=_SURROUNDINGS, mode="reflect")
    rows, columns = (np.arange(edge) / step for edge in mean.shape)
    at = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    level = ndimage.map_coordinates(coarse, at, order=1, mode="nearest")
    deviation = scores.deviation.numpy()
    spread = _robust(np.log(deviation))
    dead = deviation < _LEAST_DEVIATION * np.median(deviation)
    bad = (np.abs(_robust(mean - level)) > _BAD_MEAN) | (spread > _BAD_DEVIATION) | dead
    return torch.from_numpy(bad)


def _robust(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values less their median, over their deviation by the middle 68 %."""
    low, middle, high = np.percentile(values, (16, 50, 84))
    return np.asarray((values - middle) / max((high - low) / 2, 1e-12))


def find_peaks(score: Tensor, distance_px: float) -> tuple[Tensor, Tensor]:
    """Return the positive local maxima ``(k, 2)`` (x, y) of a map ``(ny, nx)``, the highest first.

    Of two maxima nearer than ``distance_px`` the lower is dropped. Positions are refined by
    parabolas through the neighbouring pixels. Also returns the pixel of each, long ``(k,)``, an
    index into the flat map.

    >>> score = torch.zeros(9, 9); score[4, 2] = 0.5; score[4, 4] = 0.9; score[0, 8] = 0.3
    >>> find_peaks(score, 3.0)[0].tolist()
    [[4.0, 4.0], [8.0, 0.0]]
    """
    highest = torch.nn.functional.max_pool2d(score[None], 3, 1, 1)[0]
    y, x = torch.nonzero((score == highest) & (score > 0), as_tuple=True)
    order = score[y, x].argsort(descending=True, stable=True)
    y, x = y[order], x[order]
    reach = int(distance_px)
    disc = (radius_grid(2 * reach + 1, 2) <= distance_px).numpy()
    dropped = np.zeros([edge + 2 * reach for edge in score.shape], dtype=bool)
    kept = []
    for number, (row, column) in enumerate(zip(y.tolist(), x.tolist(), strict=True)):
        if not dropped[row + reach, column + reach]:
            kept.append(number)
            dropped[row : row + 2 * reach + 1, column : column + 2 * reach + 1] |= disc
    y, x = y[kept], x[kept]
    finite = torch.nan_to_num(score, neginf=0.0)
    padded = torch.nn.functional.pad(finite[None], (1, 1, 1, 1), "reflect")[0]

    def offset(before: Tensor, at: Tensor, after: Tensor) -> Tensor:
        curvature = 2 * at - before - after
        return torch.where(curvature > 0, (after - before) / (2 * curvature), 0).clamp(-0.5, 0.5)

    at = padded[y + 1, x + 1]
    shift_x = offset(padded[y + 1, x], at, padded[y + 1, x + 2])
    shift_y = offset(padded[y, x + 1], at, padded[y + 2, x + 1])
    return torch.stack([x + shift_x, y + shift_y], -1), y * score.shape[1] + x
