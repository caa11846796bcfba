r"""2D classification: class, in-plane rotation and shift of every particle, and class averages.

Expectation maximisation of images of K classes under in-plane rotations :math:`\alpha` and shifts
t,

.. math::

    y_i = c_i\, s_t\, R_\alpha P_k + \text{noise},

in polar Fourier coordinates, where a rotation is a cyclic shift: a round searches the whole grid
(:mod:`vitreous.methods.em.polar_search`), draws candidates from the likelihood, and sums the draws,

.. math::

    P_k = \frac{\sum_i R_{-\alpha}\, \bar s_t\, c_i y_i}
        {\sum_i R_{-\alpha}\, c_i^2 + \sigma^2 / \tau^2},

with the power :math:`\sigma^2` of the residuals of the last round and that of the class images,
:math:`\tau^2`, by shell. Low frequencies come first: the band grows as far as two halves of each
class agree. The first rounds use a subset of the particles, the last ones all of them.

Every class has the same prior, whatever its size, so that large classes do not attract particles by
their size; a class that has lost its particles gets half of those of the largest class.

Sources: F. J. Sigworth, J. Struct. Biol. 122 (1998) 328 (maximum likelihood alignment); S. H. W.
Scheres et al., J. Mol. Biol. 348 (2005) 139 (with classes).
"""

import math
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.core.images import ImageSource, pixel_size_of, read_ahead, shell_power
from vitreous.core.params import Optics
from vitreous.core.random import numbered_generator
from vitreous.core.threads import parallel_map
from vitreous.methods.class2d.alignment import Aligner, ClassSums, PolarImages
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import ImageRecord
from vitreous.methods.em.polar_search import GridCandidates
from vitreous.optim.admm_config import STRICT
from vitreous.optim.loop import Stateful
from vitreous.physics.ctf import ctf_half
from vitreous.physics.polar import PolarGrid, from_polar, to_polar

_BATCH = 256  # images, on one thread
_AGREEMENT = 0.143  # FRC
_MIN_SIZE = 0.2  # of the mean size: smaller classes are replaced by half of the largest one
_EDGE_PX = 3.0
_MIN_NOISE = 1e-3  # of the images' power
_MIN_SIGNAL = 1e-3  # of the largest power of class images in a shell


@validated(frozen=True, config=STRICT)
class ClassConfig:
    """Settings of :class:`ClassAverages`.

    Args:
        classes: K, at most.
        shift_range_angstrom: largest shift of a particle.
        rounds: of alignment and averaging.
        last_rounds: number of rounds at the end that use all particles.
        images_per_class: particles for each class that the other rounds use, chosen at random.
        start_radius: highest shell of the first round's band, in cycles per box.
        search_radius: highest shell at which a particle is compared with all classes.
        radius: highest shell of all rounds; Nyquist by default.
        growth: largest factor by which the band grows from round to round; it grows at least by a
            shell.
        draws: candidates drawn of each particle in a round; the last round uses the best alone.
        diameter_angstrom: of the disc that holds the particle; the box by default.
        as_they_lie: for comparison: particles are neither rotated nor shifted.
    """

    classes: int = Field(default=50, ge=1)
    shift_range_angstrom: float = Field(default=0.0, ge=0)
    rounds: int = Field(default=20, ge=1)
    last_rounds: int = Field(default=3, ge=1)
    images_per_class: int = Field(default=100, ge=2)
    start_radius: int = Field(default=4, ge=2)
    search_radius: int = Field(default=12, ge=2)
    radius: int | None = Field(default=None, ge=2)
    growth: float = Field(default=1.2, gt=1)
    draws: int = Field(default=2, ge=1)
    diameter_angstrom: float | None = Field(default=None, gt=0)
    as_they_lie: bool = False


@dataclass(frozen=True)
class ClassAssignments(ImageRecord):
    """Class, in-plane rotation and shift of every particle."""

    label: Tensor  # long ``(n,)``, class from 0 on
    # ``(n,)``; the particle is the class image rotated by this angle from x to y,
    angle_rad: Tensor
    shift_angstrom: Tensor  # ``(n, 2)``, and then shifted by this
    posterior: Tensor  # ``(n,)``, probability of the alignment among the best few candidates
    # ``(n,)``, squared error without the class image minus that with it, in units of the noise
    # power
    log_likelihood_ratio: Tensor

    @classmethod
    def zeros(cls, count: int) -> "ClassAssignments":
        """Return assignments of particles that were not aligned yet."""
        label, zero = torch.zeros(count, dtype=torch.long), torch.zeros(count)
        return cls(label, zero, torch.zeros(count, 2), zero.clone(), zero.clone())

    @classmethod
    def best(cls, candidates: GridCandidates) -> "ClassAssignments":
        """Return the first candidate of each particle."""
        return cls(
            candidates.template[:, 0],
            candidates.angle_rad[:, 0],
            candidates.shift_angstrom[:, 0],
            torch.softmax(candidates.log_likelihood_ratio / 2, 1)[:, 0],
            candidates.log_likelihood_ratio[:, 0],
        )


@dataclass(frozen=True)
class ClassAveragesResult:
    """Class averages, the largest class first, and the assignments in that order."""

    averages: Tensor  # class images ``(k, n, n)``, protein positive
    frc: Tensor  # between the half averages of each class by shell, ``(k, n // 2 + 1)``
    assignments: ClassAssignments  # of every particle


class ClassAverages(Stateful):
    """Solver of a 2D classification; a call of :meth:`step` is one round.

    Args:
        images: protein positive.
        optics: CTF of each image; None for none.
        half_set: long ``(n,)`` of 1 and 2; the averages of the half sets are compared.
        config: settings.
        generator: of all random numbers, on the CPU.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        device: where to compute; the CPU by default.

    Attributes:
        averages: class images ``(k, n, n)``, protein positive.
        sizes: particles of each class in the last round, ``(k,)``.
        frc: correlation by shell of the half averages of each class, which were aligned to one
            class image, ``(k, n // 2 + 1)``; 0 beyond the band.
        assignments: of every particle.

    Raises:
        ValueError: fewer images than classes.
    """

    STATE = (
        "round",
        "radius",
        "averages",
        "sizes",
        "frc",
        "noise_power",
        "assignments",
        "_generator",
    )

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        half_set: Tensor,
        config: ClassConfig,
        *,
        generator: torch.Generator,
        pixel_size_angstrom: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        if len(images) < config.classes:
            raise ValueError(
                f"classes must be at most the number of images {len(images)}, got {config.classes}"
            )
        self.images, self.optics, self.half_set, self.config = images, optics, half_set, config
        self.pixel_size_angstrom = pixel_size_of(images, pixel_size_angstrom)
        self._generator, self.device = generator, device or torch.device("cpu")
        n, count = images.box_size, config.classes
        self._max_radius = min(config.radius or n, (n - 1) // 2)
        self.radius = min(self._max_radius, config.start_radius)
        self.noise_power = shell_power(images, torch.arange(len(images))).float()
        self._min_noise = _MIN_NOISE * self.noise_power
        self.round = 0
        self.assignments = ClassAssignments.zeros(len(images))
        self.averages = self._seeds(count)
        self.sizes = torch.zeros(count)
        self.frc = torch.zeros(count, n // 2 + 1)

    @property
    def done(self) -> bool:
        """Whether all rounds are done."""
        return self.round >= self.config.rounds

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1."""
        counts = [self._count(t) for t in range(self.config.rounds)]
        return sum(counts[: self.round]) / sum(counts)

    @property
    def _length(self) -> float:
        return self.images.box_size * self.pixel_size_angstrom

    def _count(self, t: int) -> int:
        """Return how many particles round ``t`` uses."""
        if t >= self.config.rounds - self.config.last_rounds:
            return len(self.images)
        return min(len(self.images), self.config.images_per_class * self.config.classes)

    def _rows(self) -> Tensor:
        """Return the rows of the particles of the next round."""
        total, count = len(self.images), self._count(self.round)
        if count == total:
            return torch.arange(total)
        return torch.randperm(total, generator=self._generator)[:count].sort().values

    def _optics_of(self, rows: Tensor) -> Optics | None:
        return None if self.optics is None else self.optics[rows].to(self.device)

    def _seeds(self, count: int) -> Tensor:
        """Return single particles, drawn at random, with their phases corrected."""
        band = FrequencyBand(self.images.box_size, self.pixel_size_angstrom, self.radius)
        rows = torch.randperm(len(self.images), generator=self._generator)[:count].sort().values
        images = self.images.read(rows).to(self.device, torch.float32)
        optics = self._optics_of(rows)
        if optics is not None:
            transfer = ctf_half(images.shape[-1], self.pixel_size_angstrom, optics)
            images = torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=images.shape[-2:])
        grid = PolarGrid(band.box_size, band.radius)
        return self._class_images(to_polar(band.images(images), grid), band)

    def _class_images(self, polar: Tensor, band: FrequencyBand) -> Tensor:
        """Return images of the full box from class spectra, masked and free of background."""
        m, n = band.box_size, self.images.box_size
        images = from_polar(polar, PolarGrid(m, band.radius))
        share = min(1.0, (self.config.diameter_angstrom or self._length) / self._length)
        edge = min(_EDGE_PX, m / 8)
        mask = soft_mask(m, 2, min(m / 2 - edge, m * share / 2), edge, device=self.device)
        outside = (1 - mask) / (1 - mask).sum()
        images = (images - (images * outside).sum((1, 2), keepdim=True)) * mask
        return fourier_resize(images, n, 2) * (n / m)

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Do one round and return its statistics."""
        config = self.config
        band = FrequencyBand(self.images.box_size, self.pixel_size_angstrom, self.radius)
        aligner = Aligner(
            self.averages.to(self.device),
            band,
            self.noise_power.to(self.device),
            shift_range_angstrom=config.shift_range_angstrom,
            search_radius=config.search_radius,
            as_they_lie=config.as_they_lie,
        )
        seed = int(torch.randint(2**62, (), generator=self._generator))
        draws = 0 if self.round == config.rounds - 1 else config.draws

        def align(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, PolarImages, GridCandidates]:
            batch_rows, images = batch[0], batch[1].to(self.device, torch.float32)
            optics = self._optics_of(batch_rows)
            polar = aligner.polar(images, optics)
            # the first class images, single particles, have no scale
            scale = torch.ones(len(batch_rows), device=self.device) if self.round else None
            stream = numbered_generator(self.device, seed, int(batch_rows[0]))
            candidates = aligner(images, optics, scale, polar=polar, draws=draws, generator=stream)
            return batch_rows, polar, candidates

        rows, sums = self._rows(), ClassSums(aligner)
        batches = read_ahead(self.images, rows, max_batch=_BATCH)
        for batch_rows, polar, candidates in parallel_map(align, batches, self.device):
            drawn = candidates.ranked(0, 1) if candidates.sampled is None else candidates.sampled
            sums.add(polar, drawn, self.half_set[batch_rows].to(self.device) - 1)
            best = ClassAssignments.best(candidates)
            self.assignments = self.assignments.updated(batch_rows, best)
        agreeing = self._average(sums, band)
        self.round += 1
        assignments = self.assignments
        return {
            "band_angstrom": self._length / band.radius,
            "agreeing_angstrom": self._length / agreeing,
            "posterior": float(assignments.posterior[rows].mean()),
            "log_likelihood_ratio": float(assignments.log_likelihood_ratio[rows].mean()),
            "smallest_class": float(self.sizes.min()),
        }

    def _average(self, sums: ClassSums, band: FrequencyBand) -> int:
        """Update class images, noise power and band; return the last shell where halves agree."""
        n, numerator, weight = self.images.box_size, sums.numerator, sums.weight
        noise, inside = (sums.residual_power / sums.images).float(), slice(1, band.radius + 1)
        full_box_noise = noise.cpu() * (n / band.box_size) ** 6
        self.noise_power = self.noise_power.clone()  # a state may hold the present one
        self.noise_power[inside] = full_box_noise.maximum(self._min_noise[inside])
        both, total = numerator.sum(0), weight.sum(0)
        noise = noise[:, None]
        signal = (both.abs().square() - noise * total).sum((0, 2)) / total.square().sum((0, 2))
        signal = signal.clamp_min(max(_MIN_SIGNAL * float(signal.max()), 1e-6 * float(noise.max())))
        ratio = noise / signal[:, None]
        averages = self._class_images(both / (total + ratio), band)
        halves = [self._class_images(numerator[h] / (weight[h] + ratio), band) for h in (0, 1)]
        self.sizes = sums.sizes.cpu()
        self.frc, agreeing = self._agreement(halves, band)
        grown = max(band.radius + 1, math.floor(self.config.growth * band.radius))
        self.radius = min(self._max_radius, grown, max(agreeing + 1, self.config.start_radius))
        if self.round < self.config.rounds - self.config.last_rounds:
            averages = self._without_empty_classes(averages, halves)
        self.averages = averages.cpu()
        return agreeing

    def _agreement(self, halves: list[Tensor], band: FrequencyBand) -> tuple[Tensor, int]:
        """Return the FRC of the halves of each class, and the last shell where all agree."""
        grid = PolarGrid(band.box_size, band.radius)
        one, two = (to_polar(band.images(half), grid) for half in halves)
        cross = (one * two.conj()).real.sum(2)
        power = one.abs().square().sum(2), two.abs().square().sum(2)
        frc = torch.zeros(len(one), self.images.box_size // 2 + 1)
        frc[:, 1 : band.radius + 1] = (cross / (power[0] * power[1]).sqrt().clamp_min(1e-20)).cpu()
        pooled = cross.sum(0) / (power[0].sum(0) * power[1].sum(0)).sqrt().clamp_min(1e-20)
        below = (pooled < _AGREEMENT).nonzero().flatten()
        return frc, max(1, int(below[0])) if len(below) else band.radius

    def _without_empty_classes(self, averages: Tensor, halves: list[Tensor]) -> Tensor:
        """Replace classes that have lost their particles by half of the largest ones."""
        averages, sizes = averages.clone(), self.sizes.clone()
        smallest = _MIN_SIZE * float(sizes.mean())
        for small in sizes.argsort():
            large = int(sizes.argmax())
            if float(sizes[small]) >= smallest or float(sizes[large]) < 2 * smallest:
                break
            averages[large], averages[small] = halves[0][large], halves[1][large]
            sizes[large] = sizes[small] = sizes[large] / 2
        return averages

    def result(self) -> ClassAveragesResult:
        """Return class averages and assignments, without empty classes."""
        sizes = torch.bincount(self.assignments.label, minlength=len(self.averages))
        order = sizes.argsort(descending=True, stable=True)
        order = order[sizes[order] > 0]
        rank = torch.zeros(len(self.averages), dtype=torch.long)
        rank[order] = torch.arange(len(order))
        assignments = replace(self.assignments, label=rank[self.assignments.label])
        return ClassAveragesResult(self.averages[order], self.frc[order], assignments)
