r"""Reconstruction from images of unknown poses and a start map: assign, reconstruct, repeat.

A round assigns poses within a band (:mod:`vitreous.methods.em.expectation`), each half set under
its
own map only, and reconstructs both halves (:mod:`vitreous.methods.reconstruct.gridding`), hard by
the best pose of each image or soft by poses drawn from its likelihood. The FSC between the halves
says what of them is signal: it is the Wiener weight of the maps under which the next round assigns,
and the end of its band. The noise's power by shell is that of what the round has left of the
images; before the first round it is that of the images themselves.

Nothing else passes between the half sets than that curve, and a few numbers: where they started
from maps of their own, the rotation and shift that bring half map 2 onto half map 1, and with it
the poses of its images; where they are refined, defocus and contrast of each micrograph, found
under the map of the other half (:mod:`vitreous.methods.em.ctf_refinement`). The first rounds search
among all poses, later ones refine the candidates that were kept. With
:class:`~vitreous.methods.em.config.Batches` the first rounds use a part of the images each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index
from vitreous.core.images import ImageSource, ImageSubset, check_image_rows, read_ahead, shell_power
from vitreous.core.params import Optics, Pose
from vitreous.core.random import numbered_generator
from vitreous.core.threads import parallel_map
from vitreous.methods.em.config import Batches, RefinementConfig
from vitreous.methods.em.ctf_refinement import OpticsTally, ScaledImages
from vitreous.methods.em.expectation import ExpectationStep, together
from vitreous.methods.em.half_set import HalfSet
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.micrograph_optics import Micrographs, OpticsRefinement
from vitreous.methods.em.pose_posterior import (
    ExpectationResult,
    PoseCandidates,
    RefinedPoses,
    SampledPoses,
)
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    agreeing_shells,
    half_map,
    noise_to_signal,
    particle_sphere,
    wiener_map,
)
from vitreous.optim.loop import Stats
from vitreous.physics.insertion import Gridding

KEPT = 4  # candidates of each image handed to the next round
_SMOOTH = 1.3  # a round's maps reach beyond its band as the next may grow, and by this
_PROGRESS = 0.1  # shells' worth of FSC: less is none
_PATIENCE = 2  # rounds without progress
_FRAME_RAD = 0.1  # phase at the band's edge by which half maps may stay apart
_ASSIGNING = 0.9  # of a round's time
_LEAST_KEPT = 0.1  # of a half set, whatever is rejected

Correlate = Callable[[Tensor, Tensor], Tensor]
Register = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class Refinement:
    """The rounds; one call of :meth:`step` is one of them.

    Args:
        images: protein positive.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        half: long ``(b,)`` of 1 and 2.
        start: map ``(n, n, n)`` of the images' box and any grey scale, or one for each half set;
            only frequencies up to ``config.start_resolution_angstrom`` are used.
        config: settings.
        correlate: Fourier shell correlation of two maps, such as :func:`vitreous.maps.fsc.fsc`.
        register: rotation ``(3, 3)`` and shift (x, y, z) in Å that bring a map onto another one
            close to it, given both and their pixel size; needed where each half has its own start.
        micrograph: long ``(b,)`` from 0 on; needed to refine defocus or scale of micrographs.
        progress: told the share of a round that is done, after each batch of images.
        device: where to compute; that of ``start`` by default.

    Raises:
        ValueError: lengths or boxes that do not agree, a half set without images, a start
            resolution that leaves nothing to compare, no micrographs where they are needed, two
            starts for one map.
    """

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        half: Tensor,
        start: Tensor | tuple[Tensor, Tensor],
        config: RefinementConfig,
        *,
        correlate: Correlate,
        register: Register | None = None,
        progress: Callable[[float], object] | None = None,
        micrograph: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        n, total = images.box_size, len(images)
        blank = torch.eye(3).expand(total, 3, 3)
        check_image_rows(images, blank, None, optics, half, n)
        starts = (start, start) if isinstance(start, Tensor) else start
        if config.one_map and not isinstance(start, Tensor):
            raise ValueError("one_map takes one start, got one for each half set")
        for one in starts:
            if tuple(one.shape) != (n, n, n):
                raise ValueError(
                    f"start must be {(n, n, n)} as the images are, got {tuple(one.shape)}"
                )
        each = [(half == which).nonzero().flatten() for which in (1, 2)]
        if min(len(rows) for rows in each) == 0:
            raise ValueError("half must hold both 1 and 2; split the images into two sets")
        self.images, self.optics, self.half = images, optics, half
        self.pixel_size_angstrom, self.config = pixel_size_angstrom, config
        self._correlate, self._register = correlate, register
        self._progress = progress or float
        self._device = device or starts[0].device
        self._halves = [HalfSet(which, rows, self._device) for which, rows in enumerate(each)]
        self._top = (n - 1) // 2
        self.radius = min(self._top, round(self._length / config.start_resolution_angstrom))
        if self.radius < 2:
            raise ValueError(
                f"start_resolution_angstrom {config.start_resolution_angstrom} leaves no shells of "
                f"a box of {self._length:.0f} Å; it must be at most {self._length / 2:.0f}"
            )
        sphere = self._sphere(n)
        self.references = tuple(one.to(self._device) * sphere for one in starts)
        sharing = [torch.cat(each)] * 2 if config.one_map else each
        self.noise_power = [shell_power(images, rows).to(self._device) for rows in sharing]
        self.round = 0
        self.sums: tuple[Gridding, Gridding] | None = None
        self.fsc = torch.ones(n // 2 + 1, dtype=torch.float64)
        self._best, self._stale = 0.0, 0
        self.judged = OpticsRefinement(optics, micrograph, total, each, config, self._device)

    @property
    def _length(self) -> float:
        return self.images.box_size * self.pixel_size_angstrom

    def _sphere(self, box: int) -> Tensor:
        diameter = self.config.diameter_angstrom or self._length
        return particle_sphere(box, diameter / self._length, self._device)

    @property
    def _batches(self) -> Batches | None:
        """Those that this round is one of."""
        batches = self.config.batches
        return batches if batches is not None and self.round < batches.rounds else None

    def _assign(self, halves: Sequence[HalfSet], search: bool) -> None:
        """Poses of half sets that share a map, and the noise that is left of them."""
        first = halves[0].which
        starts = {half: half.start() for half in halves}
        again = all(start is not None for start in starts.values())
        known = self.noise_power[first]
        assigner = ExpectationStep(
            self.references[first],
            self.pixel_size_angstrom,
            self.config.radii(self.radius, search=search),
            known,
            self.config,
            search=search,
            recentre=again,
        )
        scale = self.judged.scale().to(self._device) if self.round else None
        tallies = {
            half: [] if search or not self.judged else self._tallies(half.which, assigner)
            for half in halves
        }
        total = sum(len(half.now) for half in halves)
        of_round = sum(len(half.now) for half in self._halves)
        max_batch, optics = together(self._device, total), self.optics

        def assign(
            batch: tuple[HalfSet, Tensor, Tensor],
        ) -> tuple[HalfSet, Tensor, Tensor, ExpectationResult]:
            half, mine, images = batch[0], batch[1], batch[2].to(self._device, torch.float32)
            start = starts[half] if again else None
            assigned = assigner(
                images,
                None if optics is None else optics[mine].to(self._device),
                start=None if start is None else start[half.place(mine)],
                scale=None if scale is None or self.config.scale == "image" else scale[mine],
                generator=self._stream(half.which, int(mine[0])),
            )
            return half, mine, images, assigned

        parts: dict[HalfSet, list[ExpectationResult]] = {half: [] for half in halves}
        left = torch.zeros(assigner.refiner.band.radius + 1, dtype=torch.float64)
        done = sum(len(half.now) for half in self._halves[:first])
        batches = self._read(halves, max_batch)
        for half, mine, images, assigned in parallel_map(assign, batches, self._device):
            parts[half].append(assigned)
            for judged, tally in tallies[half]:
                judged.add(tally, mine, images, assigned.found)
            left += assigned.left
            done += len(mine)
            self._progress(_ASSIGNING * done / of_round)
        for half in halves:
            of_half = parts[half]
            drawn = [part.drawn for part in of_half if part.drawn is not None]
            half.keep(
                PoseCandidates.cat([part.found.best(KEPT) for part in of_half]),
                SampledPoses.cat(drawn) if drawn else None,
            )
            self.noise_power[half.which] = assigner.noise_after(known, left / total)
            for judged, tally in tallies[half]:
                judged.settle(half.which, tally)
        self.optics = self.judged.optics()

    def _read(
        self, halves: Sequence[HalfSet], max_batch: int | None
    ) -> Iterator[tuple[HalfSet, Tensor, Tensor]]:
        """Half set, rows and images of this round, batch by batch."""
        for half in halves:
            for rows, images in read_ahead(self.images, half.now, max_batch=max_batch):
                yield half, rows, images

    def _tallies(
        self, which: int, assigner: ExpectationStep
    ) -> list[tuple[Micrographs, OpticsTally]]:
        """For what is refined of micrographs and particles, under the map of the other half."""
        band, power = assigner.refiner.band, self.noise_power[which]
        other = PoseRefiner(self.references[1 - which], band, band.noise_power(power))
        return [(one, one.tally(other)) for one in self.judged]

    def _stream(self, which: int, first: int) -> torch.Generator | None:
        """Of the draws of a batch, by its first row; None where there are none."""
        if self.config.assignment != "soft":
            return None
        return numbered_generator(self._device, self.config.seed, self.round, which, first)

    def _chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, rotation, shift and weight of everything to be inserted, in the images' order."""
        columns: list[tuple[Tensor, ...]] = []
        for half in self._halves:
            found = half.found_now()
            kept = self._kept(found)
            rotation, shift = found.rotation[:, :1], found.shift_angstrom[:, :1]
            if half.drawn is not None:
                rotation, shift = half.drawn.rotation, half.drawn.shift_angstrom
            many = rotation.shape[1]
            rows = half.now[kept.cpu()].repeat_interleave(many)
            weight = torch.full((len(rows),), 1 / many)
            columns.append((rows, rotation[kept].flatten(0, 1), shift[kept].flatten(0, 1), weight))
        row, rotation, shift, weight = (torch.cat(c) for c in zip(*columns, strict=True))
        order = row.argsort(stable=True)
        there = order.to(rotation.device)
        return row[order], rotation[there].cpu(), shift[there].cpu(), weight[order]

    def _kept(self, found: PoseCandidates) -> Tensor:
        """Which images are reconstructed from: those that the particle explains better than noise.

        Between a particle of the map's own scale and none at all, a gain of 0 is the even chance.
        """
        every = torch.ones(len(found), dtype=torch.bool, device=found.log_likelihood_ratio.device)
        if not self.config.reject or self.round < self.config.searches:
            return every
        better = found.log_likelihood_ratio[:, 0] > 0
        return better if float(better.float().mean()) > _LEAST_KEPT else every

    def _insert(self, box: int) -> tuple[Gridding, Gridding]:
        """Sums of both halves from the present poses."""
        row, rotation, shift, weight = self._chosen()
        images: ImageSource = ImageSubset(self.images, row)
        if self.config.scale != "one":  # a c y and a^2 c^2 are to be summed
            scale = self.judged.scale()[row]
            images, weight = ScaledImages(images, 1 / scale), weight * scale.square()
        return accumulate(
            images,
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

    def _reconstruct(self) -> None:
        """Sums of both halves, the FSC between them, and the maps for the next round."""
        n = self.images.box_size
        reach = math.ceil(self.radius * self.config.growth * _SMOOTH) + 3
        box = min(n, 2 * reach)
        sphere = self._sphere(box)
        self.sums = self._insert(box)
        first, second = (half_map(one) * sphere for one in self.sums)
        if self._brought_together(first, second):
            self.sums = self._insert(box)
            second = half_map(self.sums[1]) * sphere
        curve = self._correlate(first, second).cpu()
        self.fsc = torch.zeros(n // 2 + 1, dtype=torch.float64)
        self.fsc[: len(curve)] = curve
        of_all = noise_to_signal(curve)
        if self.config.one_map:
            weighted = [wiener_map(self.sums[0] + self.sums[1], of_all)] * 2
        else:
            weighted = [wiener_map(one, 2 * of_all) for one in self.sums]
        self.references = tuple(fourier_resize(one * sphere, n, 3) for one in weighted)

    def _brought_together(self, first: Tensor, second: Tensor) -> bool:
        """Move the poses of half set 2 into the frame of half map 1, if they are apart."""
        if self._register is None:
            return False
        pixel = self._length / first.shape[-1]
        rotation, shift = self._register(second, first, pixel)
        turn = torch.linalg.matrix_norm(rotation - torch.eye(3).to(rotation)) / math.sqrt(2)
        apart = math.pi * self.radius / 2 * turn + 2 * math.pi * self.radius / self._length * (
            shift.norm()
        )
        if float(apart) < _FRAME_RAD:
            return False
        self._halves[1].move(rotation, shift)
        return True

    @torch.no_grad()
    def step(self) -> Stats:
        """One round; numbers of it."""
        search = self.round < self.config.searches
        band = self.radius
        for half in self._halves:
            half.deal(self._batches, self.round, self.config.seed)
        for sharing in [self._halves] if self.config.one_map else [[h] for h in self._halves]:
            self._assign(sharing, search)
        self._reconstruct()
        self.round += 1
        agreeing = agreeing_shells(self.fsc)
        area = float(self.fsc[1 : agreeing + 1].sum())
        self._stale = 0 if area > self._best + _PROGRESS else self._stale + 1
        self._best = max(area, self._best)
        grown = max(band + 1, math.floor(self.config.growth * band))
        self.radius = min(self._top, grown, max(agreeing, 2))
        if self._batches is not None:
            self.radius = min(self.radius, self._batches.radius)
        both = [half.found_now() for half in self._halves]
        return {
            "band_angstrom": self._length / band,
            "resolution_angstrom": self._length / max(1, agreeing),
            "posterior": float(torch.cat([f.posterior[:, 0] for f in both]).mean()),
            "log_likelihood_ratio": float(
                torch.cat([f.log_likelihood_ratio[:, 0] for f in both]).mean()
            ),
        }

    @property
    def settled(self) -> bool:
        """Whether the halves have not come to agree better for two rounds."""
        return self._stale >= _PATIENCE and self.round > self.config.searches

    def misfit(self, radius: int) -> float:
        """Twice the negative logarithm of the likelihood of an image, but for a constant.

        Of runs with the same images the one with the lower value explains them better.

        Args:
            radius: up to this shell.
        """
        n = self.images.box_size
        points = torch.bincount(shell_index(n, 2).flatten(), minlength=n // 2 + 1)[1 : radius + 1]
        power = [one[1 : radius + 1].double().cpu().log() for one in self.noise_power]
        return float(sum((points * one).sum() for one in power)) / 2

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors and numbers from which :meth:`restore` goes on, bit by bit."""
        tensors: dict[str, Tensor] = {"fsc": self.fsc}
        for which in (0, 1):
            tensors[f"reference.{which}"] = self.references[which]
            tensors[f"noise.{which}"] = self.noise_power[which]
            tensors |= self._halves[which].state()
            if self.sums is not None:
                tensors[f"numerator.{which}"] = self.sums[which].numerator
                tensors[f"weight.{which}"] = self.sums[which].weight
        tensors |= self.judged.state()
        box = 0 if self.sums is None else self.sums[0].box_size
        numbers = {"round": self.round, "radius": self.radius, "box": box}
        return tensors, numbers | {"best": self._best, "stale": self._stale}

    def restore(self, tensors: dict[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Go on from a :meth:`state` of a task with the same images and settings."""
        here = {name: value.to(self._device) for name, value in tensors.items()}
        self.round, self.radius = int(numbers["round"]), int(numbers["radius"])
        self._best, self._stale = float(numbers["best"]), int(numbers["stale"])
        self.fsc = tensors["fsc"].cpu()
        self.references = (here["reference.0"], here["reference.1"])
        self.noise_power = [here["noise.0"], here["noise.1"]]
        if self.round == 0:
            return
        for half in self._halves:
            half.restore(here)
        self.judged.restore(here)
        self.optics = self.judged.optics()
        first, second = (
            Gridding(here[f"numerator.{which}"], here[f"weight.{which}"], int(numbers["box"]))
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

    def poses(self) -> RefinedPoses:
        """What was found for every image, in the images' order; zeros and identities for others.

        Raises:
            RuntimeError: before the first round.
        """
        each = [half.found for half in self._halves if half.found is not None]
        if len(each) < len(self._halves):
            raise RuntimeError("no round was done; call step() first")
        found = PoseCandidates.cat(each)
        rows = torch.cat([half.rows for half in self._halves]).to(found.log_likelihood_ratio.device)
        ordered = PoseCandidates(
            **{name: _placed(value, rows, len(self.images)) for name, value in vars(found).items()}
        )
        unused = torch.ones(len(self.images), dtype=torch.bool, device=rows.device)
        unused[rows] = False
        ordered.rotation[unused] = torch.eye(3, device=rows.device)
        kept = torch.cat([self._kept(one) for one in each])
        return RefinedPoses(
            Pose(ordered.rotation[:, 0], ordered.shift_angstrom[:, 0]),
            ordered.posterior[:, 0],
            ordered.log_likelihood_ratio[:, 0] / 2,
            ordered.scale[:, 0],
            _placed(kept, rows, len(self.images)),
            ordered,
        )


def _placed(values: Tensor, rows: Tensor, total: int) -> Tensor:
    out = values.new_zeros((total, *values.shape[1:]))
    return out.index_copy(0, rows, values)
