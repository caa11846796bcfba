r"""Alignment of particles to class images: class, in-plane rotation and shift, and class sums.

All computations are in polar Fourier coordinates (:mod:`vitreous.physics.polar`), where a rotation
is a cyclic shift. A search compares low frequencies with all classes, rotations and shifts. The
best few candidates of each particle are then refined at all frequencies of the round by
Gauss-Newton steps: in the frame of the class image P the residual is linear in a small rotation
:math:`\delta` and shift d,

.. math::

    r = y' - c'\,(P - \delta\, \partial_\varphi P - 2 \pi i\, (k \cdot d)\, P),

with image and CTF rotated and shifted back, :math:`y'` and :math:`c'`, so that all products of
derivatives are computed once for each class.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import ImageRecord, PoseRecord
from vitreous.methods.em.polar_search import GridCandidates, PolarSearch
from vitreous.methods.em.two_stage_search import TwoStageSearch
from vitreous.physics.polar import PolarGrid, angular_derivative, rotate_polar, to_polar

_REFINED_CANDIDATES = 4  # of a search
# candidates whose log-likelihood ratio is below the best by more than share + margin are dropped
_LOSS_SHARE, _LOSS_MARGIN = 0.3, 20.0
_STEPS = 2
_DAMPING = 0.02
_LARGEST_STEP = 0.7  # radians of phase at the band's edge, rotations taken at half a radius
_NEAR = 1.5  # steps of the search's grid: a draw so near to a refined candidate is replaced


@dataclass(frozen=True)
class PolarImages(ImageRecord):
    """Spectra of images on half circles, with their CTFs."""

    values: Tensor  # spectra ``(b, K, A / 2)``
    transfer: Tensor  # CTFs, of the same shape


@dataclass(frozen=True)
class AlignmentFit(PoseRecord):
    """Alignments of images, one a row, and how well they fit."""

    label: Tensor  # long ``(p,)``, class
    angle_rad: Tensor  # ``(p,)``
    shift_angstrom: Tensor  # ``(p, 2)``
    log_likelihood_ratio: Tensor  # ``(p,)``
    # half the gradient of ``log_likelihood_ratio`` over rotation and shift in the axes of the
    # class image, ``(p, 3)``
    gradient: Tensor
    # its Gauss-Newton matrix, ``(p, 3, 3)``: the inverse covariance of the posterior
    precision: Tensor


class Aligner:
    """Alignment of particles to class images.

    Args:
        averages: class images ``(k, n, n)``, full box, on the grey scale of the particles.
        band: frequency band of the round.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        shift_range_angstrom: largest shift, Å.
        search_radius: highest shell of the search over all classes, rotations and shifts.
        as_they_lie: compare particles with classes without rotating or shifting them.

    Attributes:
        grid: polar grid of the round's band.
        templates: spectra of the class images, ``(k, K, A / 2)``.
    """

    def __init__(
        self,
        averages: Tensor,
        band: FrequencyBand,
        noise_power: Tensor,
        *,
        shift_range_angstrom: float,
        search_radius: int,
        as_they_lie: bool = False,
    ) -> None:
        self.band, self._as_they_lie = band, as_they_lie
        self._averages, self._noise_power = averages, noise_power
        coarse = FrequencyBand(
            band.full_box, band.full_pixel_angstrom, min(band.radius, search_radius)
        )
        self._search = TwoStageSearch(self._polar_search, coarse, shift_range_angstrom)
        self._fine = self._polar_search(band, 0.0)
        self.grid, self.templates = self._fine.grid, self._spectra(band)
        self._length = band.full_box * band.full_pixel_angstrom
        self._derive()

    def _spectra(self, band: FrequencyBand) -> Tensor:
        return to_polar(band.images(self._averages), PolarGrid(band.box_size, band.radius))

    def _polar_search(self, band: FrequencyBand, shift_range_angstrom: float) -> PolarSearch:
        return PolarSearch(
            [self._spectra(band)],
            band,
            band.noise_power(self._noise_power),
            neighbours=torch.arange(len(self._averages), device=self._averages.device)[:, None],
            shift_range_angstrom=shift_range_angstrom,
        )

    def _derive(self) -> None:
        """Compute weighted conjugates of class images and derivatives, and all their products."""
        kx, ky = (k.to(self.templates.real) for k in self.grid.frequencies)
        shift = (-2j * math.pi / self._length) * self.templates
        turn = -angular_derivative(self.templates)
        # (k, 4, points): each class image and its three derivatives
        derivatives = torch.stack([self.templates, turn, shift * kx, shift * ky], 1).flatten(2)
        both_halves = 2.0  # of every circle
        weight = both_halves * self._fine.weight.expand(-1, self.grid.angles // 2).flatten()
        self._derivatives = weight * derivatives.conj()
        products = (self._derivatives[:, :, None] * derivatives[:, None]).real
        self._products = products.flatten(1, 2)  # (k, 16, points)

    def polar(self, images: Tensor, optics: Optics | None) -> PolarImages:
        """Return images of the full box ``(b, n, n)`` and their CTFs at the round's band."""
        transfer = self._fine.transfer(optics, len(images))
        return PolarImages(to_polar(self.band.images(images), self.grid), transfer)

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None,
        *,
        polar: PolarImages,
        draws: int,
        generator: torch.Generator,
    ) -> GridCandidates:
        """Return the best candidates of each image, and ``draws`` drawn ones.

        Args:
            images: full box, ``(b, n, n)``.
            optics: CTF of each image; None for none.
            scale: of the class images in each image, ``(b,)``, ones if candidates are to be
                refined; None: the best scale of each candidate, and no refinement.
            polar: the images, see :meth:`polar`.
            draws: number of draws; 0 for none.
            generator: of the draws, on the device.
        """
        if self._as_they_lie:
            return self._unaligned(polar, scale, draws, generator)
        candidates = self._search(images, optics, scale, draws=draws, generator=generator)
        if self._search.band == self.band or scale is None:
            return candidates
        best, precision = self._refined(polar, candidates.ranked(0, _REFINED_CANDIDATES))
        if candidates.sampled is None:
            return best
        drawn = self._refined_draws(candidates.sampled, best, precision, generator)
        return replace(best, sampled=drawn)

    def in_class_frame(
        self, polar: PolarImages, angle_rad: Tensor, shift_angstrom: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return images and CTFs rotated and shifted back into the frame of their class images.

        ``angle_rad (p,)`` is rounded to the angles of the grid; ``shift_angstrom`` is ``(p, 2)``.
        """
        steps = self._fine.steps(angle_rad)
        rotated = rotate_polar(polar.values * self._fine.ramp(shift_angstrom), steps)
        return rotated, rotate_polar(polar.transfer, steps)

    def _unaligned(
        self, polar: PolarImages, scale: Tensor | None, draws: int, generator: torch.Generator
    ) -> GridCandidates:
        """Return the best classes of images that are neither rotated nor shifted."""
        image = (polar.values * polar.transfer).flatten(1)
        cross = (image @ self._derivatives[:, 0].mT).real
        power = polar.transfer.square().flatten(1) @ self._products[:, 0].mT
        if scale is None:
            log_likelihood_ratio = cross.clamp_min(0).square() / power.clamp_min(1e-20)
        else:
            log_likelihood_ratio = scale[:, None] * (2 * cross - scale[:, None] * power)

        def candidates(label: Tensor) -> GridCandidates:
            zero = torch.zeros(label.shape, device=log_likelihood_ratio.device)
            return GridCandidates(
                label, zero, torch.stack([zero, zero], -1), log_likelihood_ratio.gather(1, label)
            )

        best = candidates(
            log_likelihood_ratio.topk(
                min(_REFINED_CANDIDATES, log_likelihood_ratio.shape[1]), dim=1
            ).indices
        )
        if draws == 0:
            return best
        drawn = torch.softmax(log_likelihood_ratio / 2, 1).multinomial(
            draws, True, generator=generator
        )
        return replace(best, sampled=candidates(drawn))

    def _refined(
        self, polar: PolarImages, candidates: GridCandidates
    ) -> tuple[GridCandidates, Tensor]:
        """Return candidates refined at the round's band, the best first, and their precision.

        Candidates that cannot become the best get a log-likelihood ratio of minus infinity.
        """
        best = candidates.log_likelihood_ratio[:, :1]
        kept = candidates.log_likelihood_ratio >= best - _LOSS_SHARE * best.abs() - _LOSS_MARGIN
        image, rank = kept.nonzero(as_tuple=True)
        kept_polar, label = polar[image], candidates.template[kept]
        fit = self._fit(
            kept_polar, label, candidates.angle_rad[kept], candidates.shift_angstrom[kept]
        )
        latest = fit
        for _ in range(_STEPS):
            latest = self._fit(kept_polar, label, *self._step(latest))
            fit = fit.with_better(latest)
        shape = candidates.log_likelihood_ratio.shape
        log_likelihood_ratio = torch.full_like(
            candidates.log_likelihood_ratio, -torch.inf
        ).index_put((image, rank), fit.log_likelihood_ratio)
        angle = candidates.angle_rad.index_put((image, rank), fit.angle_rad)
        shift = candidates.shift_angstrom.index_put((image, rank), fit.shift_angstrom)
        precision = fit.precision.new_zeros(*shape, 3, 3)
        precision = precision.index_put((image, rank), fit.precision)
        log_likelihood_ratio, order = log_likelihood_ratio.sort(dim=1, descending=True, stable=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        refined = GridCandidates(
            candidates.template[rows, order],
            angle[rows, order],
            shift[rows, order],
            log_likelihood_ratio,
        )
        return refined, precision[rows, order]

    def _fit(
        self, polar: PolarImages, label: Tensor, angle_rad: Tensor, shift: Tensor
    ) -> AlignmentFit:
        """Return log-likelihood ratio and derivatives at angles of the grid."""
        rotated, transfer = self.in_class_frame(polar, angle_rad, shift)
        image, power = (rotated * transfer).flatten(1), transfer.square().flatten(1)
        cross, products = power.new_empty(len(label), 4), power.new_empty(len(label), 16)
        # one class at a time, so that no derivatives are copied for each image
        for k in torch.unique(label).tolist():
            rows = (label == k).nonzero().flatten()
            cross[rows] = (image[rows] @ self._derivatives[k].mT).real
            products[rows] = power[rows] @ self._products[k].mT
        products = products.view(-1, 4, 4)
        return AlignmentFit(
            label,
            self._fine.steps(angle_rad) * (2 * math.pi / self.grid.angles),
            shift,
            2 * cross[:, 0] - products[:, 0, 0],
            cross[:, 1:] - products[:, 1:, 0],
            products[:, 1:, 1:],
        )

    def _step(self, fit: AlignmentFit) -> tuple[Tensor, Tensor]:
        """Return angles and shifts after a Gauss-Newton step of bounded length."""
        damped = fit.precision + _DAMPING * torch.diag_embed(
            fit.precision.diagonal(dim1=1, dim2=2) + 1e-6
        )
        change = torch.linalg.solve(damped, fit.gradient)
        radius = self.band.radius
        phase = (math.pi * radius / 2) * change[:, :1].abs() + (
            2 * math.pi * radius / self._length
        ) * change[:, 1:].norm(dim=1, keepdim=True)
        change = change * (_LARGEST_STEP / phase.clamp_min(_LARGEST_STEP))
        return self._moved(fit.angle_rad, fit.shift_angstrom, change)

    @staticmethod
    def _moved(angle_rad: Tensor, shift: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return angle ``(...,)`` and shift ``(..., 2)`` after a change ``(..., 3)`` of a fit."""
        cosine, sine = angle_rad.cos(), angle_rad.sin()
        x, y = change[..., 1], change[..., 2]
        change_of_shift = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
        return (angle_rad + change[..., 0]) % (2 * math.pi), shift + change_of_shift

    def _refined_draws(
        self,
        drawn: GridCandidates,
        best: GridCandidates,
        precision: Tensor,
        generator: torch.Generator,
    ) -> GridCandidates:
        """Return the draws; those near a refined candidate are drawn again from its posterior."""
        band = self._search.band
        angles = PolarGrid(band.box_size, band.radius).angles
        angle_difference = (drawn.angle_rad[:, :, None] - best.angle_rad[:, None] + math.pi) % (
            2 * math.pi
        )
        distance = (drawn.shift_angstrom[:, :, None] - best.shift_angstrom[:, None]).norm(dim=-1)
        steps = torch.maximum(
            (angle_difference - math.pi).abs() * angles / (2 * math.pi),
            distance / band.shift_step_angstrom,
        )
        other_class = drawn.template[:, :, None] != best.template[:, None]
        steps = steps.masked_fill(
            other_class | ~best.log_likelihood_ratio.isfinite()[:, None], torch.inf
        )
        fewest_steps, nearest = steps.min(-1)
        device = nearest.device
        rows = torch.arange(len(nearest), device=device)[:, None]
        factor = torch.linalg.cholesky_ex(
            precision[rows, nearest] + 1e-6 * torch.eye(3, device=device)
        ).L
        noise = torch.randn(*nearest.shape, 3, 1, generator=generator, device=device)
        change = torch.linalg.solve_triangular(factor.mT, noise, upper=True)[..., 0]
        angle, shift = self._moved(
            best.angle_rad[rows, nearest], best.shift_angstrom[rows, nearest], change
        )
        near = fewest_steps < _NEAR
        return GridCandidates(
            drawn.template,
            torch.where(near, angle, drawn.angle_rad),
            torch.where(near[..., None], shift, drawn.shift_angstrom),
            drawn.log_likelihood_ratio,
        )


class ClassSums:
    """Numerators and weights of all classes, of two half sets, and the power of the residuals.

    Args:
        aligner: of the round, whose candidates are summed.

    Attributes:
        numerator, weight: of each half set and class, ``(2, k, K, A / 2)``, the former complex.
        residual_power: sum over images of the mean power of image minus class image by circle,
            ``(K,)``.
        images: number of images added.
    """

    def __init__(self, aligner: Aligner) -> None:
        self._aligner, self._classes = aligner, len(aligner.templates)
        device = aligner.templates.device
        shape = (2, *aligner.templates.shape)
        self.numerator = torch.zeros(shape, dtype=torch.complex64, device=device)
        self.weight = torch.zeros(shape, device=device)
        self._sizes = torch.zeros(2 * self._classes, device=device)
        self.residual_power = torch.zeros(shape[2], dtype=torch.float64, device=device)
        self.images = 0

    def add(self, polar: PolarImages, candidates: GridCandidates, half: Tensor) -> None:
        """Add images by their candidates of equal weight; ``half`` is 0 or 1, long ``(b,)``."""
        count = candidates.log_likelihood_ratio.shape[1]
        for j in range(count):
            label = candidates.template[:, j]
            rotated, transfer = self._aligner.in_class_frame(
                polar, candidates.angle_rad[:, j], candidates.shift_angstrom[:, j]
            )
            row = label + self._classes * half
            self.numerator.flatten(0, 1).index_add_(0, row, transfer * rotated / count)
            self.weight.flatten(0, 1).index_add_(0, row, transfer.square() / count)
            self._sizes += torch.bincount(row, minlength=len(self._sizes)) / count
            residual = (rotated - transfer * self._aligner.templates[label]).abs().square()
            self.residual_power += residual.double().mean(2).sum(0) / count
        self.images += len(half)

    @property
    def sizes(self) -> Tensor:
        """Number of particles of each class, ``(k,)``; fractional where there are several draws."""
        return self._sizes.view(2, -1).sum(0)
