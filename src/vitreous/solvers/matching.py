r"""Global search for poses: every image against every view, in-plane angle and shift of a grid.

The squared error of image y under CTF c, scale a, shift t, view v and in-plane angle
:math:`\alpha` is, with the weight w of each frequency (one over the noise's power),

.. math::

    E = \langle y, y\rangle_w - 2 a \langle c\, \bar s_t\, y, P_{v,\alpha}\rangle_w
        + a^2 \langle c^2, |P_{v,\alpha}|^2\rangle_w,

and what is searched for is the largest *gain* :math:`L = \langle y, y\rangle_w - E`: twice the
logarithm of the likelihood, but for a constant. In polar Fourier coordinates
(:mod:`vitreous.physics.polar`) both products are cyclic correlations over the angle. Harmonic by
harmonic they are matrix products over the radii, (images and shifts) times views; a last product
brings all harmonics to all in-plane angles. The second correlation knows no shifts, so that
astigmatic CTFs cost little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics
from vitreous.core.rotation import axis_angle_to_matrix, euler_to_matrix
from vitreous.core.symmetry import PointGroup, point_group
from vitreous.physics.ctf import ctf
from vitreous.physics.polar import (
    PolarGrid,
    circle_harmonics,
    conjugate_products,
    half_turn_harmonics,
    synthesis,
    to_polar,
)
from vitreous.physics.projector import oversampled_spectrum, project_spectrum

BLOCK = 2**21  # correlations at a time: about what a cache holds
_SECTORS = 4  # of in-plane angles, the best of each being a candidate
_NEIGHBOURS = 6
_PROBED = 8  # times as many grid points as candidates are looked at for being peaks
_MARGIN = 3  # shells between the band and the Nyquist frequency of the cropped box


@dataclass(frozen=True)
class Band:
    """The low frequencies of images, and the smaller box that holds them.

    Args:
        full_box: edge of the images in pixels.
        full_pixel_angstrom: their pixel size, Å.
        radius: K, the highest shell, in cycles per box.

    Raises:
        ValueError: shells beyond Nyquist.

    >>> Band(64, 3.0, 10).box_size, Band(64, 3.0, 31).box_size
    (26, 64)
    """

    full_box: int
    full_pixel_angstrom: float
    radius: int

    def __post_init__(self) -> None:
        if not 1 <= self.radius <= (self.full_box - 1) // 2:
            raise ValueError(
                f"radius must be from 1 to {(self.full_box - 1) // 2} for a box of "
                f"{self.full_box} px, got {self.radius}"
            )

    @property
    def box_size(self) -> int:
        """Edge of the cropped images."""
        return min(self.full_box, 2 * (self.radius + _MARGIN))

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the cropped images, Å."""
        return self.full_pixel_angstrom * self.full_box / self.box_size

    @property
    def shift_step_angstrom(self) -> float:
        """Step between shifts, half of which moves the highest frequencies by 0.75 radians."""
        return 0.75 * self.box_size * self.pixel_size_angstrom / (math.pi * self.radius)

    def images(self, images: Tensor) -> Tensor:
        """Cropped images ``(b, m, m)``, their grey values those of projections of :meth:`volume`.

        >>> Band(8, 2.0, 1).images(torch.ones(1, 8, 8)).mean().item()
        1.0
        """
        return fourier_resize(images, self.box_size, 2) * (self.box_size / self.full_box)

    def volume(self, volume: Tensor) -> Tensor:
        """Cropped volume ``(m, m, m)``."""
        return fourier_resize(volume, self.box_size, 3)

    def noise_power(self, full: Tensor) -> Tensor:
        """Power by shell, ``(K + 1,)``, in the spectra of cropped images.

        Args:
            full: mean of ``|rfft2|^2`` by shell in the full images, ``(n // 2 + 1,)``.
        """
        return full[: self.radius + 1] * (self.box_size / self.full_box) ** 6


@dataclass(frozen=True)
class Candidates:
    """The best poses of each image, best first.

    Args:
        rotation: ``(b, c, 3, 3)``.
        shift_angstrom: ``(b, c, 2)``.
        gain: ``(b, c)``, L of each; minus infinity where there are fewer.
        drawn: poses drawn from all of the grid by their likelihood, in no order; none by default.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    gain: Tensor
    drawn: Candidates | None = None

    def __getitem__(self, index: Tensor) -> Candidates:
        """Those of some images."""
        drawn = None if self.drawn is None else self.drawn[index]
        return Candidates(self.rotation[index], self.shift_angstrom[index], self.gain[index], drawn)

    @staticmethod
    def cat(parts: Sequence[Candidates]) -> Candidates:
        """Those of several batches."""
        drawn = [part.drawn for part in parts if part.drawn is not None]
        return Candidates(
            torch.cat([part.rotation for part in parts]),
            torch.cat([part.shift_angstrom for part in parts]),
            torch.cat([part.gain for part in parts]),
            Candidates.cat(drawn) if drawn else None,
        )


def views(spacing_rad: float, group: PointGroup) -> Tensor:
    """Rotations whose viewing directions cover the asymmetric unit evenly (Fibonacci spiral).

    Args:
        spacing_rad: edge of a cell.
        group: of the volume; of every orbit of directions about one is kept.

    Returns:
        ``(v, 3, 3)`` with in-plane angle 0.

    >>> from vitreous.core.symmetry import point_group
    >>> len(views(0.2, point_group("C1"))), len(views(0.2, point_group("D2")))
    (315, 80)
    """
    count = math.ceil(4 * math.pi / spacing_rad**2)
    i = torch.arange(count, dtype=torch.float64)
    height = 1 - (2 * i + 1) / count
    turn = i * math.pi * (3 - math.sqrt(5))
    flat = (1 - height**2).sqrt()
    direction = torch.stack([flat * turn.cos(), flat * turn.sin(), height], -1)
    generic = torch.tensor([0.8660, 0.1937, 0.4610], dtype=torch.float64)
    orbit = torch.einsum("gij,vj->vgi", group.matrices, direction)
    kept = direction[direction @ generic >= (orbit @ generic).amax(1) - 1e-9]
    rot = torch.rad2deg(torch.atan2(kept[:, 1], kept[:, 0]))
    tilt = torch.rad2deg(torch.acos(kept[:, 2].clamp(-1, 1)))
    return euler_to_matrix(torch.stack([rot, tilt, torch.zeros_like(rot)], -1)).float()


def _nearest(rotations: Tensor, group: PointGroup) -> Tensor:
    """The views nearest to each, symmetry counted, ``(v, neighbours)``; itself among them."""
    direction = rotations[:, 2].double()
    closeness = torch.full((len(direction),) * 2, -2.0, dtype=torch.float64)
    for matrix in group.matrices:
        closeness = torch.maximum(closeness, direction @ (direction @ matrix.mT).mT)
    return closeness.topk(min(_NEIGHBOURS + 1, len(direction)), dim=1).indices


def shift_grid(range_angstrom: float, step_angstrom: float) -> Tensor:
    """Shifts (x, y) of a square grid that covers a disc, ``(s, 2)`` in Å, the nearest to 0 first.

    >>> len(shift_grid(0.0, 2.0)), len(shift_grid(2.0, 2.0)), len(shift_grid(4.0, 2.0))
    (1, 9, 21)
    """
    farthest = range_angstrom + step_angstrom / 2 if range_angstrom > 0 else 0.0
    reach = math.floor(farthest / step_angstrom)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float32) * step_angstrom
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], -1)
    length = grid.norm(dim=1)
    order = length.argsort(stable=True)
    return grid[order[length[order] <= farthest]]


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a processor has instructions for products of bfloat16."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


class GlobalSearch:
    """Finds the best poses of images among all of a grid.

    Templates are made once, for all images.

    Args:
        volume: ``(n, n, n)``, full box.
        band: the frequencies to compare.
        noise_power: of the cropped images by shell, ``(K + 1,)``; see :meth:`Band.noise_power`.
        symmetry: point group of the volume, in RELION's axes.
        shift_range_angstrom: farthest shift, Å.
        spacing: between views, in units of 1 / K radians.
        candidates: how many poses to keep for each image, each the best of its neighbourhood.
        short: compare in bfloat16; None: where the processor multiplies it faster. Candidates'
            poses and gains are worked out in single precision either way.
    """

    def __init__(
        self,
        volume: Tensor,
        band: Band,
        noise_power: Tensor,
        *,
        symmetry: str = "C1",
        shift_range_angstrom: float = 0.0,
        spacing: float = 1.0,
        candidates: int = 8,
        short: bool | None = None,
    ) -> None:
        self.band = band
        self.candidates = candidates
        self._short = _multiplies_bfloat16(volume.device) if short is None else short
        self.grid = PolarGrid(band.box_size, band.radius)
        device = volume.device
        group = point_group(symmetry)
        rotations = views(spacing / band.radius, group)
        self._nearest = _nearest(rotations, group).to(device)
        self.rotations = rotations.to(device)
        self.shifts = shift_grid(shift_range_angstrom, band.shift_step_angstrom).to(device)
        weight = self.grid.quadrature.to(noise_power) / noise_power[1:].clamp_min(1e-30)
        self._weight = weight.float().to(device)[:, None]
        self._templates(band.volume(volume.float()))

    def with_shifts(self, range_angstrom: float) -> GlobalSearch:
        """The same with another range of shifts; templates are shared."""
        other = copy(self)
        grid = shift_grid(range_angstrom, self.band.shift_step_angstrom)
        other.shifts = grid.to(self.shifts.device)
        return other

    def _templates(self, volume: Tensor) -> None:
        spectrum, n = oversampled_spectrum(volume), self.band.box_size
        value, power = [], []
        for some in torch.split(self.rotations, 256):
            polar = to_polar(project_spectrum(spectrum, some, n), self.grid)
            value.append(circle_harmonics(polar))
            power.append(half_turn_harmonics(polar.abs().square()))
        harmonics = torch.cat(value, 1)
        dtype = torch.bfloat16 if self._short else torch.float32
        value_of = [conjugate_products(harmonics[parity::2]) for parity in (0, 1)]
        # to go through all views, and to look up few of them
        self._coarse = [one.to(dtype) for one in value_of]
        self._value = [one.permute(2, 0, 1).contiguous() for one in value_of]
        self._power = conjugate_products(torch.cat(power, 1))
        self._power_of = self._power.permute(2, 0, 1).contiguous()

    def _frequencies(self) -> tuple[Tensor, Tensor]:
        kx, ky = (k.to(self.rotations.device) for k in self.grid.frequencies)
        return kx, ky

    def _ramp(self, shift_angstrom: Tensor) -> Tensor:
        """Phases that undo shifts ``(..., 2)``: complex ``(..., K, A / 2)``."""
        kx, ky = self._frequencies()
        length = self.band.box_size * self.band.pixel_size_angstrom
        turn = shift_angstrom.double()[..., None, None, :] * (2 * math.pi / length)
        angle = turn[..., 0] * kx + turn[..., 1] * ky
        return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    def _prepare(
        self, images: Tensor, optics: Optics | None, centre: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Harmonics of w c conj(s) y, ``(M, S, b, 2 K)``, and of w c^2, ``(M', b, 2 K)``."""
        kx, ky = self._frequencies()
        step = 1 / (self.band.box_size * self.band.pixel_size_angstrom)
        polar = to_polar(images, self.grid)
        transfer = torch.ones(len(images), *kx.shape, device=images.device)
        if optics is not None:
            transfer = ctf(kx * step, ky * step, optics).float()
        polar = polar * (transfer * self._weight)
        if centre is not None:
            polar = polar * self._ramp(centre)
        ramp = self._ramp(self.shifts)
        shifted = circle_harmonics(ramp[:, None] * polar)
        return shifted, half_turn_harmonics(transfer.square() * self._weight)

    def _gains(self, image: Tensor, power: Tensor, scale: Tensor | None, chosen: slice) -> Tensor:
        """Best gain over shifts, ``(A, b, v)``, of views ``chosen``."""
        even, odd = (
            self._correlate(image[parity::2], self._coarse[parity][..., chosen], parity)
            for parity in (0, 1)
        )
        cross = torch.cat([(even + odd).amax(1), (even - odd).amax(1)]).float()
        return _gain(cross, self._correlate(power, self._power[..., chosen], 0), scale)

    def _correlate(self, image: Tensor, templates: Tensor, parity: int) -> Tensor:
        """Part of the correlations, ``(A / 2, *rows, v)``, of harmonics ``(M, *rows, 2 K)``."""
        rows = image.shape[1:-1]
        left = image.reshape(len(image), -1, image.shape[-1]).to(templates.dtype)
        product = torch.bmm(torch.cat([left, left]), templates)
        table = synthesis(self.grid.angles, parity, image.device).to(templates.dtype)
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
    ) -> Candidates:
        """The best poses of images.

        Args:
            images: cropped to the band, ``(b, m, m)``.
            optics: CTF of each image; None for none.
            scale: a of each image ``(b,)``; None to take the best for each pose.
            centre: ``(b, 2)``, Å: shifts around which those of the grid are tried; 0 by default.
            draws: how many poses to draw as well.
            generator: for them, on the device.
        """
        shifts, angles = len(self.shifts), self.grid.angles
        at_once = max(1, BLOCK // (angles * shifts * min(256, len(self.rotations))))
        found = []
        for rows in torch.split(torch.arange(len(images), device=images.device), at_once):
            found.append(
                self._some(
                    images[rows],
                    None if optics is None else optics[rows],
                    None if scale is None else scale[rows],
                    None if centre is None else centre[rows],
                    draws,
                    generator,
                )
            )
        return Candidates.cat(found)

    def _some(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None,
        centre: Tensor | None,
        draws: int,
        generator: torch.Generator | None,
    ) -> Candidates:
        image, power = self._prepare(images, optics, centre)
        count, total = len(images), len(self.rotations)
        width = max(1, BLOCK // (self.grid.angles * len(self.shifts) * count))
        best = images.new_empty(_SECTORS, count, total)
        for first in range(0, total, width):
            chosen = slice(first, min(first + width, total))
            gains = self._gains(image, power, scale, chosen)
            best[..., chosen] = gains.view(_SECTORS, -1, *gains.shape[1:]).amax(1)
        flat = best.permute(1, 0, 2).flatten(1)
        found = self._locate(image, power, scale, self._peaks(flat), centre)
        if draws == 0:
            return found
        cells = torch.softmax(flat / 2, 1).multinomial(draws, True, generator=generator)
        drawn = self._locate(image, power, scale, cells, centre, generator)
        return replace(found, drawn=drawn)

    def _peaks(self, best: Tensor) -> Tensor:
        """Highest of ``(b, sectors * views)`` no neighbour exceeds, then others: ``(b, c)``."""
        value, index = best.topk(min(_PROBED * self.candidates, best.shape[1]), dim=1)
        view = index % len(self.rotations)
        near = self._nearest[view] + (index - view)[..., None]
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
    ) -> Candidates:
        """Poses within chosen (sector, view), ``index (b, c)``: the best, best first; or drawn."""
        view, sector = index % len(self.rotations), index // len(self.rotations)
        even, odd = (
            self._of_each(image[parity::2], self._value[parity], view, parity) for parity in (0, 1)
        )
        cross = torch.cat([even + odd, even - odd])  # (A, S, b, c)
        half = self._of_each(power[:, None], self._power_of, view, 0)  # (A / 2, 1, b, c)
        gains = _gain(cross, half, scale)
        sectors = gains.view(_SECTORS, -1, *gains.shape[1:])
        mine = sectors.gather(0, sector.expand(1, *sectors.shape[1:]))[0].flatten(0, 1)
        if generator is None:
            gain, place = mine.max(0)
        else:  # the largest of logarithms of probabilities and Gumbel noise is a draw
            uniform = torch.rand(mine.shape, generator=generator, device=mine.device)
            place = (mine / 2 - (-uniform.clamp_min(1e-20).log()).log()).argmax(0)
            gain = mine.gather(0, place[None])[0]
        angle = place // len(self.shifts) + sector * sectors.shape[1]
        axis = torch.zeros(*view.shape, 3, device=image.device)
        axis[..., 2] = angle * (2 * math.pi / self.grid.angles)
        rotation = axis_angle_to_matrix(axis) @ self.rotations[view]
        shift = self.shifts[place % len(self.shifts)]
        if centre is not None:
            shift = shift + centre[:, None]
        if generator is not None:
            return Candidates(rotation, shift, gain)
        gain, order = gain.sort(dim=1, descending=True, stable=True)
        rows = torch.arange(len(gain), device=gain.device)[:, None]
        return Candidates(rotation[rows, order], shift[rows, order], gain)

    def _of_each(self, image: Tensor, templates: Tensor, view: Tensor, parity: int) -> Tensor:
        """Part of the correlations ``(A / 2, S, b, c)`` of images with views of their own."""
        own = templates[view].permute(0, 2, 3, 1)  # (b, 2 M, 2 K, c)
        rows = image.permute(2, 0, 1, 3)  # (b, M, S, 2 K)
        product = torch.matmul(torch.cat([rows, rows], 1), own)  # (b, 2 M, S, c)
        table = synthesis(self.grid.angles, parity, image.device)
        return torch.einsum("am,bmsc->asbc", table, product)


def _gain(cross: Tensor, half: Tensor, scale: Tensor | None) -> Tensor:
    """L of cross terms ``(A, ..., b, v)`` and power terms ``(A / 2, ..., b, v)``, which repeat."""
    pairs = cross.view(2, len(half), *cross.shape[1:])
    if scale is None:
        gain = pairs.clamp_min(0).square() / half.clamp_min(1e-20)
    else:
        a = scale[:, None]
        gain = pairs * (2 * a) - half * a.square()
    return gain.flatten(0, 1)
