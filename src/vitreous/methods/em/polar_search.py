r"""Comparison of images with templates, in-plane angles and shifts in polar Fourier coordinates.

The squared error of image y under CTF c, scale a, shift t, template P and in-plane angle
:math:`\alpha` is, with the weight w of each frequency (one over the noise power),

.. math::

    E = \langle y, y\rangle_w - 2 a \langle c\, \bar s_t\, y, P_\alpha\rangle_w
        + a^2 \langle c^2, |P_\alpha|^2\rangle_w,

and the search is for the largest log likelihood ratio :math:`L = \langle y, y\rangle_w - E`: twice
the logarithm of the likelihood, up to a constant. In polar Fourier coordinates
(:mod:`vitreous.physics.polar`) both products are cyclic correlations over the angle. Harmonic by
harmonic they are matrix products over the radii, (images and shifts) times templates; a last
product brings all harmonics to all in-plane angles. The second correlation does not depend on
shifts, so that astigmatic CTFs cost little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.methods.em.frequency_band import FrequencyBand, shift_grid
from vitreous.methods.em.image_record import PoseRecord
from vitreous.physics.ctf import ctf
from vitreous.physics.polar import (
    PolarGrid,
    circle_harmonics,
    conjugate_harmonics,
    half_turn_harmonics,
    synthesis_matrix,
    to_polar,
)

BLOCK = 2**21  # correlations at a time: about the size of a cache
_SECTORS = 4  # of in-plane angles, the best of each being a candidate
_PROBED = 8  # grid points that are tested for being peaks, for each candidate


@dataclass(frozen=True)
class GridCandidates(PoseRecord):
    """Best templates, in-plane angles and shifts of each image on the grid, best first.

    Args:
        template: long ``(b, c)``.
        angle_rad: ``(b, c)``, in-plane, from 0 to below a whole turn.
        shift_angstrom: ``(b, c, 2)``.
        log_likelihood_ratio: ``(b, c)``, L of each.
        sampled: positions sampled from the whole grid by their likelihood; none by default.
    """

    template: Tensor
    angle_rad: Tensor
    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor
    sampled: GridCandidates | None = None

    def ranked(self, first: int, last: int) -> GridCandidates:
        """Return candidates of rank ``first`` to ``last - 1`` of every image, without samples."""
        return replace(self, sampled=None)[:, first:last]


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a processor has instructions for products of bfloat16."""
    features = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in features)


class PolarSearch:
    """Search for the best template, in-plane angle and shift of images on a grid.

    Args:
        templates: spectra on half circles, complex ``(v, K, A / 2)``, in one piece or several; see
            :func:`~vitreous.physics.polar.to_polar`.
        band: the frequencies to compare.
        noise_power: of the cropped images by shell, ``(K + 1,)``; see
            :meth:`FrequencyBand.noise_power`.
        neighbours: long ``(v, m)``: the templates that are most like each, itself among them. Of
            neighbours only the best is a candidate.
        shift_range_angstrom: largest shift, Å.
        candidates: number to keep for each image, each the best of its neighbourhood.
        short: compare in bfloat16; None: where the processor multiplies it faster. Candidates are
            computed in single precision either way.

    Attributes:
        grid: circles of the band.
        shifts: of the grid, ``(s, 2)``, Å.
        weight: of every frequency in the squared error, ``(K, 1)``.
    """

    def __init__(
        self,
        templates: Iterable[Tensor],
        band: FrequencyBand,
        noise_power: Tensor,
        *,
        neighbours: Tensor,
        shift_range_angstrom: float = 0.0,
        candidates: int = 8,
        short: bool | None = None,
    ) -> None:
        self.band = band
        self.candidates = candidates
        self.grid = PolarGrid(band.box_size, band.radius)
        device = neighbours.device
        self._short = _multiplies_bfloat16(device) if short is None else short
        self._device, self._neighbours = device, neighbours
        self.shifts = shift_grid(shift_range_angstrom, band.shift_step_angstrom).to(device)
        weight = self.grid.quadrature.to(noise_power) / noise_power[1:].clamp_min(1e-30)
        self.weight = weight.float().to(device)[:, None]
        self._store(templates)

    def with_shifts(self, range_angstrom: float) -> PolarSearch:
        """Return the same search with another range of shifts; templates are shared."""
        other = copy(self)
        other.shifts = shift_grid(range_angstrom, self.band.shift_step_angstrom).to(self._device)
        return other

    def __len__(self) -> int:
        """Return the number of templates."""
        return len(self._neighbours)

    def _store(self, templates: Iterable[Tensor]) -> None:
        value, power = [], []
        for polar in templates:
            value.append(circle_harmonics(polar))
            power.append(half_turn_harmonics(polar.abs().square()))
        harmonics = torch.cat(value, 1)
        dtype = torch.bfloat16 if self._short else torch.float32
        value_of = [conjugate_harmonics(harmonics[parity::2]) for parity in (0, 1)]
        # to go through all templates, and to look up few of them
        self._coarse = [one.to(dtype) for one in value_of]
        self._value = [one.permute(2, 0, 1).contiguous() for one in value_of]
        self._power = conjugate_harmonics(torch.cat(power, 1))
        self._power_of = self._power.permute(2, 0, 1).contiguous()

    def ramp(self, shift_angstrom: Tensor) -> Tensor:
        """Return the phases that undo shifts ``(..., 2)``: complex ``(..., K, A / 2)``."""
        kx, ky = (k.to(self._device) for k in self.grid.frequencies)
        length = self.band.box_size * self.band.pixel_size_angstrom
        turn = shift_angstrom.double()[..., None, None, :] * (2 * math.pi / length)
        angle = turn[..., 0] * kx + turn[..., 1] * ky
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    def steps(self, angle_rad: Tensor) -> Tensor:
        """Return in-plane angles in steps of the grid, long, from 0 to below A."""
        return (angle_rad * (self.grid.angles / (2 * math.pi))).round().long() % self.grid.angles

    def transfer(self, optics: Optics | None, count: int) -> Tensor:
        """Return CTFs on half circles, ``(count, K, A / 2)``; ones for images without."""
        kx, ky = (k.to(self._device) for k in self.grid.frequencies)
        if optics is None:
            return torch.ones(count, *kx.shape, device=self._device)
        step = 1 / (self.band.box_size * self.band.pixel_size_angstrom)
        return ctf(kx * step, ky * step, optics).float()

    def _prepare(
        self, images: Tensor, optics: Optics | None, centre: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return harmonics of w c conj(s) y, ``(M, S, b, 2 K)``, and of w c^2, ``(M', b, 2 K)``."""
        transfer = self.transfer(optics, len(images))
        polar = to_polar(images, self.grid) * (transfer * self.weight)
        if centre is not None:
            polar = polar * self.ramp(centre)
        shifted = circle_harmonics(self.ramp(self.shifts)[:, None] * polar)
        return shifted, half_turn_harmonics(transfer.square() * self.weight)

    def _best_over_shifts(
        self, image: Tensor, power: Tensor, scale: Tensor | None, chosen: slice
    ) -> Tensor:
        """Return the largest L over shifts, ``(A, b, v)``, of templates ``chosen``."""
        even, odd = (
            self._correlate(image[parity::2], self._coarse[parity][..., chosen], parity)
            for parity in (0, 1)
        )
        cross = torch.cat([(even + odd).amax(1), (even - odd).amax(1)]).float()
        half = self._correlate(power, self._power[..., chosen], 0)
        return _log_likelihood_ratio(cross, half, scale)

    def _correlate(self, image: Tensor, templates: Tensor, parity: int) -> Tensor:
        """Return a part of the correlations, ``(A / 2, *rows, v)``, of harmonics of images."""
        rows = image.shape[1:-1]
        flat = image.reshape(len(image), -1, image.shape[-1]).to(templates.dtype)
        product = torch.bmm(torch.cat([flat, flat]), templates)
        table = synthesis_matrix(self.grid.angles, parity, image.device).to(templates.dtype)
        return (table @ product.flatten(1)).view(-1, *rows, templates.shape[-1])

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        *,
        centre: Tensor | None = None,
        draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> GridCandidates:
        """Return the best candidates of images.

        Args:
            images: cropped to the band, ``(b, m, m)``.
            optics: CTF of each image; None for none.
            scale: a of each image ``(b,)``; None to take the best for each candidate.
            centre: ``(b, 2)``, Å: shifts around which those of the grid are tried; 0 by default.
            draws: number of candidates to sample as well.
            generator: of the samples, on the device.
        """
        shifts, angles = len(self.shifts), self.grid.angles
        batch_size = max(1, BLOCK // (angles * shifts * min(256, len(self))))
        every = torch.arange(len(images), device=images.device)
        batches = [
            self._search(
                images[rows],
                None if optics is None else optics[rows],
                None if scale is None else scale[rows],
                None if centre is None else centre[rows],
                draws,
                generator,
            )
            for rows in torch.split(every, batch_size)
        ]
        return GridCandidates.cat(batches)

    def _search(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None,
        centre: Tensor | None,
        draws: int,
        generator: torch.Generator | None,
    ) -> GridCandidates:
        image, power = self._prepare(images, optics, centre)
        count, total = len(images), len(self)
        width = max(1, BLOCK // (self.grid.angles * len(self.shifts) * count))
        best = images.new_empty(_SECTORS, count, total)
        for first in range(0, total, width):
            chosen = slice(first, min(first + width, total))
            gains = self._best_over_shifts(image, power, scale, chosen)
            best[..., chosen] = gains.view(_SECTORS, -1, *gains.shape[1:]).amax(1)
        flat = best.permute(1, 0, 2).flatten(1)
        candidates = self._locate(image, power, scale, self._peaks(flat), centre)
        if draws == 0:
            return candidates
        cells = torch.softmax(flat / 2, 1).multinomial(draws, True, generator=generator)
        sampled = self._locate(image, power, scale, cells, centre, generator)
        return replace(candidates, sampled=sampled)

    def _peaks(self, best: Tensor) -> Tensor:
        """Return the highest of ``(b, sectors * v)`` that no neighbour exceeds, then others."""
        value, index = best.topk(min(_PROBED * self.candidates, best.shape[1]), dim=1)
        template = index % len(self)
        near = self._neighbours[template] + (index - template)[..., None]
        around = best.gather(1, near.flatten(1)).view(near.shape).amax(-1)
        lowered = torch.where(value >= around, value, value - value[:, :1].abs() - 1e6)
        return index.gather(1, lowered.topk(min(self.candidates, index.shape[1]), dim=1).indices)

    def _locate(
        self,
        image: Tensor,
        power: Tensor,
        scale: Tensor | None,
        index: Tensor,
        centre: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> GridCandidates:
        """Return the best candidates of (sector, template) ``index (b, c)``, or sampled ones."""
        template, sector = index % len(self), index // len(self)
        even, odd = (
            self._of_each(image[parity::2], self._value[parity], template, parity)
            for parity in (0, 1)
        )
        cross = torch.cat([even + odd, even - odd])  # (A, S, b, c)
        half = self._of_each(power[:, None], self._power_of, template, 0)  # (A / 2, 1, b, c)
        gains = _log_likelihood_ratio(cross, half, scale)
        sectors = gains.view(_SECTORS, -1, *gains.shape[1:])
        own = sectors.gather(0, sector.expand(1, *sectors.shape[1:]))[0].flatten(0, 1)
        if generator is None:
            log_likelihood_ratio, place = own.max(0)
        else:  # the largest log probability plus Gumbel noise is a sample
            uniform = torch.rand(own.shape, generator=generator, device=own.device)
            place = (own / 2 - (-uniform.clamp_min(1e-20).log()).log()).argmax(0)
            log_likelihood_ratio = own.gather(0, place[None])[0]
        angle = place // len(self.shifts) + sector * sectors.shape[1]
        angle_rad = angle * (2 * math.pi / self.grid.angles)
        shift = self.shifts[place % len(self.shifts)]
        if centre is not None:
            shift = shift + centre[:, None]
        candidates = GridCandidates(template, angle_rad, shift, log_likelihood_ratio)
        return candidates if generator is not None else candidates.best_first()

    def _of_each(self, image: Tensor, templates: Tensor, chosen: Tensor, parity: int) -> Tensor:
        """Return a part of the correlations ``(A / 2, S, b, c)`` of images with their templates."""
        own = templates[chosen].permute(0, 2, 3, 1)  # (b, 2 M, 2 K, c)
        rows = image.permute(2, 0, 1, 3)  # (b, M, S, 2 K)
        product = torch.matmul(torch.cat([rows, rows], 1), own)  # (b, 2 M, S, c)
        table = synthesis_matrix(self.grid.angles, parity, image.device)
        return torch.einsum("am,bmsc->asbc", table, product)


def _log_likelihood_ratio(cross: Tensor, half: Tensor, scale: Tensor | None) -> Tensor:
    """Return L of cross terms ``(A, ..., b, v)`` and power terms ``(A / 2, ..., b, v)``."""
    pairs = cross.view(2, len(half), *cross.shape[1:])
    if scale is None:
        return (pairs.clamp_min(0).square() / half.clamp_min(1e-20)).flatten(0, 1)
    a = scale[:, None]
    return (pairs * (2 * a) - half * a.square()).flatten(0, 1)
