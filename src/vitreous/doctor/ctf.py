r"""Test of the stated CTF parameters against the power spectra of the images.

A Fourier coefficient of an image, of shell s and CTF c, is approximately complex Gaussian with
variance :math:`N_s + c^2 S_s`: noise, and signal times CTF. Its squared modulus P is exponentially
distributed, and

.. math::

    \log L = -\sum \Bigl[ \log (N_s + c^2 S_s) + \frac{P}{N_s + c^2 S_s} \Bigr]

(Whittle's likelihood; Ark. Mat. 2 (1953) 423). N and S are fitted for every hypothesis by Fisher
scoring, so that only the pattern of the Thon rings counts. Rings of ice and carbon contribute as
those of the molecule do. Contrast and orientations do not enter.

Where orientations are known, the information shared by half maps (:mod:`vitreous.doctor.poses`)
separates hypotheses that Thon rings do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.grid import shell_index
from vitreous.core.params import Optics
from vitreous.doctor.finding import Fault
from vitreous.metrics.significance import standard_errors
from vitreous.physics.ctf import ctf_half

FIRST_SHELL = 2  # shells below it hold the background
EMPTY = 1e-5  # power over the strongest shell's, below which shells count as filtered out
BINS = 32  # bins of CTF^2 in each shell
SCORING_STEPS = 12
LEAST_GAIN = 30.0  # difference of log-likelihoods that prefers a hypothesis to another
# Significance over micrographs for the same. If the table is right, the mean is well below 0, so
# that even this value is rarely reached by chance.
LEAST_Z = 1.5
LEAST_SHARED = 30.0  # difference of shared information that prefers a hypothesis to another
LEAST_SPREADS = 4.0  # the same difference over its spread over random splits
MUCH_MORE = 1.5  # ratio of shared information that decides whatever the rings say
SPLITS = 4
VOLTAGES_KV = (100.0, 120.0, 200.0, 300.0)
_PIECE = 256


@dataclass(frozen=True)
class Hypothesis(Fault):
    """Candidate CTF parameters: those of each image, and the pixel size in Å."""

    optics: Optics
    pixel_size_angstrom: float


@dataclass(frozen=True)
class CtfTest:
    """Log-likelihoods of all hypotheses, the table's own first.

    Args:
        hypotheses: tested parameters.
        gain: float64 ``(hypotheses, micrographs)``, log-likelihood ratio to a model without rings.
        signal, noise: ``(shells,)`` of the best hypothesis, from :data:`FIRST_SHELL` on, relative
            to the noise of the outer half.
        snr: ratio of signal to noise power over the whole image, by the best hypothesis; rings of
            ice count as signal.
        shared: ``(hypotheses, splits)``, information shared by half maps of random splits; NaN
            where it was not measured.
    """

    hypotheses: tuple[Hypothesis, ...]
    gain: Tensor
    signal: Tensor
    noise: Tensor
    snr: float
    shared: Tensor

    @property
    def totals(self) -> list[float]:
        """Log-likelihood ratio of each hypothesis, summed over micrographs."""
        return [float(v) for v in self.gain.sum(1)]

    def by_rings(self, one: int, other: int) -> bool:
        """Whether a hypothesis explains the rings clearly better, in sum and over micrographs."""
        difference = self.gain[one] - self.gain[other]
        return float(difference.sum()) > LEAST_GAIN and significance(difference) > LEAST_Z

    def by_halves(self, one: int, other: int) -> bool:
        """Whether half maps share clearly more information in every random split.

        A transfer function that all images have in common cancels in the FSC: where defoci are
        alike, half maps share up to a fifth more under a wrong one. Less than :data:`MUCH_MORE`
        counts only where the rings lean the same way.
        """
        difference = self.shared[one] - self.shared[other]
        mean, spread = float(difference.mean()), float(difference.std())
        if float(self.shared[one].mean()) <= MUCH_MORE * float(self.shared[other].mean()):
            mean *= significance(self.gain[one] - self.gain[other]) > LEAST_Z
        return mean > LEAST_SHARED and mean > LEAST_SPREADS * spread

    def beats(self, one: int, other: int) -> bool:
        """Whether one hypothesis is clearly better than another."""
        if self.by_rings(one, other):
            return True
        return self.by_halves(one, other) and not self.by_rings(other, one)

    @property
    def contenders(self) -> list[int]:
        """Hypotheses that the rings do not exclude, best first."""
        order = self.gain.sum(1).argsort(descending=True).tolist()
        return [i for i in order if not self.by_rings(order[0], i)]

    @property
    def best(self) -> int:
        """The accepted hypothesis: the table's own unless another is clearly better."""
        better = [i for i in self.contenders if self.beats(i, 0)]
        measured = self.shared[better].mean(1)
        top = int(measured.argmax()) if better and bool(measured.isfinite().all()) else 0
        return better[top] if better else 0

    @property
    def alike(self) -> list[str]:
        """Claims of hypotheses that are not clearly worse than the best."""
        others = [i for i in range(1, len(self.hypotheses)) if i != self.best]
        return [self.hypotheses[i].claim for i in others if not self.beats(self.best, i)]


def significance(values: Tensor) -> float:
    """Return the mean of independent values in its standard errors; 0 for fewer than three."""
    return standard_errors(values) if len(values) > 2 else 0.0


def hypotheses(
    optics: Optics, pixel_size_angstrom: float, other_pixel_sizes: Sequence[float] = ()
) -> tuple[Hypothesis, ...]:
    """Return the table's own parameters, then those of a table with each common fault corrected.

    ``optics`` and ``pixel_size_angstrom`` are those of the table; ``other_pixel_sizes``, in Å, come
    from other sources.
    """

    def corrected(fault: str, claim: str, remedy: str, **changed: Tensor) -> Hypothesis:
        return Hypothesis(fault, claim, remedy, replace(optics, **changed), pixel_size_angstrom)

    stated = corrected("", "the table's parameters", "")
    faults = (*_defocus_faults(optics, corrected), *_other_faults(optics, corrected))
    sizes = [pixel_size_angstrom]
    for size in (*other_pixel_sizes, pixel_size_angstrom / 2, pixel_size_angstrom * 2):
        if all(abs(size / other - 1) > 0.01 for other in sizes):
            sizes.append(size)
    resized = [
        Hypothesis(
            "pixel-size",
            f"the pixel size is {size:.4g} Å, not {pixel_size_angstrom:.4g} Å",
            f"set rlnImagePixelSize to {size:.4g} (or give `pixel_size_angstrom` {size:.4g})",
            optics,
            size,
        )
        for size in sizes[1:]
    ]
    return (stated, *faults, *resized)


def _defocus_faults(optics: Optics, corrected: Callable[..., Hypothesis]) -> list[Hypothesis]:
    """Return the parameters of a table with each common fault of the defocus corrected."""
    u, v = optics.defocus_u_angstrom, optics.defocus_v_angstrom
    faults = [
        corrected(
            "defocus-axes",
            "defocus U and V are swapped, or their angle is off by 90 degrees",
            "swap rlnDefocusU and rlnDefocusV",
            defocus_u_angstrom=v,
            defocus_v_angstrom=u,
        ),
        corrected(
            "defocus-angle-sign",
            "the angle of astigmatism has the wrong sign",
            "change the sign of rlnDefocusAngle (or y of the images is flipped)",
            defocus_angle_deg=-optics.defocus_angle_deg,
        ),
        corrected(
            "defocus-sign",
            "defocus has the wrong sign",
            "change the sign of rlnDefocusU and rlnDefocusV (underfocus is positive)",
            defocus_u_angstrom=-u,
            defocus_v_angstrom=-v,
        ),
    ]
    faults += [
        corrected(
            "defocus-unit",
            f"defocus is in {unit}, not in Å",
            f"multiply rlnDefocusU and rlnDefocusV by {factor:g}",
            defocus_u_angstrom=factor * u,
            defocus_v_angstrom=factor * v,
        )
        for factor, unit in ((10.0, "nm"), (1e4, "µm"), (0.1, "tenths of Å"))
    ]
    return faults


def _other_faults(optics: Optics, corrected: Callable[..., Hypothesis]) -> list[Hypothesis]:
    """Return the same for the faults of voltage and phase shift."""
    phase = optics.phase_shift_deg
    faults = [
        corrected(
            "voltage",
            f"the voltage is {voltage:g} kV",
            f"set rlnVoltage to {voltage:g}",
            voltage_kv=torch.full_like(optics.voltage_kv, voltage),
        )
        for voltage in VOLTAGES_KV
        if not bool(torch.isclose(optics.voltage_kv, torch.tensor(voltage), rtol=0.02).all())
    ]
    claim = "a phase plate's shift of about 90 degrees is missing"
    remedy = "estimate the CTF with phase shift"
    faults.append(corrected("phase-shift", claim, remedy, phase_shift_deg=phase + 90.0))
    if bool((phase != 0).any()):
        claim = "the phase shift is in radians, not in degrees"
        remedy = "multiply rlnPhaseShift by 180 / pi"
        degrees = torch.rad2deg(phase)
        faults.append(corrected("phase-shift-unit", claim, remedy, phase_shift_deg=degrees))
    return faults


def compare(
    images: Tensor,
    tried: Sequence[Hypothesis],
    micrograph_id: Tensor,
    notify: Callable[[float], None] = lambda fraction: None,
) -> CtfTest:
    """Compute the log-likelihood of every hypothesis, with the optics of the images ``(b, n, n)``.

    Contrast and scale do not matter. ``micrograph_id`` is long ``(b,)``; ``notify`` is called with
    the fraction done.
    """
    n = images.shape[-1]
    pixel, shell, power = _relative_power(images)
    count = int(shell.max()) + 1
    micrograph = torch.unique(micrograph_id, return_inverse=True)[1]
    if int(micrograph.max()) < 4:  # too few micrographs: treat images as independent
        micrograph = torch.arange(len(images))
    flat = _shell_means(power, shell, count)
    plain = -(flat[shell].log() + power / flat[shell]).double().sum(1)
    gains, fits = [], []
    for done, hypothesis in enumerate(tried):
        notify(done / len(tried))
        likelihood, signal, noise, transferred = _fit(hypothesis, power, pixel, shell, n)
        gain = torch.zeros(int(micrograph.max()) + 1, dtype=torch.float64)
        gains.append(gain.index_add_(0, micrograph, likelihood - plain))
        fits.append((signal, noise, transferred))
    unmeasured = torch.full((len(tried), SPLITS), torch.nan)
    draft = CtfTest(tuple(tried), torch.stack(gains), flat, flat, 0.0, unmeasured)
    signal, noise, transferred = fits[draft.best]
    area = torch.bincount(shell, minlength=count)
    snr = float((transferred * area).sum() / (noise * area).sum())
    return replace(draft, signal=signal, noise=noise, snr=snr)


def _relative_power(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute squared moduli ``(b, p)``, each image's divided by the mean over its outer half.

    Returns:
        pixels in the flattened Hermitian half, their shells, and the power, up to the last shell
        that is not empty.
    """
    n = images.shape[-1]
    shell = shell_index(n, 2)
    inside = (shell >= FIRST_SHELL) & (shell < n // 2)
    inside[n // 2 + 1 :, 0] = False  # Friedel mates of the upper half of this column
    pixel = inside.flatten().nonzero().flatten()
    shell = shell.flatten()[pixel] - FIRST_SHELL
    pieces = [
        torch.fft.rfft2(piece).flatten(1)[:, pixel].abs().square()
        for piece in torch.split(images, _PIECE)
    ]
    power = torch.cat(pieces)
    means = _shell_means(power, shell, int(shell.max()) + 1)
    last = int((means > EMPTY * means.max()).nonzero().max())
    pixel, power, shell = pixel[shell <= last], power[:, shell <= last], shell[shell <= last]
    outer = shell >= last // 2
    return pixel, shell, power / power[:, outer].mean(1, keepdim=True).clamp_min(1e-30)


def _shell_means(power: Tensor, shell: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count).index_add_(0, shell, power.mean(0))
    return sums / torch.bincount(shell, minlength=count)


def _fit(
    hypothesis: Hypothesis, power: Tensor, pixel: Tensor, shell: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit signal and noise.

    Returns:
        log-likelihood of each image; by shell the signal, the noise, and the signal times CTF^2.
    """
    count = int(shell.max()) + 1
    bins = torch.empty(power.shape, dtype=torch.int32)
    sums = torch.zeros(2, count * BINS, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(power)), _PIECE):
        transfer = ctf_half(n, hypothesis.pixel_size_angstrom, hypothesis.optics[rows])
        square = transfer.flatten(1)[:, pixel].square()
        index = shell * BINS + (square * BINS).long().clamp(0, BINS - 1)
        bins[rows] = index.int()
        flat = index.flatten()
        sums[0] += torch.bincount(flat, minlength=count * BINS)
        sums[1] += torch.bincount(flat, power[rows].flatten().double(), count * BINS)
    square = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    entries, total = sums.reshape(2, count, BINS)
    signal, noise = _score(entries, total, square)
    model = (noise[:, None] + signal[:, None] * square).flatten().float()
    pieces = zip(torch.split(bins, _PIECE), torch.split(power, _PIECE), strict=True)
    models = ((model[index.long()], part) for index, part in pieces)
    likelihood = torch.cat([-(m.log() + part / m).double().sum(1) for m, part in models])
    transferred = signal * (entries * square).sum(1) / entries.sum(1)
    return likelihood, signal.float(), noise.float(), transferred.float()


def _score(entries: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Return maximum-likelihood S and N by shell, from sums over CTF^2 bins ``(shells, BINS)``."""
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
