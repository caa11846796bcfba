"""Statistics of images: outliers, copies, normalisation and band limit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitreous.core.grid import shell_index
from vitreous.data.bad_images import DAMAGE, finite_and_constant
from vitreous.data.copies import joined_labels, split_labels
from vitreous.doctor.finding import Finding, Verdict

TIES = 0.0025  # fraction of pixels at an image's minimum or maximum, from which it is clipped
LEAST_TIES = 10
PEAK = 12.0  # deviations of one pixel from the image's mean
SPREAD_Z = 10.0  # robust deviations of an image's log-deviation
FEW = 0.002  # fraction of the images that may be outliers
OFFSET, GAIN = 0.1, 0.1  # spread over micrographs of means (in deviations) and of deviations
PEDESTAL = 0.3  # mean of the images, in deviations, that is an offset
EMPTY = 1e-3  # power of a shell over the median shell's, below which it is empty
LISTED = 10
_SMALL = 1e-12


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of each image, ``(b,)`` unless stated otherwise.

    Args:
        finite, constant: bool; whether all pixels are finite, and whether all are equal.
        mean, deviation: mean and standard deviation of the grey values.
        peak: largest distance of a pixel from the mean, in deviations.
        ties: number of pixels that share the image's minimum or its maximum, the larger one.
        digest: hash of the pixels.
        power: ``(n // 2 + 1,)``, mean power of usable images by shell, each image divided by its
            variance.
        box_size: edge n of the images in pixels.
    """

    finite: Tensor
    constant: Tensor
    mean: Tensor
    deviation: Tensor
    peak: Tensor
    ties: Tensor
    digest: tuple[bytes, ...]
    power: Tensor
    box_size: int

    def __len__(self) -> int:
        return len(self.finite)

    @property
    def usable(self) -> Tensor:
        """Mask of the images that are finite and not constant."""
        return self.finite & ~self.constant


class StatisticsOf:
    """Accumulator of statistics, batch by batch, of images of ``box_size`` pixels.

    >>> collect = StatisticsOf(8)
    >>> collect.add(torch.zeros(2, 8, 8))
    >>> collect.result().constant.tolist()
    [True, True]
    """

    def __init__(self, box_size: int) -> None:
        self._n = box_size
        self._shell = shell_index(box_size, 2).clamp(max=box_size // 2).flatten()
        self._parts: list[tuple[Tensor, ...]] = []
        self._digest: list[bytes] = []
        self._power = torch.zeros(box_size // 2 + 1, dtype=torch.float64)
        self._counted = 0

    def add(self, images: Tensor) -> None:
        """Add a batch ``(b, n, n)``."""
        pixels = images.flatten(1)
        finite, constant = finite_and_constant(images)
        clean = torch.where(finite[:, None], pixels, torch.zeros(()))
        low, high = clean.amin(1), clean.amax(1)
        top = float(clean.abs().amax())
        unit = 1.0 if _SMALL < top < 1 / _SMALL else max(top, 1e-37)  # squares stay in range
        deviation, mean = (value * unit for value in torch.std_mean(clean / unit, 1))
        scale = deviation.clamp_min(1e-37)
        peak = torch.maximum(high - mean, mean - low) / scale
        ties = torch.maximum((clean == low[:, None]).sum(1), (clean == high[:, None]).sum(1))
        self._parts.append((finite, constant, mean, deviation, peak, ties))
        self._digest += [hashlib.blake2b(row, digest_size=16).digest() for row in pixels.numpy()]
        good = (finite & ~constant).nonzero().flatten()
        if len(good):
            centred = images[good] - mean[good, None, None]
            power = torch.fft.rfft2(centred / scale[good, None, None]).abs().square().sum(0)
            self._power.index_add_(0, self._shell, power.flatten().double())
            self._counted += len(good)

    def result(self) -> ImageStatistics:
        """Return the statistics of all images so far."""
        finite, constant, mean, deviation, peak, ties = map(
            torch.cat, zip(*self._parts, strict=True)
        )
        entries = torch.bincount(self._shell, minlength=self._n // 2 + 1)
        power = self._power / entries / max(1, self._counted)
        digest = tuple(self._digest)
        return ImageStatistics(
            finite, constant, mean, deviation, peak, ties, digest, power.float(), self._n
        )


def robust_z(values: Tensor) -> Tensor:
    """Return the distance from the median in robust deviations (1.4826 median deviations).

    >>> robust_z(torch.tensor([0.0, 1.0, 2.0])).tolist()[1]
    0.0
    """
    distance = values - values.median()
    return distance / (1.4826 * distance.abs().median()).clamp_min(1e-9)


@dataclass(frozen=True)
class Suspects:
    """Indices of images with faults, by kind, in order."""

    non_finite: tuple[int, ...]
    constant: tuple[int, ...]
    clipped: tuple[int, ...]
    repeated: tuple[int, ...]
    outlying: tuple[int, ...]

    @property
    def unusable(self) -> tuple[int, ...]:
        """Images that a reconstruction must not use, second copies included."""
        return tuple(sorted({*self.non_finite, *self.constant, *self.repeated}))


def suspects(statistics: ImageStatistics, micrograph_id: Tensor) -> Suspects:
    """Return the images that are faulty, or unlike the others.

    Deviations are compared within a micrograph; ``micrograph_id`` is long ``(b,)``.
    """
    usable = statistics.usable
    clipped = usable & (statistics.ties >= max(LEAST_TIES, TIES * statistics.box_size**2))
    digests: set[bytes] = set()
    repeated = []
    for index, digest in enumerate(statistics.digest):
        if digest in digests and bool(usable[index]):
            repeated.append(index)
        digests.add(digest)
    outlying = usable & (statistics.peak > PEAK)
    rows = usable.nonzero().flatten()
    if len(rows) > 10:
        log_deviation = statistics.deviation[rows].log()
        distance = log_deviation - _group_medians(log_deviation, micrograph_id[rows])
        # the second condition spares well normalised images, whose deviations hardly differ
        strange = (robust_z(distance).abs() > SPREAD_Z) & (distance.abs() > 0.2)
        outlying[rows[strange]] = True

    def indices(mask: Tensor) -> tuple[int, ...]:
        return tuple(mask.nonzero().flatten().tolist())

    return Suspects(
        indices(~statistics.finite),
        indices(statistics.constant),
        indices(clipped),
        tuple(repeated),
        indices(outlying),
    )


def _group_medians(values: Tensor, group: Tensor) -> Tensor:
    """Return the median of each value's group, or of all values for groups of fewer than five."""
    median = torch.full_like(values, float(values.median()))
    order = group.argsort()
    for members in torch.split(order, torch.bincount(group).tolist()):
        if len(members) >= 5:
            median[members] = values[members].median()
    return median


def findings(
    statistics: ImageStatistics,
    suspects: Suspects,
    micrograph_id: Tensor,
    half_set: Tensor,
    ids: Sequence[str],
) -> list[Finding]:
    """Return the findings on single images and on the set.

    ``micrograph_id`` and ``half_set``, 0 where the table states none, are long ``(b,)``.
    """
    total = len(statistics)
    labels = joined_labels(statistics.digest)
    split = np.intersect1d(split_labels(half_set, labels), labels[list(suspects.repeated)])
    repeated = "are copies of others"
    if len(split):
        repeated += (
            f"; _rlnRandomSubset puts copies of {len(split)} images into both half sets, and the "
            "FSC takes them for agreement"
        )
    copies = "keep one of each with `vitreous select` and `unique`"
    clipped = ("are clipped at their extremes", "extract them again, unclipped", "saturated")
    kinds = (
        (suspects.non_finite, f"have {DAMAGE}", "leave them out", "non-finite"),
        (suspects.constant, "are constant", "leave them out", "constant"),
        (suspects.clipped, *clipped),
        (suspects.repeated, repeated, copies, "duplicates"),
    )
    results = [
        Finding("images", "wrong", f"{len(r)} of {total} images {claim}", _names(r, ids), *more)
        for r, claim, *more in kinds
        if r
    ]
    if suspects.outlying:
        count, names = len(suspects.outlying), _names(suspects.outlying, ids)
        many = count > max(1, FEW * total)
        claim = f"{count} of {total} images are far brighter or stronger than the others"
        remedy = "look at them; leave them out if they are ice or carbon"
        verdict: tuple[Verdict, str] = ("wrong", "outliers") if many else ("note", "")
        results.append(Finding("outliers", verdict[0], claim, names, remedy, verdict[1]))
    if not results:
        claim = f"all {total} are finite, different, unclipped and alike"
        results = [Finding("images", "ok", claim)]
    of_set = [_normalisation(statistics, micrograph_id), _band_limit(statistics)]
    return results + [finding for finding in of_set if finding is not None]


def _names(rows: Sequence[int], ids: Sequence[str]) -> str:
    names = ", ".join(ids[i] for i in rows[:LISTED])
    return names + (f" and {len(rows) - LISTED} more" if len(rows) > LISTED else "")


def _normalisation(statistics: ImageStatistics, micrograph_id: Tensor) -> Finding | None:
    """Test whether offset or gain differ between micrographs."""
    rows = statistics.usable.nonzero().flatten()
    if len(rows) < 3:
        return None
    scale = float(statistics.deviation[rows].median())
    means = _group_medians(statistics.mean[rows], micrograph_id[rows])
    gains = _group_medians(statistics.deviation[rows].log(), micrograph_id[rows])
    offset, gain = float(means.std()) / scale, float(gains.std())
    evidence = (
        f"spread over micrographs (alike up to {OFFSET:g} deviations and {100 * GAIN:.0f} %): "
        f"mean {offset:.2f} deviations, deviation {100 * gain:.0f} %"
    )
    if offset > OFFSET or gain > GAIN:
        claim = "grey values differ from micrograph to micrograph"
        remedy = (
            "commands of vitreous even them out by themselves; for other programs run `vitreous "
            "prepare`"
        )
        return Finding("normalisation", "wrong", claim, evidence, remedy, "drift")
    pedestal = float((statistics.mean[rows] / statistics.deviation[rows]).median())
    if abs(pedestal) > PEDESTAL:
        claim = f"grey values have an offset of {pedestal:+.1f} deviations"
        remedy = (
            "commands of vitreous take it off by themselves; for other programs run `vitreous "
            "prepare`"
        )
        return Finding("normalisation", "wrong", claim, evidence, remedy, "offset")
    return Finding("normalisation", "ok", "all micrographs have the same grey values", evidence)


def _band_limit(statistics: ImageStatistics) -> Finding | None:
    """Test whether the images have power up to Nyquist; None if they do."""
    power, last = statistics.power, statistics.box_size // 2
    if last < 8 or float(power[1:last].max()) <= 0:
        return None
    level = power[1:last] / power[1:last].median()
    filled = (level > EMPTY).nonzero().flatten()
    edge = int(filled[-1]) + 1
    if edge >= last - 2:
        return None
    claim = f"images are empty beyond {edge / last:.2f} of Nyquist: filtered, or enlarged"
    evidence = f"power there is below {EMPTY:g} of the median shell's"
    remedy = "use the unfiltered images, or a smaller box"
    return Finding("band limit", "wrong", claim, evidence, remedy, "band-limit")


def whiteness(noise: Tensor) -> Finding | None:
    """Test how much the noise power, by shell from 0 on, falls from low to high frequencies."""
    last = len(noise) - 1
    if last < 8 or float(noise.max()) <= 0:
        return None
    inner = float(noise[max(2, last // 8) : last // 4 + 1].mean())
    outer = float(noise[3 * last // 4 : last].mean())
    ratio = inner / max(outer, 1e-30)
    coloured = not 0.5 < ratio < 2
    return Finding(
        "noise",
        "note" if coloured else "ok",
        "is coloured" if coloured else "is nearly white",
        f"its power at an eighth to a quarter of Nyquist is {ratio:.3g} times that at the end; "
        "white is 0.5 to 2",
        "use real backgrounds rather than white noise in `vitreous abinit`" if coloured else "",
    )


def collect(
    read: Callable[[Tensor], Tensor],
    count: int,
    box_size: int,
    notify: Callable[[float], None] = lambda fraction: None,
) -> ImageStatistics:
    """Compute the statistics of ``count`` images, batch by batch.

    ``read`` returns the images ``(b, n, n)`` of rows; ``notify`` is called with the fraction done.
    """
    statistics = StatisticsOf(box_size)
    piece = max(1, (1 << 24) // box_size**2)
    for rows in torch.split(torch.arange(count), piece):
        statistics.add(read(rows))
        notify((int(rows[-1]) + 1) / count)
    return statistics.result()
