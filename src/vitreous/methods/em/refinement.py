r"""Reconstruction from images of unknown poses and a start map, by expectation maximisation.

A round finds poses within a frequency band (:mod:`vitreous.methods.em.expectation`), each half set
under its own map only, and reconstructs both half maps
(:mod:`vitreous.methods.reconstruct.gridding`): hard, from the best pose of each image, or soft,
from poses sampled from its likelihood. The FSC between the half maps is the Wiener weight of the
maps under which the next round finds poses, and ends its band. The noise power by shell is that of
the residual images of the round; before the first round it is that of the images themselves.

The half sets share that curve, and a few numbers: where they started from maps of their own, the
rotation and shift that bring half map 2 onto half map 1, and with it the poses of its images; where
they are refined, defocus and contrast of each micrograph or particle, estimated under the map of
the other half, and aberrations of each optics group, estimated from both
(:mod:`vitreous.methods.em.micrograph_optics`). The first rounds search all poses, later ones refine
the candidates that were kept. With :class:`~vitreous.methods.em.config.Batches` the first rounds
use a part of the images each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import DivergedError, InputError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index
from vitreous.core.images import (
    ImageSource,
    check_image_rows,
    pixel_size_of,
    shell_power,
)
from vitreous.core.params import Optics
from vitreous.core.random import numbered_generator
from vitreous.maps.align import align_nearby
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.em.config import Batches, RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep
from vitreous.methods.em.half_set import HalfSet, expectation_of_halves
from vitreous.methods.em.initial_model_result import Start, start_maps
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.maximisation import Maximisation, inserted_poses, kept_images
from vitreous.methods.em.micrograph_optics import ImageGroups, OpticsRefinement, OpticsSums
from vitreous.methods.em.pose_posterior import (
    ExpectationResult,
    PoseCandidates,
    RefinedPoses,
    SampledPoses,
)
from vitreous.methods.em.refinement_result import RefinementResult, ordered_poses
from vitreous.methods.em.regularised_maps import RegularisedMaps
from vitreous.methods.reconstruct.gridding import agreeing_shells, half_map
from vitreous.optim.loop import Stateful, Stats
from vitreous.physics.insertion import Gridding

KEPT_CANDIDATES = 4  # of each image, handed to the next round
_BAND_MARGIN = 1.3  # a round's maps reach beyond its band as the next may grow, and by this
_LEAST_PROGRESS = 0.1  # shells' worth of FSC
_PATIENCE = 2  # rounds without progress
_FRAME_RAD = 0.1  # phase at the band's edge by which half maps may stay apart
_EXPECTATION_SHARE = 0.9  # of a round's time
_USUAL_ROUNDS = 8
_PROGRESS = ("_best_area", "_stale_rounds")  # attributes: how far the half maps came to agree


class Refinement(Stateful):
    """Refinement of poses and half maps, a :class:`~vitreous.optim.loop.Solver`; a step is a round.

    Args:
        images: particle images, protein positive.
        optics: CTF parameters of each image; None for images without CTF.
        half_set: long ``(b,)`` of 1 and 2.
        start: map ``(n, n, n)`` of the images' box and any grey scale; or one for each half set,
            which are then brought into one frame; or an :class:`InitialModel`. Only frequencies up
            to ``config.start_resolution_angstrom`` are used. Its device is used.
        config: settings.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        groups: micrograph and optics group of each image; micrographs are needed to refine
            defocus or scale of micrographs.
        progress: called inside a round with the share of all rounds that is done.

    Attributes:
        round: number of rounds done.
        references: map of each half set, under which the next round finds poses.
        fsc: between the half maps, float64 ``(n // 2 + 1,)``.
        optics: CTF parameters of each image, as refined.

    Raises:
        ValueError: lengths or boxes that do not agree, a half set without images, a start
            resolution that leaves nothing to compare, no micrographs where they are needed, two
            starts for one map.
        InputError: images or start that are not finite.

    >>> import vitreous as vt
    >>> start = vt.phantom(16, 8.0, symmetry="D2")
    >>> particles = vt.simulate(start, 60, 8.0, snr_db=3, seed=1).with_half_sets(seed=1)
    >>> config = RefinementConfig(symmetry="D2", start_resolution_angstrom=40.0, rounds=1)
    >>> refinement = Refinement(
    ...     particles.images(), particles.optics, particles.half_set, start, config
    ... )
    >>> stats = refinement.step()
    >>> result = refinement.result()
    >>> result.map.shape, refinement.done
    (torch.Size([16, 16, 16]), True)
    """

    STATE = (
        *("round", "radius", "fsc", "references", "noise_power", "regularised", "_halves"),
        *_PROGRESS,
    )

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        half_set: Tensor,
        start: Start,
        config: RefinementConfig,
        *,
        pixel_size_angstrom: float | None = None,
        groups: ImageGroups | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        n, total = images.box_size, len(images)
        check_image_rows(images, torch.eye(3).expand(total, 3, 3), None, optics, half_set, n)
        starts, self._own_starts, resolution = start_maps(start, n)
        if config.start_resolution_angstrom is None:
            config = replace(config, start_resolution_angstrom=resolution)
        if config.one_map and self._own_starts:
            raise ValueError("one_map takes one start, got one for each half set")
        if config.one_map and config.prior != "wiener":
            raise ValueError(
                "one_map: no other half map tells the strength of a prior; leave it out"
            )
        rows = [(half_set == half).nonzero().flatten() for half in (1, 2)]
        if min(map(len, rows)) == 0:
            raise ValueError("half_set must hold both 1 and 2; split the images into two sets")
        self.optics, self.half_set, self.config = optics, half_set, config
        self.pixel_size_angstrom = pixel_size_of(images, pixel_size_angstrom)
        self._report, self._device = progress or float, starts[0].device
        self.optics_refinement = OpticsRefinement(
            optics, groups or ImageGroups(), total, rows, config, self._device
        )
        self.images = self.optics_refinement.images(images, self.pixel_size_angstrom)
        self._halves = [HalfSet(index, one, self._device) for index, one in enumerate(rows)]
        self._last_shell = (n - 1) // 2
        self.radius = config.start_radius(self._edge_angstrom, self._last_shell)
        self._maximisation = Maximisation(
            self.images, half_set, self.pixel_size_angstrom, config, self._device
        )
        sphere = self._maximisation.sphere(n)
        self.references: tuple[Tensor, ...] = tuple(
            volume.to(self._device) * sphere for volume in starts
        )
        sharing = [torch.cat(rows)] * 2 if config.one_map else rows
        self.noise_power = [shell_power(images, one).to(self._device) for one in sharing]
        if not self._is_finite:
            raise InputError("images or start: not finite; leave out damaged images (`skip_bad`)")
        self.round = 0
        self.sums: tuple[Gridding, Gridding] | None = None
        self.regularised = RegularisedMaps()
        self.fsc = torch.ones(n // 2 + 1, dtype=torch.float64)
        self._best_area, self._stale_rounds = 0.0, 0

    @property
    def _edge_angstrom(self) -> float:
        return self.images.box_size * self.pixel_size_angstrom

    @property
    def _is_finite(self) -> bool:
        """Whether what the next round finds poses by is finite."""
        return all(bool(one.isfinite().all()) for one in (*self.references, *self.noise_power))

    @property
    def _batches(self) -> Batches | None:
        """Batches of which this round uses one; None where it uses all images."""
        batches = self.config.batches
        return batches if batches is not None and self.round < batches.rounds else None

    # ---------------------------------------------------------------- expectation

    def _find_poses(self, halves: Sequence[HalfSet], search: bool) -> None:
        """Find poses of half sets that share a map, and the noise power of their residuals."""
        index = halves[0].index
        recentre = all(half.starting_candidates() is not None for half in halves)
        expectation = ExpectationStep(
            self.references[index],
            self.pixel_size_angstrom,
            self.config.radii(self.radius, search=search),
            self.noise_power[index],
            self.config,
            search=search,
            recentre=recentre,
        )
        scale = self.optics_refinement.scale().to(self._device) if self.round else None
        scale = None if self.config.scale == "image" else scale
        batches = expectation_of_halves(
            expectation,
            halves,
            self.images,
            self.optics,
            scale,
            recentre=recentre,
            stream=self._stream,
            device=self._device,
        )
        self._store(expectation, halves, batches, search=search)

    def _store(
        self,
        expectation: ExpectationStep,
        halves: Sequence[HalfSet],
        batches: Iterator[tuple[HalfSet, Tensor, Tensor, ExpectationResult]],
        *,
        search: bool,
    ) -> None:
        """Store candidates, noise power, defocus and contrast as batch after batch is done."""
        index = halves[0].index
        sums = {half: self._optics_sums(half.index, expectation, search) for half in halves}
        results: dict[HalfSet, list[ExpectationResult]] = {half: [] for half in halves}
        residual = torch.zeros(expectation.refiner.band.radius + 1, dtype=torch.float64)
        done = sum(len(half.round_rows) for half in self._halves[:index])
        of_round = sum(len(half.round_rows) for half in self._halves)
        for half, rows, images, result in batches:
            results[half].append(result)
            for one in sums[half]:
                one.add(rows, images, result.candidates)
            residual += result.residual_power
            done += len(rows)
            self._report(_usual_share(self.round + _EXPECTATION_SHARE * done / of_round))
        known = self.noise_power[index]
        residual /= sum(len(half.round_rows) for half in halves)
        for half in halves:
            sampled = [one.sampled for one in results[half] if one.sampled is not None]
            half.store(
                PoseCandidates.cat([one.candidates.best(KEPT_CANDIDATES) for one in results[half]]),
                SampledPoses.cat(sampled) if sampled else None,
            )
            self.noise_power[half.index] = expectation.updated_noise_power(known, residual)
            for one in sums[half]:
                one.settle(half.index)

    def _optics_sums(
        self, index: int, expectation: ExpectationStep, search: bool
    ) -> list[OpticsSums]:
        """Return the sums for the optics, under the map of the other half; none in searches."""
        if search or not self.optics_refinement:
            return []
        band, power = expectation.refiner.band, self.noise_power[index]
        other = PoseRefiner(self.references[1 - index], band, band.noise_power(power))
        return [self.optics_refinement.sums(other)]

    def _stream(self, half: HalfSet, rows: Tensor) -> torch.Generator | None:
        """Return the random stream of a batch's samples; None where there are none."""
        if self.config.assignment != "soft":
            return None
        numbers = self.round, half.index, int(rows[0])
        return numbered_generator(self._device, self.config.seed, *numbers)

    # ---------------------------------------------------------------- maximisation

    def _kept(self, candidates: PoseCandidates) -> Tensor:
        """Return which images are reconstructed from."""
        reject = self.config.reject and self.round >= self.config.searches
        return kept_images(candidates, reject=reject)

    def _insert(self, box: int) -> tuple[Gridding, Gridding]:
        """Return the sums of both halves under the present poses."""
        scale = None if self.config.scale == "one" else self.optics_refinement.scale()
        poses = inserted_poses(self._halves, self._kept)
        return self._maximisation.insert(poses, self.optics, scale, box)

    def _reconstruct(self) -> None:
        """Set the sums of both halves, the FSC between them, and the maps of the next round."""
        n = self.images.box_size
        reach = math.ceil(self.radius * self.config.growth * _BAND_MARGIN) + 3
        box = min(n, 2 * reach)
        sphere = self._maximisation.sphere(box)
        self.sums = self._insert(box)
        first, second = (half_map(one) * sphere for one in self.sums)
        if self._own_starts and self._aligned(first, second):
            self.sums = self._insert(box)
            second = half_map(self.sums[1]) * sphere
        curve = fsc(first, second).cpu()
        self.fsc = torch.zeros(n // 2 + 1, dtype=torch.float64)
        self.fsc[: len(curve)] = curve
        self.references = self._maximisation.references(self.sums, curve)
        if self.config.prior == "tv":
            power, wiener = self.noise_power, self.references
            self.references = tuple(self.regularised.half_maps(self.sums, power, sphere, wiener))

    def _aligned(self, first: Tensor, second: Tensor) -> bool:
        """Move the poses of half set 2 into the frame of half map 1; return whether any moved."""
        pixel = self._edge_angstrom / first.shape[-1]
        rotation, shift = align_nearby(
            second, first, pixel_size_angstrom=pixel, point_group=self.config.symmetry
        )
        angle_rad = torch.linalg.matrix_norm(rotation - torch.eye(3).to(rotation)) / math.sqrt(2)
        phase = math.pi * self.radius / 2 * angle_rad
        phase = phase + 2 * math.pi * self.radius / self._edge_angstrom * shift.norm()
        if float(phase) < _FRAME_RAD:
            return False
        self._halves[1].move(rotation, shift)
        return True

    # ---------------------------------------------------------------- solver

    @torch.no_grad()
    def step(self) -> Stats:
        """Do one round and return its statistics.

        Raises:
            DivergedError: its maps are not finite.
        """
        search = self.round < self.config.searches
        band = self.radius
        for half in self._halves:
            half.select_batch(self._batches, self.round, self.config.seed)
        for sharing in [self._halves] if self.config.one_map else [[h] for h in self._halves]:
            self._find_poses(sharing, search)
        if self.optics_refinement.aberrations is not None:
            self.optics_refinement.aberrations.settle()
        self.optics = self.optics_refinement.optics()
        self._reconstruct()
        self.round += 1
        if not self._is_finite:
            raise DivergedError(
                f"round {self.round}: the maps are not finite; look for damaged images with "
                "`vitreous check`, or continue from the last checkpoint with another `device`"
            )
        agreeing = agreeing_shells(self.fsc)
        area = float(self.fsc[1 : agreeing + 1].sum())
        stale = area <= self._best_area + _LEAST_PROGRESS
        self._stale_rounds = self._stale_rounds + 1 if stale else 0
        self._best_area = max(area, self._best_area)
        grown = max(band + 1, math.floor(self.config.growth * band))
        self.radius = min(self._last_shell, grown, max(agreeing, 2))
        if self._batches is not None:
            self.radius = min(self.radius, self._batches.radius)
        both = [half.round_candidates() for half in self._halves]
        ratio = torch.cat([one.log_likelihood_ratio[:, 0] for one in both])
        return {
            "band_angstrom": self._edge_angstrom / band,
            "resolution_angstrom": self._edge_angstrom / max(1, agreeing),
            "posterior": float(torch.cat([one.posterior[:, 0] for one in both]).mean()),
            "log_likelihood_ratio": float(ratio.mean()),
        }

    @property
    def settled(self) -> bool:
        """Whether the half maps have not come to agree better for two rounds."""
        return self._stale_rounds >= _PATIENCE and self.round > self.config.searches

    @property
    def done(self) -> bool:
        """Whether the rounds are used up or the half maps settled."""
        return self.round >= self.config.rounds or self.settled

    @property
    def progress(self) -> float:
        """Share of the rounds that are usually needed."""
        return 1.0 if self.done else _usual_share(self.round)

    def misfit(self, radius: int) -> float:
        """Return twice the negative log likelihood of an image, up to a constant.

        Of runs with the same images, the one with the lower value explains them better.

        Args:
            radius: highest shell compared; those of the box at most.
        """
        n = self.images.box_size
        shells = slice(1, min(radius, n // 2) + 1)
        points = torch.bincount(shell_index(n, 2).flatten())[shells]
        power = [one[shells].double().cpu().log() for one in self.noise_power]
        return float(sum((points * one).sum() for one in power)) / 2

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round needs."""
        sums = None if self.sums is None else [vars(one) for one in self.sums]
        return super().state_dict() | {
            "sums": sums,
            "optics": self.optics_refinement.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a refinement of the same images and settings."""
        super().load_state_dict(state)
        self.optics_refinement.load_state_dict(state["optics"])
        self.optics = self.optics_refinement.optics()
        self.sums = None
        if state["sums"] is not None:
            here = self._device
            first, second = (
                Gridding(one["numerator"].to(here), one["weight"].to(here), one["box_size"])
                for one in state["sums"]
            )
            self.sums = first, second

    # ---------------------------------------------------------------- results

    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return unfiltered half maps, and the regularised map of all images, ``(n, n, n)``.

        Raises:
            RuntimeError: before the first round.
        """
        if self.sums is None:
            raise RuntimeError("no round was done; call step() first")
        half1, half2, average = self._maximisation.maps(self.sums, self.fsc)
        if self.regularised.preferred:
            sphere = self._maximisation.sphere(self.sums[0].box_size)
            average = self.regularised.map_of_all(self.sums, self.noise_power, sphere)
            average = fourier_resize(average, self.images.box_size, 3)
        return half1, half2, average

    def poses(self) -> RefinedPoses:
        """Return the poses in the images' order; zeros and identities for unused images.

        Raises:
            RuntimeError: before the first round.
        """
        of_halves = [half.candidates for half in self._halves if half.candidates is not None]
        if len(of_halves) < len(self._halves):
            raise RuntimeError("no round was done; call step() first")
        kept = torch.cat([self._kept(one) for one in of_halves])
        rows = torch.cat([half.rows for half in self._halves])
        return ordered_poses(PoseCandidates.cat(of_halves), kept, rows, len(self.images))

    def result(self) -> RefinementResult:
        """Return maps, poses and resolution.

        Raises:
            RuntimeError: before the first round.
        """
        half1, half2, average = self.maps()
        n, pixel = self.images.box_size, self.pixel_size_angstrom
        return RefinementResult(
            half1=half1,
            half2=half2,
            map=average,
            poses=self.poses(),
            fsc=self.fsc,
            resolution_angstrom=fsc_resolution(self.fsc, 0.143, n, pixel),
            rounds=self.round,
            settled=self.settled,
            optics=self.optics_refinement,
        )


def _usual_share(rounds: float) -> float:
    """Return the share of the work done; nobody knows how many rounds it takes."""
    return rounds / max(_USUAL_ROUNDS, rounds + 1)
