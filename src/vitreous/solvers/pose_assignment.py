r"""Reconstruction from images of unknown poses and a start map: assign, reconstruct, repeat.

A round assigns poses within a band (:mod:`vitreous.solvers.assignment`), each half set under its
own map only, and reconstructs both halves (:mod:`vitreous.solvers.direct`), hard by the best pose
of each image or soft by all candidates with their posterior probability. The FSC between the halves
says what of them is signal: it is the Wiener weight of the maps under which the next round assigns,
and the end of its band. The noise's power by shell is that of what the round has left of the
images; before the first round it is that of the images themselves.

Nothing else passes between the half sets than that curve. The first rounds search among all poses,
later ones refine the candidates that were kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index, soft_mask
from vitreous.core.params import Optics, Pose
from vitreous.physics.insertion import Gridding
from vitreous.solvers.assignment import Assigner, Assignment
from vitreous.solvers.direct import EDGE_PX, accumulate, half_map, noise_to_signal, wiener_map
from vitreous.solvers.images import ImageSource, check_rows, read_ahead
from vitreous.solvers.loop import Stats
from vitreous.solvers.pose_config import PoseConfig

KEPT = 4  # candidates of each image handed to the next round
_AGREE = 0.143
_LEAST_POSTERIOR = 1e-3  # that is reconstructed from
_SMOOTH = 1.3  # a round's maps reach beyond its band as the next may grow, and by this


@dataclass(frozen=True)
class AssignedPoses:
    """What was found for each image; the arguments of :class:`Assignment` but best pose first.

    Args:
        pose: the best, rotation and shift.
        posterior: ``(b,)``, probability of the best among its image's candidates: the margin.
        log_likelihood: ``(b,)``, of the best, over that of noise alone.
        scale: ``(b,)``, factor of the map in the image.
        candidates: all that were kept.
    """

    pose: Pose
    posterior: Tensor
    log_likelihood: Tensor
    scale: Tensor
    candidates: Assignment


class _Rows:
    """Images of chosen rows, repetitions allowed."""

    def __init__(self, images: ImageSource, rows: Tensor) -> None:
        self._images, self._rows = images, rows

    @property
    def box_size(self) -> int:
        return self._images.box_size

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Tensor) -> Tensor:
        wanted, back = torch.unique(self._rows[indices], return_inverse=True)
        return self._images.read(wanted)[back]


@torch.no_grad()
def shell_power(images: ImageSource, rows: Tensor) -> Tensor:
    """Mean of ``|rfft2|^2`` of images by shell, float64 ``(n // 2 + 1,)``.

    >>> from vitreous.solvers.images import ImagesInMemory
    >>> noise = torch.randn(50, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> power = shell_power(ImagesInMemory(noise), torch.arange(50))
    >>> bool((power[1:] / 16**2 - 1).abs().max() < 0.2)
    True
    """
    n = images.box_size
    shell = shell_index(n, 2)
    inside = shell <= n // 2
    total = torch.zeros(n // 2 + 1, dtype=torch.float64)
    for _, read in read_ahead(images, rows):
        power = torch.fft.rfft2(read.float().cpu()).abs().square().sum(0)
        total.index_add_(0, shell[inside], power[inside].double())
    return total / (torch.bincount(shell[inside]) * len(rows))


class PoseAssignment:
    """The rounds; one call of :meth:`step` is one of them.

    Args:
        images: protein positive.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        half: long ``(b,)`` of 1 and 2.
        start: map ``(n, n, n)`` of the images' box and any grey scale; only its frequencies up to
            ``config.start_resolution_angstrom`` are used.
        config: settings.
        correlate: Fourier shell correlation of two maps, such as :func:`vitreous.metrics.fsc.fsc`.
        device: where to compute; that of ``start`` by default.

    Raises:
        ValueError: lengths or boxes that do not agree, a half set without images, a start
            resolution that leaves nothing to compare.
    """

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        half: Tensor,
        start: Tensor,
        config: PoseConfig,
        *,
        correlate: Callable[[Tensor, Tensor], Tensor],
        device: torch.device | None = None,
    ) -> None:
        n, total = images.box_size, len(images)
        blank = torch.eye(3).expand(total, 3, 3)
        check_rows(images, blank, None, optics, half, n)
        if tuple(start.shape) != (n, n, n):
            raise ValueError(
                f"start must be {(n, n, n)} as the images are, got {tuple(start.shape)}"
            )
        self._rows = [(half == which).nonzero().flatten() for which in (1, 2)]
        if min(len(rows) for rows in self._rows) == 0:
            raise ValueError("half must hold both 1 and 2; split the images into two sets")
        self.images, self.optics, self.half = images, optics, half
        self.pixel_size_angstrom, self.config = pixel_size_angstrom, config
        self._correlate = correlate
        self._device = device or start.device
        self._top = (n - 1) // 2
        self.radius = min(self._top, round(self._length / config.start_resolution_angstrom))
        if self.radius < 2:
            raise ValueError(
                f"start_resolution_angstrom {config.start_resolution_angstrom} leaves no shells of "
                f"a box of {self._length:.0f} Å; it must be at most {self._length / 2:.0f}"
            )
        sphere = self._sphere(n)
        self.references = tuple(start.to(self._device) * sphere for _ in (1, 2))
        self.noise_power = [shell_power(images, rows).to(self._device) for rows in self._rows]
        self.round = 0
        self.sums: tuple[Gridding, Gridding] | None = None
        self.fsc = torch.ones(n // 2 + 1, dtype=torch.float64)
        self._found: list[Assignment | None] = [None, None]

    @property
    def _length(self) -> float:
        return self.images.box_size * self.pixel_size_angstrom

    def _sphere(self, box: int) -> Tensor:
        diameter = self.config.diameter_angstrom or self._length
        radius = min(box / 2 - EDGE_PX, box * diameter / self._length / 2)
        return soft_mask(box, 3, radius, EDGE_PX, device=self._device)

    def _radii(self, search: bool) -> list[int]:
        """Highest shells of the bands of this round, growing."""
        first = min(self.radius, self.config.search_radius) if search else self.radius
        radii = [self.radius]
        while radii[0] > first:
            radii.insert(0, max(first, math.floor(radii[0] / self.config.growth)))
        return radii

    def _assign(self, which: int, search: bool) -> None:
        """Poses of one half set, under its own map, and the noise that is left."""
        before = self._found[which]
        assigner = Assigner(
            self.references[which],
            self.pixel_size_angstrom,
            self._radii(search),
            self.noise_power[which],
            self.config,
            search=search,
            recentre=before is not None,
        )
        one = 1.0 if self.round and self.config.scale == "one" else None
        rows, done = self._rows[which], 0
        parts, left = [], torch.zeros(assigner.refiner.band.radius + 1, dtype=torch.float64)
        for piece, read in read_ahead(self.images, rows):
            place = torch.arange(done, done + len(piece))
            done += len(piece)
            start = None if before is None else before[place.to(self._device)]
            optics = None if self.optics is None else self.optics[piece].to(self._device)
            images = read.to(self._device, torch.float32)
            found, residual = assigner(images, optics, start=start, scale=one)
            parts.append(found.best(KEPT))
            left += residual
        self._found[which] = Assignment.cat(parts)
        self._update_noise(which, assigner, left / len(rows))

    def _update_noise(self, which: int, assigner: Assigner, left: Tensor) -> None:
        refiner = assigner.refiner
        band, points = refiner.band, refiner.points_per_shell().cpu()
        power = left / points.clamp_min(1) * (band.full_box / band.box_size) ** 6
        known = self.noise_power[which].clone()
        known[1 : band.radius + 1] = power[1:].to(known)
        self.noise_power[which] = known

    def _chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, rotation, shift and weight of everything to be inserted."""
        columns: list[tuple[Tensor, ...]] = []
        for which, found in enumerate(self._found):
            assert found is not None
            weight, rotation, shift = found.posterior, found.rotation, found.shift_angstrom
            if self.config.assignment == "hard":
                weight, rotation, shift = weight[:, :1] * 0 + 1, rotation[:, :1], shift[:, :1]
            else:
                seed = 2 * (self.round + 1000 * self.config.seed) + which
                stream = torch.Generator().manual_seed(seed)
                draws = self.config.draws
                rotation, shift = (x.flatten(1, 2) for x in found.draw(draws, stream))
                weight = (weight / draws).repeat_interleave(draws, 1)
            i, j = (weight > _LEAST_POSTERIOR).nonzero(as_tuple=True)
            rows = self._rows[which][i.cpu()]
            columns.append((rows, rotation[i, j], shift[i, j], weight[i, j]))
        row, rotation, shift, weight = (torch.cat(c) for c in zip(*columns, strict=True))
        order = row.argsort(stable=True)
        there = order.to(rotation.device)
        return row[order], rotation[there].cpu(), shift[there].cpu(), weight[there].cpu()

    def _reconstruct(self) -> None:
        """Sums of both halves, the FSC between them, and the maps for the next round."""
        n = self.images.box_size
        reach = math.ceil(self.radius * self.config.growth * _SMOOTH) + 3
        box = min(n, 2 * reach)
        row, rotation, shift, weight = self._chosen()
        self.sums = accumulate(
            _Rows(self.images, row),
            rotation,
            shift,
            None if self.optics is None else self.optics[row],
            self.pixel_size_angstrom,
            self.half[row],
            box_size=box,
            symmetry=self.config.symmetry,
            weight=weight,
            device=self._device,
        )
        sphere = self._sphere(box)
        first, second = (half_map(one) * sphere for one in self.sums)
        curve = self._correlate(first, second).cpu()
        self.fsc = torch.zeros(n // 2 + 1, dtype=torch.float64)
        self.fsc[: len(curve)] = curve
        self.references = tuple(
            fourier_resize(wiener_map(one, 2 * noise_to_signal(curve)) * sphere, n, 3)
            for one in self.sums
        )

    def _agreeing(self) -> int:
        """Last shell before the FSC falls below 0.143."""
        below = (self.fsc[1:] < _AGREE).nonzero().flatten()
        return int(below[0]) if len(below) else len(self.fsc) - 1

    @torch.no_grad()
    def step(self) -> Stats:
        """One round; numbers of it."""
        search = self.round < self.config.searches
        band = self.radius
        for which in (0, 1):
            self._assign(which, search)
        self._reconstruct()
        self.round += 1
        agreeing = self._agreeing()
        grown = max(band + 1, math.floor(self.config.growth * band))
        self.radius = min(self._top, grown, max(agreeing, 2))
        both = [found for found in self._found if found is not None]
        return {
            "band_angstrom": self._length / band,
            "resolution_angstrom": self._length / max(1, agreeing),
            "posterior": float(torch.cat([f.posterior[:, 0] for f in both]).mean()),
            "gain": float(torch.cat([f.gain[:, 0] for f in both]).mean()),
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and numbers from which :meth:`restore` goes on, bit by bit."""
        tensors: dict[str, Tensor] = {"fsc": self.fsc}
        for which in (0, 1):
            tensors[f"reference.{which}"] = self.references[which]
            tensors[f"noise.{which}"] = self.noise_power[which]
            found = self._found[which]
            for name, value in () if found is None else vars(found).items():
                tensors[f"found.{which}.{name}"] = value
            if self.sums is not None:
                tensors[f"numerator.{which}"] = self.sums[which].numerator
                tensors[f"weight.{which}"] = self.sums[which].weight
        box = 0 if self.sums is None else self.sums[0].box_size
        return tensors, {"round": self.round, "radius": self.radius, "box": box}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Go on from a :meth:`state` of a task with the same images and settings."""
        here = {name: value.to(self._device) for name, value in tensors.items()}
        self.round, self.radius = numbers["round"], numbers["radius"]
        self.fsc = tensors["fsc"].cpu()
        self.references = (here["reference.0"], here["reference.1"])
        self.noise_power = [here["noise.0"], here["noise.1"]]
        if self.round == 0:
            return
        for which in (0, 1):
            prefix = f"found.{which}."
            fields = {k.removeprefix(prefix): v for k, v in here.items() if k.startswith(prefix)}
            self._found[which] = Assignment(**fields)
        first, second = (
            Gridding(here[f"numerator.{which}"], here[f"weight.{which}"], numbers["box"])
            for which in (0, 1)
        )
        self.sums = first, second

    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unfiltered half maps, and the Wiener map of all images, ``(n, n, n)``.

        Raises:
            RuntimeError: before the first round.
        """
        if self.sums is None:
            raise RuntimeError("no round was done; call step() first")
        n, first, second = self.images.box_size, *self.sums
        curve = self.fsc[: first.box_size // 2 + 1]
        whole = wiener_map(first + second, noise_to_signal(curve))
        one, two, both = (
            fourier_resize(v, n, 3) for v in (half_map(first), half_map(second), whole)
        )
        return one, two, both

    def poses(self) -> AssignedPoses:
        """What was found for every image, in the images' order; zeros and identities for others.

        Raises:
            RuntimeError: before the first round.
        """
        if self._found[0] is None or self._found[1] is None:
            raise RuntimeError("no round was done; call step() first")
        found = Assignment.cat([self._found[0], self._found[1]])
        rows = torch.cat(self._rows).to(found.gain.device)
        ordered = Assignment(
            **{name: _placed(value, rows, len(self.images)) for name, value in vars(found).items()}
        )
        unused = torch.ones(len(self.images), dtype=torch.bool, device=rows.device)
        unused[rows] = False
        ordered.rotation[unused] = torch.eye(3, device=rows.device)
        return AssignedPoses(
            Pose(ordered.rotation[:, 0], ordered.shift_angstrom[:, 0]),
            ordered.posterior[:, 0],
            ordered.gain[:, 0] / 2,
            ordered.scale[:, 0],
            ordered,
        )


def _placed(values: Tensor, rows: Tensor, total: int) -> Tensor:
    out = values.new_zeros((total, *values.shape[1:]))
    return out.index_copy(0, rows, values)
