r"""Class images by alignment: every particle finds class, turn and shift, every class its image.

Expectation maximisation of images of K classes under in-plane turns :math:`\alpha` and shifts t,

.. math::

    y_i = c_i\, s_t\, R_\alpha P_k + \text{noise},

wholly in polar Fourier coordinates, where turning is a cyclic shift: a round searches all of the
grid (:mod:`vitreous.methods.em.polar_search`), draws places from the likelihood, and sums what is
drawn,

.. math::

    P_k = \frac{\sum_i R_{-\alpha}\, \bar s_t\, c_i y_i}
        {\sum_i R_{-\alpha}\, c_i^2 + \sigma^2 / \tau^2},

with the power :math:`\sigma^2` of what the last round has left of the images, and that of the class
images, :math:`\tau^2`, by shell. Low frequencies come first: the band grows as far as two halves of
each class agree. The first rounds take some of the particles, the last ones all.

Every class has the same prior, whatever its size, so that the large do not grow for being large; a
class that has lost its particles is given half of the largest one's.

Sources: F. J. Sigworth, J. Struct. Biol. 122 (1998) 328 (maximum likelihood alignment); S. H. W.
Scheres et al., J. Mol. Biol. 348 (2005) 139 (with classes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.core.images import ImageSource, read_ahead, shell_power
from vitreous.core.params import Optics
from vitreous.core.random import numbered_generator
from vitreous.core.threads import parallel_map
from vitreous.methods.class2d.alignment import Aligner, ClassSums, Polar
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.polar_search import GridCandidates
from vitreous.optim.admm_config import STRICT
from vitreous.physics.ctf import ctf_half
from vitreous.physics.polar import PolarGrid, from_polar, to_polar

_AT_ONCE = 256  # images, on one thread
_AGREE = 0.143
_LEAST_SHARE = 0.2  # of the mean size: smaller classes are given up for half of the largest
_EDGE_PX = 3.0
_LEAST_NOISE = 1e-3  # of the images' power
_FLOOR = 1e-3  # of the largest power of class images in a shell


@validated(frozen=True, config=STRICT)
class ClassConfig:
    """How classes are found.

    Args:
        classes: K, at most.
        shift_range_angstrom: farthest shift of a particle.
        rounds: of assignment and averaging, all in all.
        last_rounds: how many of them, the last ones, take all particles.
        images_per_class: so many particles for each class are taken in the others, at random.
        start_radius: highest shell of the first round's band, in cycles per box.
        search_radius: highest shell at which a particle is compared with all classes.
        radius: highest shell of all; the images' own by default.
        growth: bound of the band's growth from round to round, at least by a shell.
        draws: places drawn of each particle in a round; the last round takes the best alone.
        diameter_angstrom: of the disc that holds the particle; the box by default.
        as_they_lie: for comparison: particles are neither turned nor shifted.
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
class Classified:
    """What was found for every particle.

    Args:
        label: long ``(n,)``, class from 0 on.
        angle_rad: ``(n,)``: the particle is the class image, turned by this from x to y,
        shift_angstrom: ``(n, 2)``: and then shifted by this.
        posterior: ``(n,)``, probability of its class, turn and shift among the best few.
        gain: ``(n,)``: squared error without the class image less that with it, in units of the
            noise's power.
    """

    label: Tensor
    angle_rad: Tensor
    shift_angstrom: Tensor
    posterior: Tensor
    log_likelihood_ratio: Tensor

    @classmethod
    def nothing(cls, count: int) -> Classified:
        """Of particles nobody has looked at yet."""
        label, flat = torch.zeros(count, dtype=torch.long), torch.zeros(count)
        return cls(label, flat, torch.zeros(count, 2), flat.clone(), flat.clone())

    @classmethod
    def best(cls, places: GridCandidates) -> Classified:
        """The first place of each particle."""
        return cls(
            places.template[:, 0],
            places.angle_rad[:, 0],
            places.shift_angstrom[:, 0],
            torch.softmax(places.log_likelihood_ratio / 2, 1)[:, 0],
            places.log_likelihood_ratio[:, 0],
        )

    def placed(self, rows: Tensor, other: Classified) -> Classified:
        """With those of some particles in the place of what was known."""
        old, new = vars(self), vars(other)
        return Classified(**{k: old[k].index_copy(0, rows, new[k].to(old[k])) for k in old})


class ClassAverages:
    """The rounds; one call of :meth:`step` is one of them.

    Args:
        images: protein positive.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        half: long ``(n,)`` of 1 and 2, whose averages are compared.
        config: settings.
        generator: of what is drawn, on the CPU.
        device: where to compute; the CPU by default.

    Attributes:
        averages: class images ``(k, n, n)``, protein positive.
        sizes: particles of each in the last round, ``(k,)``.
        frc: correlation by shell of the two halves of each class, which were aligned together,
            ``(k, n // 2 + 1)``; 0 beyond the band.
        found: of every particle.

    Raises:
        ValueError: fewer images than classes.
    """

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        half: Tensor,
        config: ClassConfig,
        *,
        generator: torch.Generator,
        device: torch.device | None = None,
    ) -> None:
        if len(images) < config.classes:
            raise ValueError(f"{len(images)} images for {config.classes} classes; ask for fewer")
        self.images, self.optics, self.half = images, optics, half
        self.pixel_size_angstrom, self.config = pixel_size_angstrom, config
        self._generator, self.device = generator, device or torch.device("cpu")
        n, count = images.box_size, config.classes
        self._top = min(config.radius or n, (n - 1) // 2)
        self.radius = min(self._top, config.start_radius)
        self.noise_power = shell_power(images, torch.arange(len(images))).float()
        self._least_noise = _LEAST_NOISE * self.noise_power
        self.round = 0
        self.found = Classified.nothing(len(images))
        self.averages = self._seeds(count)
        self.sizes = torch.zeros(count)
        self.frc = torch.zeros(count, n // 2 + 1)

    @property
    def done(self) -> bool:
        """Whether all rounds are done."""
        return self.round >= self.config.rounds

    @property
    def progress(self) -> float:
        """Share of the work that is done."""
        counts = [self._count(t) for t in range(self.config.rounds)]
        return sum(counts[: self.round]) / sum(counts)

    @property
    def _length(self) -> float:
        return self.images.box_size * self.pixel_size_angstrom

    def _count(self, t: int) -> int:
        """How many particles a round takes."""
        if t >= self.config.rounds - self.config.last_rounds:
            return len(self.images)
        return min(len(self.images), self.config.images_per_class * self.config.classes)

    def _rows(self) -> Tensor:
        """The particles of a round."""
        total, count = len(self.images), self._count(self.round)
        if count == total:
            return torch.arange(total)
        return torch.randperm(total, generator=self._generator)[:count].sort().values

    def _some(self, rows: Tensor) -> Optics | None:
        return None if self.optics is None else self.optics[rows].to(self.device)

    def _seeds(self, count: int) -> Tensor:
        """Single particles, drawn at random, with their phases set right."""
        band = FrequencyBand(self.images.box_size, self.pixel_size_angstrom, self.radius)
        rows = torch.randperm(len(self.images), generator=self._generator)[:count].sort().values
        images = self.images.read(rows).to(self.device, torch.float32)
        optics = self._some(rows)
        if optics is not None:
            transfer = ctf_half(images.shape[-1], self.pixel_size_angstrom, optics)
            images = torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=images.shape[-2:])
        grid = PolarGrid(band.box_size, band.radius)
        return self._shown(to_polar(band.images(images), grid), band)

    def _shown(self, polar: Tensor, band: FrequencyBand) -> Tensor:
        """Images of the full box from class spectra: no background, nothing beyond the disc."""
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
        """One round; numbers of it."""
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

        def align(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Polar, GridCandidates]:
            mine, images = batch[0], batch[1].to(self.device, torch.float32)
            optics = self._some(mine)
            polar = aligner.polar(images, optics)
            # seeds have no scale
            scale = torch.ones(len(mine), device=self.device) if self.round else None
            stream = numbered_generator(self.device, seed, int(mine[0]))
            places = aligner(images, optics, scale, polar=polar, draws=draws, generator=stream)
            return mine, polar, places

        rows, sums = self._rows(), ClassSums(aligner)
        batches = read_ahead(self.images, rows, max_batch=_AT_ONCE)
        for mine, polar, places in parallel_map(align, batches, self.device):
            drawn = places.ranked(0, 1) if places.drawn is None else places.drawn
            sums.add(polar, drawn, self.half[mine].to(self.device) - 1)
            self.found = self.found.placed(mine, Classified.best(places))
        agreeing = self._average(sums, band)
        self.round += 1
        found = self.found
        return {
            "band_angstrom": self._length / band.radius,
            "agreeing_angstrom": self._length / agreeing,
            "posterior": float(found.posterior[rows].mean()),
            "log_likelihood_ratio": float(found.log_likelihood_ratio[rows].mean()),
            "smallest_class": float(self.sizes.min()),
        }

    def _average(self, sums: ClassSums, band: FrequencyBand) -> int:
        """New class images, noise and band; the last shell up to which halves agree."""
        n, numerator, weight = self.images.box_size, sums.numerator, sums.weight
        noise, inside = (sums.left / sums.images).float(), slice(1, band.radius + 1)
        left = noise.cpu() * (n / band.box_size) ** 6
        self.noise_power[inside] = left.maximum(self._least_noise[inside])
        both, total = numerator.sum(0), weight.sum(0)
        noise = noise[:, None]
        signal = (both.abs().square() - noise * total).sum((0, 2)) / total.square().sum((0, 2))
        signal = signal.clamp_min(max(_FLOOR * float(signal.max()), 1e-6 * float(noise.max())))
        ratio = noise / signal[:, None]
        shown = self._shown(both / (total + ratio), band)
        halves = [self._shown(numerator[h] / (weight[h] + ratio), band) for h in (0, 1)]
        self.sizes = sums.sizes.cpu()
        self.frc, agreeing = self._agreement(halves, band)
        grown = max(band.radius + 1, math.floor(self.config.growth * band.radius))
        self.radius = min(self._top, grown, max(agreeing + 1, self.config.start_radius))
        if self.round < self.config.rounds - self.config.last_rounds:
            shown = self._shared(shown, halves)
        self.averages = shown.cpu()
        return agreeing

    def _agreement(self, halves: list[Tensor], band: FrequencyBand) -> tuple[Tensor, int]:
        """Correlation of halves by shell of each class, and the last shell where all agree."""
        grid = PolarGrid(band.box_size, band.radius)
        one, two = (to_polar(band.images(half), grid) for half in halves)
        cross = (one * two.conj()).real.sum(2)
        power = one.abs().square().sum(2), two.abs().square().sum(2)
        frc = torch.zeros(len(one), self.images.box_size // 2 + 1)
        frc[:, 1 : band.radius + 1] = (cross / (power[0] * power[1]).sqrt().clamp_min(1e-20)).cpu()
        pooled = cross.sum(0) / (power[0].sum(0) * power[1].sum(0)).sqrt().clamp_min(1e-20)
        below = (pooled < _AGREE).nonzero().flatten()
        return frc, max(1, int(below[0])) if len(below) else band.radius

    def _shared(self, shown: Tensor, halves: list[Tensor]) -> Tensor:
        """Classes that have lost their particles get half of the largest ones."""
        shown, sizes = shown.clone(), self.sizes.clone()
        least = _LEAST_SHARE * float(sizes.mean())
        for small in sizes.argsort():
            large = int(sizes.argmax())
            if float(sizes[small]) >= least or float(sizes[large]) < 2 * least:
                break
            shown[large], shown[small] = halves[0][large], halves[1][large]
            sizes[large] = sizes[small] = sizes[large] / 2
        return shown

    def result(self) -> tuple[Tensor, Tensor, Tensor, Classified]:
        """Class images, sizes and FRC, the largest class first, and what was found in that order.

        Classes that no particle has are left out.
        """
        sizes = torch.bincount(self.found.label, minlength=len(self.averages))
        order = sizes.argsort(descending=True, stable=True)
        order = order[sizes[order] > 0]
        rank = torch.zeros(len(self.averages), dtype=torch.long)
        rank[order] = torch.arange(len(order))
        found = replace(self.found, label=rank[self.found.label])
        return self.averages[order], sizes[order], self.frc[order], found

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on bitwise."""
        return {
            "round": self.round,
            "radius": self.radius,
            "averages": self.averages,
            "sizes": self.sizes,
            "frc": self.frc,
            "noise_power": self.noise_power.clone(),
            "found": dict(vars(self.found)),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same images and settings."""
        self.round, self.radius = int(state["round"]), int(state["radius"])
        self.averages, self.sizes, self.frc = state["averages"], state["sizes"], state["frc"]
        self.noise_power = state["noise_power"].clone()
        self.found = Classified(**state["found"])
        self._generator.set_state(state["generator"])
