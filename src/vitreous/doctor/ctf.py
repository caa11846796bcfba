r"""Do the stated CTF parameters explain the power spectra of the images?

A Fourier coefficient of an image, of shell s and CTF c, is close to complex Gaussian with variance
:math:`N_s + c^2 S_s`: noise, and signal seen through the CTF. Its squared modulus P then is
exponentially distributed, and

.. math::

    \log L = -\sum \Bigl[ \log (N_s + c^2 S_s) + \frac{P}{N_s + c^2 S_s} \Bigr]

(Whittle's likelihood; Ark. Mat. 2 (1953) 423). N and S are fitted for every hypothesis by Fisher
scoring, so that only the pattern of the rings counts. Rings of ice and carbon help as much as those
of the molecule. Neither contrast nor orientations enter.

Where orientations are known, hypotheses that rings cannot tell apart are told apart by the
information that half maps share under each (:mod:`vitreous.doctor.poses`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.grid import shell_index
from vitreous.core.params import Optics
from vitreous.physics.ctf import ctf_half

FIRST_SHELL = 2  # below it lies whatever background remains
EMPTY = 1e-5  # of the strongest shell's power: beyond the last above it, images are filtered
BINS = 32  # of CTF^2, within each shell
SCORING_STEPS = 12
LEAST_GAIN = 30.0  # of log-likelihood, before one hypothesis is preferred to another
# Significance over micrographs for the same. If the table is right, the mean is not 0 but well
# below, so that even this is rarely reached by chance.
LEAST_Z = 1.5
LEAST_SHARED = 30.0  # of information between half maps, before one hypothesis is preferred
MANY_SPREADS = 4.0  # over random splits, for the same
SPLITS = 4
VOLTAGES_KV = (100.0, 120.0, 200.0, 300.0)
_PIECE = 256


@dataclass(frozen=True)
class Hypothesis:
    """CTF parameters that may be the true ones.

    Args:
        fault: what is wrong with the table if they are; empty for the table's own.
        claim: the same as a sentence.
        remedy: what to do then.
        optics, pixel_size_angstrom: the parameters, of each image.
    """

    fault: str
    claim: str
    remedy: str
    optics: Optics
    pixel_size_angstrom: float


@dataclass(frozen=True)
class CtfTest:
    """Log-likelihoods of all hypotheses, the table's own first.

    Args:
        hypotheses: what was tried.
        gain: float64 ``(hypotheses, micrographs)``, log-likelihood above that of no rings at all.
        signal, noise: ``(shells,)`` of the best hypothesis, from :data:`FIRST_SHELL` on, relative
            to the noise of the outer half.
        snr: power ratio over the whole image, by the best hypothesis; rings of ice count as signal.
        shared: ``(hypotheses, splits)``, information shared by half maps of several random splits;
            NaN where it was not measured.
    """

    hypotheses: tuple[Hypothesis, ...]
    gain: Tensor
    signal: Tensor
    noise: Tensor
    snr: float
    shared: Tensor

    @property
    def totals(self) -> list[float]:
        """Gain of each hypothesis over all micrographs."""
        return [float(v) for v in self.gain.sum(1)]

    def by_rings(self, one: int, other: int) -> bool:
        """Whether rings are clearly better explained, over all and over micrographs."""
        difference = self.gain[one] - self.gain[other]
        return float(difference.sum()) > LEAST_GAIN and significance(difference) > LEAST_Z

    def by_halves(self, one: int, other: int) -> bool:
        """Whether half maps clearly share more, however the images are split."""
        difference = self.shared[one] - self.shared[other]
        mean, spread = float(difference.mean()), float(difference.std())
        return mean > LEAST_SHARED and mean > MANY_SPREADS * spread

    def beats(self, one: int, other: int) -> bool:
        """Whether a hypothesis is clearly better than another."""
        if self.by_rings(one, other):
            return True
        return self.by_halves(one, other) and not self.by_rings(other, one)

    @property
    def contenders(self) -> list[int]:
        """Hypotheses that rings do not clearly exclude, the one that explains them best first."""
        order = self.gain.sum(1).argsort(descending=True).tolist()
        return [i for i in order if not self.by_rings(order[0], i)]

    @property
    def best(self) -> int:
        """The hypothesis to go on with: the table's own unless another is clearly better."""
        contenders = self.contenders
        measured = self.shared[contenders].mean(1)
        top = int(measured.argmax()) if bool(measured.isfinite().all()) else 0
        return contenders[top] if self.beats(contenders[top], 0) else 0

    @property
    def alike(self) -> list[str]:
        """Claims of hypotheses that are not clearly worse than the best."""
        others = [i for i in range(1, len(self.hypotheses)) if i != self.best]
        return [self.hypotheses[i].claim for i in others if not self.beats(self.best, i)]


def significance(values: Tensor) -> float:
    """Sum of independent values over its standard error; 0 for fewer than three."""
    if len(values) < 3:
        return 0.0
    spread = float(values.std()) * len(values) ** 0.5
    return float(values.sum()) / max(spread, 1e-9)


def hypotheses(
    optics: Optics, pixel_size_angstrom: float, other_pixel_sizes: Sequence[float] = ()
) -> tuple[Hypothesis, ...]:
    """The table's own parameters, then every usual mistake undone.

    Args:
        optics: of each image, as stated.
        pixel_size_angstrom: as stated, Å.
        other_pixel_sizes: what other sources say, Å.
    """
    u, v = optics.defocus_u_angstrom, optics.defocus_v_angstrom
    found = [Hypothesis("", "the table's parameters", "", optics, pixel_size_angstrom)]

    def add(fault: str, claim: str, remedy: str, changed: Optics) -> None:
        found.append(Hypothesis(fault, claim, remedy, changed, pixel_size_angstrom))

    add(
        "defocus-axes",
        "defocus U and V are swapped, or their angle is off by 90 degrees",
        "swap rlnDefocusU and rlnDefocusV",
        replace(optics, defocus_u_angstrom=v, defocus_v_angstrom=u),
    )
    add(
        "defocus-angle-sign",
        "the angle of astigmatism turns the wrong way",
        "change the sign of rlnDefocusAngle (or y of the images is flipped)",
        replace(optics, defocus_angle_deg=-optics.defocus_angle_deg),
    )
    add(
        "defocus-sign",
        "defocus has the wrong sign",
        "change the sign of rlnDefocusU and rlnDefocusV (underfocus is positive)",
        replace(optics, defocus_u_angstrom=-u, defocus_v_angstrom=-v),
    )
    for factor, unit in ((10.0, "nm"), (1e4, "µm"), (0.1, "tenths of Å")):
        add(
            "defocus-unit",
            f"defocus is in {unit}, not in Å",
            f"multiply rlnDefocusU and rlnDefocusV by {factor:g}",
            replace(optics, defocus_u_angstrom=factor * u, defocus_v_angstrom=factor * v),
        )
    for voltage in VOLTAGES_KV:
        if not bool(torch.isclose(optics.voltage_kv, torch.tensor(voltage), rtol=0.02).all()):
            add(
                "voltage",
                f"the voltage is {voltage:g} kV",
                f"set rlnVoltage to {voltage:g}",
                replace(optics, voltage_kv=torch.full_like(optics.voltage_kv, voltage)),
            )
    phase = optics.phase_shift_deg
    add(
        "phase-shift",
        "a phase plate's shift of about 90 degrees is missing",
        "estimate the CTF with phase shift",
        replace(optics, phase_shift_deg=phase + 90.0),
    )
    if bool((phase != 0).any()):
        degrees = torch.rad2deg(phase)
        add(
            "phase-shift-unit",
            "the phase shift is in radians, not in degrees",
            "multiply rlnPhaseShift by 180 / pi",
            replace(optics, phase_shift_deg=degrees),
        )
    taken = [pixel_size_angstrom]
    for size in (*other_pixel_sizes, pixel_size_angstrom / 2, pixel_size_angstrom * 2):
        if any(abs(size / other - 1) <= 0.01 for other in taken):
            continue
        taken.append(size)
        found.append(
            Hypothesis(
                "pixel-size",
                f"the pixel size is {size:.4g} Å, not {pixel_size_angstrom:.4g} Å",
                f"set rlnImagePixelSize to {size:.4g} (or give --apix {size:.4g})",
                optics,
                size,
            )
        )
    return tuple(found)


def compare(
    images: Tensor,
    tried: Sequence[Hypothesis],
    micrograph_id: Tensor,
    notify: Callable[[float], None] = lambda fraction: None,
) -> CtfTest:
    """Log-likelihood of every hypothesis.

    Args:
        images: ``(b, n, n)``, contrast and scale free.
        tried: from :func:`hypotheses`, with the optics of these images.
        micrograph_id: long ``(b,)``.
        notify: told the fraction done.
    """
    n = images.shape[-1]
    where, shell, power = _relative_power(images)
    count = int(shell.max()) + 1
    micrograph = torch.unique(micrograph_id, return_inverse=True)[1]
    if int(micrograph.max()) < 4:  # too few to judge by: take images for independent
        micrograph = torch.arange(len(images))
    flat = _shell_means(power, shell, count)
    plain = -(flat[shell].log() + power / flat[shell]).double().sum(1)
    gains, fits = [], []
    for done, hypothesis in enumerate(tried):
        notify(done / len(tried))
        likelihood, signal, noise, seen = _fit(hypothesis, power, where, shell, n)
        each = torch.zeros(int(micrograph.max()) + 1, dtype=torch.float64)
        gains.append(each.index_add_(0, micrograph, likelihood - plain))
        fits.append((signal, noise, seen))
    unmeasured = torch.full((len(tried), SPLITS), torch.nan)
    draft = CtfTest(tuple(tried), torch.stack(gains), flat, flat, 0.0, unmeasured)
    signal, noise, seen = fits[draft.best]
    area = torch.bincount(shell, minlength=count)
    snr = float((seen * area).sum() / (noise * area).sum())
    return replace(draft, signal=signal, noise=noise, snr=snr)


def _disc(n: int) -> tuple[Tensor, Tensor]:
    """Places in the flattened Hermitian half that are used once each, and their shells from 0."""
    shell = shell_index(n, 2)
    inside = (shell >= FIRST_SHELL) & (shell < n // 2)
    inside[n // 2 + 1 :, 0] = False  # mirror images of the upper half of this column
    where = inside.flatten().nonzero().flatten()
    return where, shell.flatten()[where] - FIRST_SHELL


def _relative_power(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared moduli ``(b, p)``, each image's divided by their mean over its outer half.

    Returns:
        places in the flattened Hermitian half, their shells, and the power; up to the last shell
        that holds anything.
    """
    where, shell = _disc(images.shape[-1])
    pieces = [
        torch.fft.rfft2(piece).flatten(1)[:, where].abs().square()
        for piece in torch.split(images, _PIECE)
    ]
    power = torch.cat(pieces)
    means = _shell_means(power, shell, int(shell.max()) + 1)
    last = int((means > EMPTY * means.max()).nonzero().max())
    where, power, shell = where[shell <= last], power[:, shell <= last], shell[shell <= last]
    outer = shell >= last // 2
    return where, shell, power / power[:, outer].mean(1, keepdim=True).clamp_min(1e-30)


def _shell_means(power: Tensor, shell: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count).index_add_(0, shell, power.mean(0))
    return sums / torch.bincount(shell, minlength=count)


def _fit(
    hypothesis: Hypothesis, power: Tensor, where: Tensor, shell: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood of each image, signal and noise by shell, and signal seen through the CTF."""
    count = int(shell.max()) + 1
    places = torch.empty(power.shape, dtype=torch.int32)
    sums = torch.zeros(2, count * BINS, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(power)), _PIECE):
        transfer = ctf_half(n, hypothesis.pixel_size_angstrom, hypothesis.optics[rows])
        square = transfer.flatten(1)[:, where].square()
        place = shell * BINS + (square * BINS).long().clamp(0, BINS - 1)
        places[rows] = place.int()
        flat = place.flatten()
        sums[0] += torch.bincount(flat, minlength=count * BINS)
        sums[1] += torch.bincount(flat, power[rows].flatten().double(), count * BINS)
    square = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    entries, total = sums.reshape(2, count, BINS)
    signal, noise = _score(entries, total, square)
    model = (noise[:, None] + signal[:, None] * square).flatten().float()
    likelihood = torch.cat(
        [
            -(model[place.long()].log() + part / model[place.long()]).double().sum(1)
            for place, part in zip(
                torch.split(places, _PIECE), torch.split(power, _PIECE), strict=True
            )
        ]
    )
    seen = signal * (entries * square).sum(1) / entries.sum(1)
    return likelihood, signal.float(), noise.float(), seen.float()


def _score(entries: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood S and N of each shell, from sums over bins of CTF^2 ``(shells, BINS)``."""
    mean = total.sum(1) / entries.sum(1)
    noise, signal = mean.clone(), 0.1 * mean
    for _ in range(SCORING_STEPS):
        weight = (noise[:, None] + signal[:, None] * square) ** -2
        a, b, c = ((entries * weight * square**power).sum(1) for power in (0, 1, 2))
        d, e = ((total * weight * square**power).sum(1) for power in (0, 1))
        determinant = (a * c - b * b).clamp_min(1e-9 * a * c + 1e-300)
        signal = ((a * e - b * d) / determinant).clamp_min(0)
        noise = ((d - b * signal) / a).clamp_min(0.02 * mean)
        signal = ((e - b * noise) / c.clamp_min(1e-300)).clamp_min(0)
    return signal, noise
