"""Are there images that should not be there, and were all images treated alike?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import shell_index
from vitreous.doctor.finding import Finding

TIES = 0.0025  # share of pixels at an image's very minimum or maximum, before it counts as clipped
LEAST_TIES = 10
PEAK = 12.0  # deviations of one pixel from the image's mean
SPREAD_Z = 10.0  # robust deviations of an image's log-deviation, or of its mean
FEW = 0.002  # share of the images that may be outliers without alarm
OFFSET, GAIN = 0.1, 0.1  # spread over micrographs of means (in deviations) and of deviations
EMPTY = 1e-3  # power of the outermost shells relative to their neighbourhood
LISTED = 10


@dataclass(frozen=True)
class ImageStatistics:
    """Numbers of each image, ``(b,)`` unless stated otherwise.

    Args:
        finite, constant: bool.
        mean, deviation: of the grey values.
        peak: largest distance of a pixel from the mean, in deviations.
        ties: most pixels that share the image's minimum or maximum.
        digest: a hash of the pixels.
        power: ``(n // 2 + 1,)``, mean power of usable images by shell, each image divided by its
            variance.
        box_size: pixels.
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
        """Images that are finite and not constant."""
        return self.finite & ~self.constant


class StatisticsOf:
    """Collects statistics batch by batch.

    Args:
        box_size: pixels.

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
        """Take in a batch ``(b, n, n)``."""
        pixels = images.flatten(1)
        finite = pixels.isfinite().all(1)
        clean = torch.where(finite[:, None], pixels, torch.zeros(()))
        low, high = clean.amin(1), clean.amax(1)
        constant = finite & (low == high)
        deviation, mean = torch.std_mean(clean, 1)
        scale = deviation.clamp_min(1e-30)
        peak = torch.maximum(high - mean, mean - low) / scale
        ties = torch.maximum((clean == low[:, None]).sum(1), (clean == high[:, None]).sum(1))
        self._parts.append((finite, constant, mean, deviation, peak, ties))
        self._digest += [hashlib.blake2b(row, digest_size=16).digest() for row in pixels.numpy()]
        good = (finite & ~constant).nonzero().flatten()
        if len(good):
            spectra = torch.fft.rfft2(images[good] - mean[good, None, None])
            power = (spectra.abs().square() / scale[good, None, None].square()).sum(0)
            self._power.index_add_(0, self._shell, power.flatten().double())
            self._counted += len(good)

    def result(self) -> ImageStatistics:
        """The statistics of all images so far."""
        finite, constant, mean, deviation, peak, ties = map(
            torch.cat, zip(*self._parts, strict=True)
        )
        entries = torch.bincount(self._shell, minlength=self._n // 2 + 1)
        power = self._power / entries / max(1, self._counted)
        return ImageStatistics(
            finite,
            constant,
            mean,
            deviation,
            peak,
            ties,
            tuple(self._digest),
            power.float(),
            self._n,
        )


def robust_z(values: Tensor) -> Tensor:
    """Distance from the median in robust deviations (1.4826 median absolute deviations).

    >>> robust_z(torch.tensor([0.0, 1.0, 2.0])).tolist()[1]
    0.0
    """
    distance = values - values.median()
    return distance / (1.4826 * distance.abs().median()).clamp_min(1e-9)


@dataclass(frozen=True)
class Suspects:
    """Places of images with something wrong, by kind, in order."""

    non_finite: tuple[int, ...]
    constant: tuple[int, ...]
    clipped: tuple[int, ...]
    repeated: tuple[int, ...]
    outlying: tuple[int, ...]

    @property
    def unusable(self) -> tuple[int, ...]:
        """Images that no reconstruction should take, and second copies."""
        return tuple(sorted({*self.non_finite, *self.constant, *self.repeated}))


def suspects(found: ImageStatistics, micrograph_id: Tensor) -> Suspects:
    """Which images are not like the others.

    Args:
        found: statistics.
        micrograph_id: long ``(b,)``; deviations are compared within a micrograph's scale.
    """
    usable = found.usable
    clipped = usable & (found.ties >= max(LEAST_TIES, TIES * found.box_size**2))
    seen: set[bytes] = set()
    repeated = []
    for place, digest in enumerate(found.digest):
        if digest in seen and bool(usable[place]):
            repeated.append(place)
        seen.add(digest)
    outlying = usable & (found.peak > PEAK)
    places = usable.nonzero().flatten()
    if len(places) > 10:
        centre = _centres(found.deviation[places].log(), micrograph_id[places])
        spread = robust_z(found.deviation[places].log() - centre)
        # a floor, as deviations of well normalised images differ by less than matters
        strange = (spread.abs() > SPREAD_Z) & ((found.deviation[places].log() - centre).abs() > 0.2)
        outlying[places[strange]] = True

    def listed(mask: Tensor) -> tuple[int, ...]:
        return tuple(mask.nonzero().flatten().tolist())

    return Suspects(
        listed(~found.finite),
        listed(found.constant),
        listed(clipped),
        tuple(repeated),
        listed(outlying),
    )


def _centres(values: Tensor, group: Tensor) -> Tensor:
    """Median of each value's group; of all values for groups of fewer than five."""
    centre = torch.full_like(values, float(values.median()))
    order = group.argsort()
    for places in torch.split(order, torch.bincount(group).tolist()):
        if len(places) >= 5:
            centre[places] = values[places].median()
    return centre


def findings(
    found: ImageStatistics, odd: Suspects, micrograph_id: Tensor, ids: Sequence[str]
) -> list[Finding]:
    """Verdicts on images, one by one and as a set."""
    kinds = (
        (odd.non_finite, "have NaN or infinite pixels", "non-finite", "leave them out"),
        (odd.constant, "are constant", "constant", "leave them out"),
        (
            odd.clipped,
            "are clipped at their extremes",
            "saturated",
            "extract them again, unclipped",
        ),
        (odd.repeated, "are copies of others", "duplicates", "leave the second copies out"),
    )
    wrong = [
        Finding(
            "images",
            "wrong",
            f"{len(places)} of {len(found)} images {what}",
            _named(places, ids),
            remedy,
            fault,
        )
        for places, what, fault, remedy in kinds
        if places
    ]
    if odd.outlying:
        many = len(odd.outlying) > max(1, FEW * len(found))
        wrong.append(
            Finding(
                "outliers",
                "wrong" if many else "note",
                f"{len(odd.outlying)} of {len(found)} images are far brighter or stronger than the "
                "rest",
                _named(odd.outlying, ids),
                "look at them; leave them out if they are ice or carbon",
                "outliers" if many else "",
            )
        )
    if not wrong:
        claim = f"all {len(found)} are finite, different, unclipped and alike"
        wrong = [Finding("images", "ok", claim)]
    together = [_normalisation(found, micrograph_id), _band(found)]
    return wrong + [finding for finding in together if finding is not None]


def _named(places: Sequence[int], ids: Sequence[str]) -> str:
    shown = ", ".join(ids[i] for i in places[:LISTED])
    return shown + (f" and {len(places) - LISTED} more" if len(places) > LISTED else "")


def _normalisation(found: ImageStatistics, micrograph_id: Tensor) -> Finding | None:
    """Whether offset or gain differ between micrographs."""
    places = found.usable.nonzero().flatten()
    if len(places) < 3:
        return None
    scale = float(found.deviation[places].median())
    means = _centres(found.mean[places], micrograph_id[places])
    gains = _centres(found.deviation[places].log(), micrograph_id[places])
    offset, gain = float(means.std()) / scale, float(gains.std())
    evidence = (
        f"spread over micrographs: mean {offset:.2f} deviations, deviation {100 * gain:.0f} %"
    )
    if offset > OFFSET or gain > GAIN:
        return Finding(
            "normalisation",
            "wrong",
            "grey values drift from micrograph to micrograph",
            evidence,
            "run `vitreous prepare --normalise ring`",
            "drift",
        )
    return Finding("normalisation", "ok", "all micrographs have the same grey values", evidence)


def _band(found: ImageStatistics) -> Finding | None:
    """Whether the images hold anything up to Nyquist."""
    power, last = found.power, found.box_size // 2
    if last < 8 or float(power[1:last].max()) <= 0:
        return None
    level = power[1:last] / power[1:last].median()
    filled = (level > EMPTY).nonzero().flatten()
    edge = int(filled[-1]) + 1
    if edge >= last - 2:
        return None
    return Finding(
        "band limit",
        "wrong",
        f"images are empty beyond {edge / last:.2f} of Nyquist: filtered, or enlarged",
        f"power there is below {EMPTY:g} of the median shell's",
        "use the unfiltered images; a smaller box holds the same",
        "band-limit",
    )


def whiteness(noise: Tensor) -> Finding | None:
    """How much the noise's power falls from low to high frequencies.

    Args:
        noise: power by shell, from 0 to the last.
    """
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
        f"its power at an eighth to a quarter of Nyquist is {ratio:.3g} times that at the end",
        "real backgrounds serve better than white noise (`abinit --noise`)" if coloured else "",
    )


def collect(
    read: Callable[[Tensor], Tensor],
    count: int,
    box_size: int,
    notify: Callable[[float], None] = lambda fraction: None,
) -> ImageStatistics:
    """Statistics of all images, a piece at a time.

    Args:
        read: images ``(b, n, n)`` of these places.
        count: how many there are.
        box_size: n.
        notify: told the fraction done.
    """
    statistics = StatisticsOf(box_size)
    piece = max(1, (1 << 24) // box_size**2)
    for places in torch.split(torch.arange(count), piece):
        statistics.add(read(places))
        notify((int(places[-1]) + 1) / count)
    return statistics.result()
