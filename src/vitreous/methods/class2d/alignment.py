r"""Particles brought onto class images: the best class, turn and shift of each, and their sums.

Everything is done in polar Fourier coordinates (:mod:`vitreous.physics.polar`), where turning is a
cyclic shift. A search compares low frequencies with all classes, turns and shifts. The best few
places of each particle are then refined at all frequencies of the round by Gauss-Newton steps: seen
from the class image P the residual is linear in a small turn :math:`\delta` and shift d,

.. math::

    r = y' - c'\,(P - \delta\, \partial_\varphi P - 2 \pi i\, (k \cdot d)\, P),

with image and CTF turned and shifted back, :math:`y'` and :math:`c'`, so that all products of
derivatives are made once for each class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.polar_search import GridCandidates, PolarSearch
from vitreous.methods.em.two_stage_search import AROUND, CENTRING_RADIUS, TwoStageSearch
from vitreous.physics.polar import PolarGrid, angular_derivative, to_polar, turn_circles

_KEPT = 4  # of what a search has found
_GRID_LOSS, _RIVAL = 0.3, 20.0  # what gains may lack of the best, as a share and at all, to be kept
_STEPS = 2
_DAMPING = 0.02
_LARGEST_STEP = 0.7  # radians of phase at the band's edge, for turns half a radius off the centre
_NEAR = 1.5  # steps of the search's grid: a place drawn so near to a refined one stands for it


@dataclass(frozen=True)
class Polar:
    """Images on half circles.

    Args:
        values: spectra ``(b, K, A / 2)``.
        transfer: CTFs, likewise.
    """

    values: Tensor
    transfer: Tensor

    def __getitem__(self, index: Tensor) -> Polar:
        """Some of them."""
        return Polar(self.values[index], self.transfer[index])


@dataclass(frozen=True)
class AlignmentFit:
    """One place of some images, and how it fits; a row for each.

    Args:
        label: long ``(p,)``, class.
        angle_rad: ``(p,)``.
        shift_angstrom: ``(p, 2)``.
        gain: ``(p,)``.
        gradient: half of the gain's, over turn and shift in the class image's axes, ``(p, 3)``.
        precision: its Gauss-Newton matrix, ``(p, 3, 3)``: the likelihood's inverse covariance.
    """

    label: Tensor
    angle_rad: Tensor
    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor
    gradient: Tensor
    precision: Tensor

    def or_better(self, other: AlignmentFit) -> AlignmentFit:
        """Of each image the one with the higher gain."""
        better = other.log_likelihood_ratio > self.log_likelihood_ratio
        old, new = vars(self), vars(other)
        wide = {name: better.view(-1, *[1] * (old[name].ndim - 1)) for name in old}
        return AlignmentFit(**{name: torch.where(wide[name], new[name], old[name]) for name in old})


class Aligner:
    """Finds every particle's place under class images.

    Args:
        averages: class images ``(k, n, n)``, full box, of the particles' grey values.
        band: the round's.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        shift_range_angstrom: farthest shift, Å.
        search_radius: highest shell at which all places are compared.
        as_they_lie: compare particles with classes without turning or shifting them.

    Attributes:
        grid: of the round's band.
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
        wide = FrequencyBand(
            band.full_box, band.full_pixel_angstrom, min(band.radius, search_radius)
        )
        self._search = self._searcher(wide, shift_range_angstrom)
        self._centring: TwoStageSearch[GridCandidates] | None = None
        near = AROUND * wide.shift_step_angstrom
        if shift_range_angstrom > near and wide.radius > CENTRING_RADIUS:
            first = FrequencyBand(band.full_box, band.full_pixel_angstrom, CENTRING_RADIUS)
            coarse = self._searcher(first, shift_range_angstrom)
            self._centring = TwoStageSearch(coarse, self._search)
        self._fine = self._searcher(band, 0.0)
        self.grid, self.templates = self._fine.grid, self._spectra(band)
        self._length = band.full_box * band.full_pixel_angstrom
        self._derive()

    def _spectra(self, band: FrequencyBand) -> Tensor:
        return to_polar(band.images(self._averages), PolarGrid(band.box_size, band.radius))

    def _searcher(self, band: FrequencyBand, shift_range_angstrom: float) -> PolarSearch:
        return PolarSearch(
            [self._spectra(band)],
            band,
            band.noise_power(self._noise_power),
            neighbours=torch.arange(len(self._averages), device=self._averages.device)[:, None],
            shift_range_angstrom=shift_range_angstrom,
        )

    def _derive(self) -> None:
        """Weighted conjugates of class images and derivatives, and products of all of them."""
        kx, ky = (k.to(self.templates.real) for k in self.grid.frequencies)
        shift = (-2j * math.pi / self._length) * self.templates
        all_of = [self.templates, -angular_derivative(self.templates), shift * kx, shift * ky]
        jets = torch.stack(all_of, 1).flatten(2)  # (k, 4, points)
        both_halves = 2.0  # of every circle
        weight = both_halves * self._fine.weight.expand(-1, self.grid.angles // 2).flatten()
        self._jets = weight * jets.conj()
        self._products = (self._jets[:, :, None] * jets[:, None]).real.flatten(1, 2)  # (k, 16, p)

    def polar(self, images: Tensor, optics: Optics | None) -> Polar:
        """Images of the full box ``(b, n, n)`` and their CTFs at the round's band."""
        transfer = self._fine.transfer(optics, len(images))
        return Polar(to_polar(self.band.images(images), self.grid), transfer)

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None,
        *,
        polar: Polar,
        draws: int,
        generator: torch.Generator,
    ) -> GridCandidates:
        """The best places, and ``draws`` drawn ones.

        Args:
            images: full box, ``(b, n, n)``.
            optics: CTF of each; None for none.
            scale: of the class images in each, ``(b,)``, ones for what is refined; None: the best
                for each place, and no refinement.
            polar: the images, see :meth:`polar`.
            draws: 0 for none.
            generator: of the draws, on the device.
        """
        if self._as_they_lie:
            return self._lying(polar, scale, draws, generator)
        if self._centring is None:
            cropped = self._search.band.images(images)
            found = self._search(cropped, optics, scale, draws=draws, generator=generator)
        else:
            found = self._centring(images, optics, scale, draws=draws, generator=generator)
        if self._search.band == self.band or scale is None:
            return found
        best, precision = self._refined(polar, found.ranked(0, _KEPT))
        if found.drawn is None:
            return best
        drawn = self._standing_for(found.drawn, best, precision, generator)
        return replace(best, drawn=drawn)

    def seen(
        self, polar: Polar, angle_rad: Tensor, shift_angstrom: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images and CTFs turned and shifted back, as their class images lie.

        Args:
            polar: ``p`` images.
            angle_rad: ``(p,)``, rounded to the grid's.
            shift_angstrom: ``(p, 2)``.
        """
        steps = self._fine.steps(angle_rad)
        turned = turn_circles(polar.values * self._fine.ramp(shift_angstrom), steps)
        return turned, turn_circles(polar.transfer, steps)

    def _lying(
        self, polar: Polar, scale: Tensor | None, draws: int, generator: torch.Generator
    ) -> GridCandidates:
        """The best classes of images that are neither turned nor shifted."""
        image = (polar.values * polar.transfer).flatten(1)
        cross = (image @ self._jets[:, 0].mT).real
        power = polar.transfer.square().flatten(1) @ self._products[:, 0].mT
        if scale is None:
            log_likelihood_ratio = cross.clamp_min(0).square() / power.clamp_min(1e-20)
        else:
            log_likelihood_ratio = scale[:, None] * (2 * cross - scale[:, None] * power)

        def place(label: Tensor) -> GridCandidates:
            zero = torch.zeros(label.shape, device=log_likelihood_ratio.device)
            return GridCandidates(
                label, zero, torch.stack([zero, zero], -1), log_likelihood_ratio.gather(1, label)
            )

        best = place(
            log_likelihood_ratio.topk(min(_KEPT, log_likelihood_ratio.shape[1]), dim=1).indices
        )
        if draws == 0:
            return best
        drawn = torch.softmax(log_likelihood_ratio / 2, 1).multinomial(
            draws, True, generator=generator
        )
        return replace(best, drawn=place(drawn))

    def _refined(self, polar: Polar, found: GridCandidates) -> tuple[GridCandidates, Tensor]:
        """Places refined at the round's band, the best first, and the precision of each.

        What could not become the best any more has a gain of minus infinity.
        """
        best = found.log_likelihood_ratio[:, :1]
        kept = found.log_likelihood_ratio >= best - _GRID_LOSS * best.abs() - _RIVAL
        image, rank = kept.nonzero(as_tuple=True)
        mine, label = polar[image], found.template[kept]
        fit = self._fit(mine, label, found.angle_rad[kept], found.shift_angstrom[kept])
        now = fit
        for _ in range(_STEPS):
            now = self._fit(mine, label, *self._step(now))
            fit = fit.or_better(now)
        shape = found.log_likelihood_ratio.shape
        log_likelihood_ratio = torch.full_like(found.log_likelihood_ratio, -torch.inf).index_put(
            (image, rank), fit.log_likelihood_ratio
        )
        angle = found.angle_rad.index_put((image, rank), fit.angle_rad)
        shift = found.shift_angstrom.index_put((image, rank), fit.shift_angstrom)
        precision = fit.precision.new_zeros(*shape, 3, 3)
        precision = precision.index_put((image, rank), fit.precision)
        log_likelihood_ratio, order = log_likelihood_ratio.sort(dim=1, descending=True, stable=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        places = GridCandidates(
            found.template[rows, order],
            angle[rows, order],
            shift[rows, order],
            log_likelihood_ratio,
        )
        return places, precision[rows, order]

    def _fit(self, polar: Polar, label: Tensor, angle_rad: Tensor, shift: Tensor) -> AlignmentFit:
        """Gain at places whose angle is that of the grid, with its derivatives."""
        turned, transfer = self.seen(polar, angle_rad, shift)
        image, power = (turned * transfer).flatten(1), transfer.square().flatten(1)
        cross, products = power.new_empty(len(label), 4), power.new_empty(len(label), 16)
        # one class at a time: nothing is copied for each image
        for k in torch.unique(label).tolist():
            rows = (label == k).nonzero().flatten()
            cross[rows] = (image[rows] @ self._jets[k].mT).real
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
        """Angles and shifts after a Gauss-Newton step, which may not go far."""
        damped = fit.precision + _DAMPING * torch.diag_embed(
            fit.precision.diagonal(dim1=1, dim2=2) + 1e-6
        )
        change = torch.linalg.solve(damped, fit.gradient)
        radius = self.band.radius
        reach = (math.pi * radius / 2) * change[:, :1].abs() + (
            2 * math.pi * radius / self._length
        ) * change[:, 1:].norm(dim=1, keepdim=True)
        change = change * (_LARGEST_STEP / reach.clamp_min(_LARGEST_STEP))
        return self._after(fit.angle_rad, fit.shift_angstrom, change)

    @staticmethod
    def _after(angle_rad: Tensor, shift: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Angle ``(...,)`` and shift ``(..., 2)`` after a change ``(..., 3)`` as of a fit."""
        cosine, sine = angle_rad.cos(), angle_rad.sin()
        x, y = change[..., 1], change[..., 2]
        moved = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
        return (angle_rad + change[..., 0]) % (2 * math.pi), shift + moved

    def _standing_for(
        self,
        drawn: GridCandidates,
        best: GridCandidates,
        precision: Tensor,
        generator: torch.Generator,
    ) -> GridCandidates:
        """Drawn places, those near a refined one drawn from the likelihood around that instead."""
        search = self._search
        turn = (drawn.angle_rad[:, :, None] - best.angle_rad[:, None] + math.pi) % (2 * math.pi)
        apart = (drawn.shift_angstrom[:, :, None] - best.shift_angstrom[:, None]).norm(dim=-1)
        steps = torch.maximum(
            (turn - math.pi).abs() * search.grid.angles / (2 * math.pi),
            apart / search.band.shift_step_angstrom,
        )
        other = drawn.template[:, :, None] != best.template[:, None]
        steps = steps.masked_fill(other | ~best.log_likelihood_ratio.isfinite()[:, None], torch.inf)
        least, place = steps.min(-1)
        rows = torch.arange(len(place), device=place.device)[:, None]
        factor = torch.linalg.cholesky_ex(
            precision[rows, place] + 1e-6 * torch.eye(3, device=place.device)
        ).L
        noise = torch.randn(*place.shape, 3, 1, generator=generator, device=place.device)
        around = torch.linalg.solve_triangular(factor.mT, noise, upper=True)[..., 0]
        angle, shift = self._after(
            best.angle_rad[rows, place], best.shift_angstrom[rows, place], around
        )
        near = least < _NEAR
        return GridCandidates(
            drawn.template,
            torch.where(near, angle, drawn.angle_rad),
            torch.where(near[..., None], shift, drawn.shift_angstrom),
            drawn.log_likelihood_ratio,
        )


class ClassSums:
    """Numerators and weights of all classes, of two halves, and what is left of the images.

    Args:
        aligner: whose places are summed.

    Attributes:
        left: sum over images of the mean power of what the class images leave, ``(K,)``.
        images: how many.
    """

    def __init__(self, aligner: Aligner) -> None:
        self._aligner, self._classes = aligner, len(aligner.templates)
        device = aligner.templates.device
        shape = (2 * self._classes, *aligner.templates.shape[1:])
        self._numerator = torch.zeros(shape, dtype=torch.complex64, device=device)
        self._weight = torch.zeros(shape, device=device)
        self._sizes = torch.zeros(len(self._weight), device=device)
        self.left = torch.zeros(shape[1], dtype=torch.float64, device=device)
        self.images = 0

    def add(self, polar: Polar, places: GridCandidates, half: Tensor) -> None:
        """Images at places, all of which count alike.

        Args:
            polar: ``b`` images.
            places: one or more of each.
            half: long ``(b,)`` of 0 and 1.
        """
        many = places.log_likelihood_ratio.shape[1]
        for j in range(many):
            label = places.template[:, j]
            turned, transfer = self._aligner.seen(
                polar, places.angle_rad[:, j], places.shift_angstrom[:, j]
            )
            row = label + self._classes * half
            self._numerator.index_add_(0, row, transfer * turned / many)
            self._weight.index_add_(0, row, transfer.square() / many)
            self._sizes += torch.bincount(row, minlength=len(self._sizes)) / many
            rest = (turned - transfer * self._aligner.templates[label]).abs().square()
            self.left += rest.double().mean(2).sum(0) / many
        self.images += len(half)

    @property
    def numerator(self) -> Tensor:
        """Complex ``(2, k, K, A / 2)``."""
        return self._numerator.view(2, -1, *self._numerator.shape[1:])

    @property
    def weight(self) -> Tensor:
        """``(2, k, K, A / 2)``."""
        return self._weight.view(2, -1, *self._weight.shape[1:])

    @property
    def sizes(self) -> Tensor:
        """Particles of each class, ``(k,)``, fractions where they were drawn more than once."""
        return self._sizes.view(2, -1).sum(0)
