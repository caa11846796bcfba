r"""Estimate of defocus and contrast of micrographs, from their particles under a map.

With :math:`\Delta` the change of the mean defocus and :math:`\theta = \pi\lambda |k|^2 \Delta`, the
CTF is :math:`c(\Delta) = c\cos\theta + q\sin\theta`, where q is the CTF with 90 degrees more phase.
The log likelihood ratio of the particles of a micrograph,

.. math::

    L(\Delta, a) = \sum_k 2 a\, c(\Delta) X - a^2 c(\Delta)^2 P, \qquad
    X = w\, \Re\, \bar s_t \hat y\, \overline{\hat V}, \quad P = w\, |\hat V|^2,

with the slice of the map under each pose, hence needs five sums only, of :math:`c X`, :math:`q X`,
:math:`c^2 P`, :math:`c q P` and :math:`q^2 P` in bins of :math:`|k|`: slices are made once, and
any change costs little. The best scale is :math:`a = \sum c X / \sum c^2 P`. The change is found
on a grid, then by Gauss-Newton steps; its matrix gives the errors.

The map must be made without these particles: their own noise in it carries their present CTF and
biases the estimate towards it. Its amplitudes are first scaled to those in the images, bin by bin
and the same for all micrographs, since a blurred or filtered map would look like a wrong defocus.

Estimates are shrunk towards no change by a normal prior, whose width is the spread of the estimates
beyond their errors (empirical Bayes): micrographs with little information stay. A single particle
is a micrograph of its own, whose prior lies around the change of its true micrograph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.images import ImageSource
from vitreous.core.params import Optics
from vitreous.methods.em.image_record import ImageRecord
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.physics.ctf import electron_wavelength_angstrom

_BIN_RAD = 0.05  # phase across the last bin of |k|, at the largest change
_LEAST_BINS = 32
_GRID_RAD = 0.5  # phase between changes that are tried, at the band's edge
_FINE_GRID_RAD = 0.25
_LEAST_SPREAD_ANGSTROM = 5.0
_LEAST_GRID = 2  # changes to each side of none
_STEPS = 12
_LEAST_SCALE = 0.1
_MOST_AMPLITUDE = 10.0
_SPREAD_STEPS = 30


@dataclass(frozen=True)
class MicrographOptics(ImageRecord):
    """Estimates for each micrograph, every field float64 ``(m,)``.

    Args:
        particles: number of particles used.
        defocus_change_angstrom: to be added to U and V.
        defocus_error_angstrom: standard deviation by the particles alone, without the prior;
            infinite where they carry no information.
        scale: of the particles' contrast, 1 on average over particles.
        scale_error: standard deviation of the scale.
    """

    particles: Tensor
    defocus_change_angstrom: Tensor
    defocus_error_angstrom: Tensor
    scale: Tensor
    scale_error: Tensor


@dataclass(frozen=True)
class ScaledImages:
    """Images of a source, each multiplied by a factor ``(b,)``."""

    images: ImageSource
    factor: Tensor

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        return self.images.box_size

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images ``(b, n, n)`` of these rows."""
        read = self.images.read(indices)
        return read * self.factor[indices].to(read)[:, None, None]


def shrunk(value: Tensor, variance: Tensor) -> Tensor:
    """Return posterior means under a normal prior around 0, whose width the values give.

    Args:
        value: ``(m,)``, normal with this variance around the truth.
        variance: ``(m,)``; infinite where nothing is known.

    >>> shrunk(torch.tensor([0.5, -0.5]), torch.ones(2))  # no more than by chance
    tensor([0., -0.])
    >>> shrunk(torch.tensor([2.0, -2.0]), torch.ones(2))
    tensor([ 1.5000, -1.5000])
    """
    known = variance.isfinite()
    if not bool(known.any()):
        return torch.zeros_like(value)
    d, v = value[known], variance[known]
    spread = d.square().mean()
    for _ in range(_SPREAD_STEPS):  # the likelihood's maximum
        weight = (v + spread).clamp_min(1e-300).square().reciprocal()
        spread = ((weight * (d.square() - v)).sum() / weight.sum()).clamp_min(0)
    share = spread / (spread + variance).clamp_min(1e-300)
    return torch.where(known, value, 0.0) * share


@dataclass(frozen=True)
class ImageTerms:
    """Images and their slices at the points of a band, whitened.

    Args:
        c: CTF, real ``(b, points)``.
        q: the same with 90 degrees more phase.
        values: of the images, their shift undone, complex ``(b, points)``.
        slices: of the map, times the scale of each particle, without CTF.
        wavelength_angstrom: float64 ``(b,)``.
    """

    c: Tensor
    q: Tensor
    values: Tensor
    slices: Tensor
    wavelength_angstrom: Tensor

    def with_defocus_change(self, change_angstrom: Tensor, squared: Tensor) -> ImageTerms:
        """Return the terms for optics of another defocus.

        Args:
            change_angstrom: of each image ``(b,)``.
            squared: |k|^2 of each point, 1/Å^2.
        """
        theta = math.pi * (self.wavelength_angstrom * change_angstrom)[:, None] * squared
        cos, sin = theta.cos().float(), theta.sin().float()
        return replace(self, c=self.c * cos + self.q * sin, q=self.q * cos - self.c * sin)


def image_terms(
    refiner: PoseRefiner,
    images: Tensor,
    optics: Optics,
    rotation: Tensor,
    shift_angstrom: Tensor,
) -> Iterator[tuple[Tensor, ImageTerms]]:
    """Yield rows of images, and their terms, as many as memory holds at a time.

    Args:
        refiner: of a map made without the particles, and of the band to compare in.
        images: full box, ``(b, n, n)``.
        optics: of each.
        rotation: ``(b, 3, 3)``.
        shift_angstrom: ``(b, 2)``.
    """
    quadrature = replace(optics, phase_shift_deg=optics.phase_shift_deg + 90)
    wavelength = electron_wavelength_angstrom(optics.voltage_kv.double())
    every = torch.arange(len(images), device=images.device)
    for batch in torch.split(every, refiner.batch_size()) if len(images) else ():
        small = refiner.band.images(images[batch])
        measured = refiner.measure(small, optics[batch])
        q = refiner.measure(small, quadrature[batch]).transfer
        values, slices = refiner.shift_corrected(measured, rotation[batch], shift_angstrom[batch])
        yield batch, ImageTerms(measured.transfer, q, values, slices, wavelength[batch])


def scale_to_images(
    cross: Tensor, power: Tensor, linear: Tensor, quadratic: Tensor, bins: Tensor | None = None
) -> None:
    """Scale the map's amplitudes, in every bin of |k|, to those in the images; changes its sums.

    Args:
        cross, power: sums ``(m, points)`` of images times model and of the model's square.
        linear, quadratic: sums ``(..., m, points)`` that have the map once, and twice.
        bins: of each point, long ``(points,)``; None: every point is one.
    """
    cross, power = cross.sum(0), power.sum(0)
    if bins is not None:
        empty = cross.new_zeros(int(bins.max()) + 1)
        cross, power = (empty.index_add(0, bins, one) for one in (cross, power))
    factor = (cross / power.clamp_min(1e-300)).clamp(0, _MOST_AMPLITUDE)
    factor = factor if bins is None else factor[bins]
    linear *= factor
    quadratic *= factor**2


class OpticsTally:
    """Sums over particles that give defocus and scale of their micrographs.

    Args:
        refiner: of a map made without the particles, and of the band to compare in.
        micrographs: number of micrographs.
        range_angstrom: largest change of defocus to either side.
    """

    def __init__(self, refiner: PoseRefiner, micrographs: int, range_angstrom: float) -> None:
        self.refiner, self.range_angstrom = refiner, range_angstrom
        band = refiner.band
        self._length = band.box_size * band.pixel_size_angstrom
        squared = refiner.frequency_squared().double() / self._length**2
        self._edge = float(squared.max())
        phase = math.pi * 0.05 * self._edge * range_angstrom  # 0.05 Å: longer than any wavelength
        bins = max(_LEAST_BINS, math.ceil(2 * phase / _BIN_RAD))
        self._bin = ((squared / self._edge).sqrt() * bins).long().clamp(max=bins - 1)
        self._squared = squared.new_zeros(bins).index_add_(0, self._bin, squared)
        count = torch.bincount(self._bin, minlength=bins).clamp_min(1)
        self._squared = self._squared / count
        self._sums = squared.new_zeros(5, micrographs, bins)
        self._count = squared.new_zeros(micrographs)
        self._wavelength = squared.new_zeros(micrographs)

    def add(self, terms: ImageTerms, micrograph: Tensor) -> None:
        """Add particles of the micrographs ``micrograph (b,)`` to the sums.

        The changes refer to the optics of the terms.
        """
        c, q, slices = terms.c, terms.q, terms.slices
        self._count.index_add_(0, micrograph, torch.ones_like(terms.wavelength_angstrom))
        self._wavelength.index_add_(0, micrograph, terms.wavelength_angstrom)
        cross = (terms.values.conj() * slices).real
        power = slices.real.square() + slices.imag.square()
        products = (c * cross, q * cross, c * c * power, c * q * power, q * q * power)
        for total, product in zip(self._sums, products, strict=True):
            binned = total.new_zeros(len(micrograph), total.shape[1])
            binned.index_add_(1, self._bin, product.double())
            total.index_add_(0, micrograph, binned)

    def estimates(
        self, *, defocus: bool, scale: bool, expected_angstrom: Tensor | None = None
    ) -> MicrographOptics:
        """Return the estimates for each micrograph.

        Args:
            defocus: whether it may change.
            scale: whether it may differ from 1.
            expected_angstrom: change of each, around which the changes spread, as those of
                particles around their micrograph's; None: they spread around none.
        """
        scale_to_images(self._sums[0], self._sums[2], self._sums[:2], self._sums[2:])
        zero = torch.zeros_like(self._count)
        change, variance = zero, zero
        if defocus and expected_angstrom is None:
            change, variance = self.changes()
        elif defocus and expected_angstrom is not None:
            change, variance = self.changes_around(expected_angstrom.to(zero))
        _, a, matrix = self._fit(change)
        p, pq, qq = matrix
        known = p - pq.square() / qq.clamp_min(1e-300) if defocus else p
        if defocus and expected_angstrom is None:
            change = shrunk(change, variance)
        factor, spread = torch.ones_like(zero), zero
        if scale:
            weight = self._count / self._count.sum().clamp_min(1)
            mean = (weight * a).sum().clamp_min(1e-6)
            spread = torch.where(known > 0, 1 / (known.clamp_min(1e-300) * mean**2), torch.inf)
            above = (1 + shrunk(a / mean - 1, spread)).clamp_min(_LEAST_SCALE)
            factor = torch.where(self._count > 0, above / (weight * above).sum(), factor)
        return MicrographOptics(self._count.clone(), change, variance.sqrt(), factor, spread.sqrt())

    def changes(self) -> tuple[Tensor, Tensor]:
        """Return the best changes of defocus and their variances ``(m,)``, not shrunk."""
        side, grid, ratios = self._on_grid(_GRID_RAD)
        best = grid[ratios.argmax(0)]
        log_likelihood_ratio = ratios.amax(0)
        reach = torch.full_like(best, self.range_angstrom / side)
        for _ in range(_STEPS):
            slope, information = self._newton(best)
            move = (slope / information.clamp_min(1e-300)).maximum(-reach).minimum(reach)
            tried = (best + move).clamp(-self.range_angstrom, self.range_angstrom)
            reached = self._fit(tried)[0]
            better = reached > log_likelihood_ratio
            best = torch.where(better, tried, best)
            log_likelihood_ratio = torch.where(better, reached, log_likelihood_ratio)
            reach = torch.where(better, reach, move.abs() / 2)
        information = self._newton(best)[1]
        known = information > self.range_angstrom**-2
        variance = torch.where(known, 1 / information.clamp_min(1e-300), torch.inf)
        return torch.where(known, best, 0.0), variance

    def changes_around(self, expected_angstrom: Tensor) -> tuple[Tensor, Tensor]:
        """Return posterior means and variances of the changes of defocus, ``(m,)``.

        The likelihood of a single particle has many maxima, so the posterior is summed over a grid.
        Its prior is normal around ``expected_angstrom (m,)``; its width is that of the posteriors
        of all particles (empirical Bayes).
        """
        _, grid, ratios = self._on_grid(_FINE_GRID_RAD)
        apart = (grid[:, None] - expected_angstrom).square()
        known = self._count > 0
        spread = apart.new_tensor((self.range_angstrom / 2) ** 2)
        for _ in range(_SPREAD_STEPS):
            weight = torch.softmax(ratios / 2 - apart / (2 * spread), 0)
            spread = (weight * apart).sum(0)[known].mean().clamp_min(_LEAST_SPREAD_ANGSTROM**2)
        mean = (weight * grid[:, None]).sum(0)
        variance = (weight * (grid[:, None] - mean).square()).sum(0)
        return torch.where(known, mean, expected_angstrom), torch.where(known, variance, torch.inf)

    def _on_grid(self, step_rad: float) -> tuple[int, Tensor, Tensor]:
        """Return points to each side of 0, changes of defocus ``(g,)``, and L of each ``(g, m)``.

        ``step_rad`` is the phase between changes at the band's edge.
        """
        step = step_rad / (math.pi * 0.02 * self._edge)
        side = max(_LEAST_GRID, math.ceil(self.range_angstrom / step))
        grid = torch.linspace(-1, 1, 2 * side + 1).to(self._count) * self.range_angstrom
        ratios = torch.stack([self._fit(one.expand_as(self._count))[0] for one in grid])
        return side, grid, ratios

    def _turn(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cosine and sine of theta, and theta by change, ``(m, bins)``."""
        wavelength = self._wavelength / self._count.clamp_min(1)
        rate = math.pi * wavelength[:, None] * self._squared
        theta = rate * change[:, None]
        return theta.cos(), theta.sin(), rate

    def _fit(self, change: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return L with the best scale, that scale, and sums of m^2, m m' / a and m'^2 / a^2."""
        cx, qx, cc, cq, qq = self._sums
        cos, sin, rate = self._turn(change)
        cross = (cx * cos + qx * sin).sum(1)
        p = (cc * cos**2 + 2 * cq * cos * sin + qq * sin**2).sum(1)
        pq = (rate * ((qq - cc) * cos * sin + cq * (cos**2 - sin**2))).sum(1)
        dd = (rate**2 * (cc * sin**2 - 2 * cq * cos * sin + qq * cos**2)).sum(1)
        a = cross.clamp_min(0) / p.clamp_min(1e-300)
        return a * cross, a, (p, pq, dd)

    def _newton(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slope of L / 2 over the change, and its information, the scale being free."""
        cx, qx = self._sums[:2]
        cos, sin, rate = self._turn(change)
        _, a, (p, pq, dd) = self._fit(change)
        slope = a * ((rate * (qx * cos - cx * sin)).sum(1) - a * pq)
        return slope, a**2 * (dd - pq**2 / p.clamp_min(1e-300)).clamp_min(0)
