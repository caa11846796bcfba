"""Global search for poses: every image against every view of a map, in-plane angle and shift.

Views of the asymmetric unit are the templates of a :mod:`vitreous.methods.em.polar_search`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.rotation import axis_angle_to_matrix, euler_to_matrix
from vitreous.core.symmetry import PointGroup, point_group
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import PoseRecord
from vitreous.methods.em.polar_search import GridCandidates, PolarSearch
from vitreous.physics.polar import PolarGrid, to_polar
from vitreous.physics.projector import oversampled_spectrum, project_spectrum

_NEIGHBOURS = 6


@dataclass(frozen=True)
class GlobalCandidates(PoseRecord):
    """Best poses of each image on the grid, best first.

    Args:
        rotation: ``(b, c, 3, 3)``.
        shift_angstrom: ``(b, c, 2)``.
        log_likelihood_ratio: ``(b, c)``, L of each; minus infinity where there are fewer.
        sampled: poses sampled from the whole grid by their likelihood; None by default.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor
    sampled: GlobalCandidates | None = None


def views(spacing_rad: float, group: PointGroup) -> Tensor:
    """Return rotations whose viewing directions cover the asymmetric unit evenly.

    The directions are a Fibonacci spiral.

    Args:
        spacing_rad: edge of a cell.
        group: of the volume; about one direction of every orbit is kept.

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
    """Return the views nearest to each, ``(v, neighbours)``, itself included, up to symmetry."""
    direction = rotations[:, 2].double()
    closeness = torch.full((len(direction),) * 2, -2.0, dtype=torch.float64)
    for matrix in group.matrices:
        closeness = torch.maximum(closeness, direction @ (direction @ matrix.mT).mT)
    return closeness.topk(min(_NEIGHBOURS + 1, len(direction)), dim=1).indices


class GlobalSearch:
    """Search for the best poses of images among all of a grid.

    Templates are made once, for all images.

    Args:
        volume: ``(n, n, n)``, full box.
        band: the frequencies to compare.
        symmetry: point group of the volume, about RELION's axes.
        spacing: between views, in units of 1 / K radians.
        noise_power, shift_range_angstrom, candidates, short: as of :class:`PolarSearch`.
    """

    def __init__(
        self,
        volume: Tensor,
        band: FrequencyBand,
        noise_power: Tensor,
        *,
        symmetry: str = "C1",
        shift_range_angstrom: float = 0.0,
        spacing: float = 1.0,
        candidates: int = 8,
        short: bool | None = None,
    ) -> None:
        self.band = band
        group = point_group(symmetry)
        rotations = views(spacing / band.radius, group)
        self.rotations = rotations.to(volume.device)
        self._polar = PolarSearch(
            _slices(band.volume(volume.float()), self.rotations, band),
            band,
            noise_power,
            neighbours=_nearest(rotations, group).to(volume.device),
            shift_range_angstrom=shift_range_angstrom,
            candidates=candidates,
            short=short,
        )

    def with_shifts(self, range_angstrom: float) -> GlobalSearch:
        """Return the same search with another range of shifts; templates are shared."""
        other = copy(self)
        other._polar = self._polar.with_shifts(range_angstrom)
        return other

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        scale: Tensor | None = None,
        **settings: Any,
    ) -> GlobalCandidates:
        """Return the best poses of images; arguments as of :meth:`PolarSearch.__call__`."""
        candidates = self._polar(images, optics, scale, **settings)
        best = self._poses(candidates)
        sampled = candidates.sampled
        return best if sampled is None else replace(best, sampled=self._poses(sampled))

    def _poses(self, candidates: GridCandidates) -> GlobalCandidates:
        """Return the views rotated in their plane."""
        ratio = candidates.log_likelihood_ratio
        axis = torch.zeros(*ratio.shape, 3, device=ratio.device)
        axis[..., 2] = candidates.angle_rad
        rotation = axis_angle_to_matrix(axis) @ self.rotations[candidates.template]
        return GlobalCandidates(rotation, candidates.shift_angstrom, ratio)


def _slices(volume: Tensor, rotations: Tensor, band: FrequencyBand) -> Iterator[Tensor]:
    """Yield the spectra of all views on half circles."""
    spectrum, n = oversampled_spectrum(volume), band.box_size
    grid = PolarGrid(n, band.radius)
    for batch in torch.split(rotations, 256):
        yield to_polar(project_spectrum(spectrum, batch, n), grid)
