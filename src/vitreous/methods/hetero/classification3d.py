r"""3D classification: pose and class of every image under several maps, and the maps from those.

A round estimates poses under every map (:mod:`vitreous.methods.em.expectation`), takes for each
image the map and pose of the highest likelihood, and reconstructs every map from its images by
gridding (:mod:`vitreous.methods.reconstruct.gridding`), weighted by the FSC between the maps of its
odd and its even images. The first round may search all poses; later ones refine the candidates
that were kept. All maps share one frame, one frequency band and one noise power, so that their
likelihoods can be compared.

The maps must differ at the start, such as those of clusters of a
:class:`~vitreous.methods.hetero.linear_variability.LinearVariability`: rounds sharpen differences,
they do not find them.

Images that have lost their poses together, often those of some views, make a map of their own. It
explains them better than the map of their structure does, because that one lacks their views. Such
a map can be recognised: under the other maps its images have poses in another frame, at little cost
of likelihood (:func:`~vitreous.methods.hetero.merge_classes.duplicate_maps`). The first round, if
it searches, drops such maps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.images import (
    ImageSource,
    check_image_rows,
    pixel_size_of,
    read_ahead,
    shell_power,
)
from vitreous.core.params import Optics, Pose
from vitreous.core.threads import parallel_map
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep, images_at_once
from vitreous.methods.em.pose_posterior import ExpectationResult, PoseCandidates
from vitreous.methods.hetero.merge_classes import duplicate_maps
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    agreeing_shells,
    half_map,
    noise_to_signal,
    particle_sphere,
    wiener_map,
)
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.admm_config import STRICT
from vitreous.optim.loop import Stateful

_KEPT_CANDIDATES = 4  # of each image, for the next round
_MIN_IMAGES = 2  # of a class whose map is reconstructed again


@validated(frozen=True, config=STRICT)
class ClassificationConfig:
    """Settings of :class:`Classification`.

    Args:
        poses: settings of the pose search and refinement; its numbers of rounds and draws, its
            bands and its rejection of images are not used.
        rounds: most rounds.
        search: whether the first round searches all poses.
        settled: rounds end when at most this share of the images changes its class.
        radius: highest shell compared.
        loss: a search drops a map whose images lose less than this share of their likelihood
            without it, if they have poses in another frame under the other maps; 0 drops none.
    """

    poses: RefinementConfig
    rounds: int = Field(default=6, ge=1)
    search: bool = True
    settled: float = Field(default=0.002, ge=0)
    radius: int = Field(default=24, ge=2)
    loss: float = Field(default=0.25, ge=0)


@dataclass(frozen=True)
class _MapComparison:
    """Images compared with all maps."""

    candidates: PoseCandidates  # under the best map of each image
    likelihood: Tensor  # (b, K), log-likelihood ratio
    rotation: Tensor | None  # (b, K, 3, 3), best under each map; None without a search
    residual_power: Tensor  # (K, shells), summed over the images


class Classification(Stateful):
    """Solver of a 3D classification; a call of :meth:`step` is one round.

    Args:
        images: protein positive.
        optics: CTF of each image; None for none.
        poses: of each image, to start from, in the frame of the maps.
        maps: ``(K, n, n, n)`` of the images' box size and, unless each image has a scale of its own
            (``config.poses.scale``), of their grey scale.
        config: settings.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        report_progress: called with the share of a round that is done, after each batch of images.
        device: where to compute; that of the maps by default.

    Attributes:
        classes: long ``(b,)`` from 0 on; -1 before the first round.
        dropped: numbers of the maps that the latest round dropped; the following ones move up.
        likelihood: ``(b, K)``, log-likelihood of each image under each map minus that of noise.
        maps: ``(K, n, n, n)``.
        half_maps: unfiltered, of the odd and even images of each class, ``(K, 2, n, n, n)``; the
            poses of both were estimated under the same map.

    Raises:
        ValueError: lengths or boxes that do not agree.
    """

    STATE = (
        "round",
        "changed",
        "classes",
        "likelihood",
        "maps",
        "half_maps",
        "noise_power",
        "_candidates",
    )

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        poses: Pose,
        maps: Tensor,
        config: ClassificationConfig,
        *,
        pixel_size_angstrom: float | None = None,
        report_progress: Callable[[float], object] | None = None,
        device: torch.device | None = None,
    ) -> None:
        n, total = images.box_size, len(images)
        self._half = torch.arange(total) % 2 + 1
        check_image_rows(images, poses.rotation, poses.shift_angstrom, optics, self._half, n)
        if maps.ndim != 4 or tuple(maps.shape[1:]) != (n, n, n):
            raise ValueError(f"maps must be (K, {n}, {n}, {n}), got {tuple(maps.shape)}")
        self.images, self.optics, self.config = images, optics, config
        self.pixel_size_angstrom = pixel_size_of(images, pixel_size_angstrom)
        self._report_progress = report_progress or float
        self._device = device or maps.device
        self.radius = min(config.radius, (n - 1) // 2)
        self.maps = maps.to(self._device, torch.float32) * self._sphere(n)
        self.half_maps = torch.zeros(len(maps), 2, n, n, n)
        self.noise_power = shell_power(images, torch.arange(total)).to(self._device)
        self.round, self.changed = 0, 1.0
        self.dropped: list[int] = []
        self.classes = torch.full((total,), -1, dtype=torch.long)
        self.likelihood = torch.zeros(total, len(maps))
        self._candidates = _known_poses(poses)

    @property
    def poses(self) -> Pose:
        """Best pose of every image under the map of its class."""
        return Pose(self._candidates.rotation[:, 0], self._candidates.shift_angstrom[:, 0])

    @property
    def scale(self) -> Tensor:
        """Factor of the map in each image, ``(b,)``."""
        return self._candidates.scale[:, 0]

    @property
    def done(self) -> bool:
        """Whether the classes have settled, or all rounds are done."""
        return self.round >= self.config.rounds or self.changed <= self.config.settled

    @property
    def progress(self) -> float:
        """Share of the rounds that is done, 0 to 1."""
        return 1.0 if self.done else self.round / self.config.rounds

    def _sphere(self, box: int) -> Tensor:
        length = self.images.box_size * self.pixel_size_angstrom
        diameter = self.config.poses.diameter_angstrom or length
        return particle_sphere(box, diameter / length, self._device)

    def _assign(self) -> None:
        """Estimate pose and class of every image, and the noise power."""
        search = self.config.search and self.round == 0
        steps = [
            ExpectationStep(
                one,
                self.pixel_size_angstrom,
                self.config.poses.radii(self.radius, search=search),
                self.noise_power,
                self.config.poses,
                search=search,
            )
            for one in self.maps
        ]
        compared = self._compare(steps, torch.arange(len(self.images)), search=search)
        self._candidates, self.likelihood = compared.candidates, compared.likelihood
        residual_power = compared.residual_power
        self.dropped = []
        if search and self.config.loss > 0:
            self.dropped = duplicate_maps(
                compared.likelihood, compared.rotation, self.config.loss, self.config.poses.symmetry
            )
        if self.dropped:
            kept = [k for k in range(len(self.maps)) if k not in self.dropped]
            rows = torch.isin(self.likelihood.argmax(1), torch.tensor(self.dropped))
            rows = rows.nonzero().flatten()
            compared = self._compare([steps[k] for k in kept], rows, search=True)
            self._candidates = self._candidates.updated(rows, compared.candidates)
            self.likelihood = self.likelihood[:, kept]
            self.likelihood[rows] = compared.likelihood
            self.maps, self.half_maps = self.maps[kept], self.half_maps[kept]
            residual_power = residual_power[kept]
            self.classes = torch.full_like(self.classes, -1)
        classes = self.likelihood.argmax(1)
        self.changed = float((classes != self.classes).double().mean())
        self.classes = classes
        # the residual of a wrong map is more than noise; the smallest is nearest to it
        smallest = residual_power.amin(0) / len(self.images)
        self.noise_power = steps[0].updated_noise_power(self.noise_power, smallest)

    def _compare(
        self, steps: list[ExpectationStep], rows: Tensor, *, search: bool
    ) -> _MapComparison:
        """Compare the images ``rows`` with every map."""
        fixed = None if self.config.poses.scale == "image" else 1.0
        residual_power = torch.zeros(len(steps), steps[0].refiner.band.radius + 1).double()
        candidates: list[PoseCandidates] = []
        likelihood: list[Tensor] = []
        rotation: list[Tensor] = []
        done = 0

        def assign(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, list[ExpectationResult]]:
            chosen, images = batch[0], batch[1].to(self._device, torch.float32)
            optics = None if self.optics is None else self.optics[chosen].to(self._device)
            start = None if search else self._candidates[chosen].to(self._device)
            return chosen, [step(images, optics, start=start, scale=fixed) for step in steps]

        batches = read_ahead(self.images, rows, max_batch=images_at_once(self._device, len(rows)))
        for chosen, results in parallel_map(assign, batches, self._device):
            residual_power += torch.stack([result.residual_power for result in results])
            best, log_likelihood_ratio, best_rotation = _best(results)
            candidates.append(best.to(torch.device("cpu")))
            likelihood.append(log_likelihood_ratio.cpu() / 2)
            rotation.append(best_rotation.cpu())
            done += len(chosen)
            self._report_progress(done / len(rows) if len(rows) == len(self.images) else 1.0)
        return _MapComparison(
            PoseCandidates.cat(candidates),
            torch.cat(likelihood),
            torch.cat(rotation) if search else None,
            residual_power,
        )

    def _reconstruct(self) -> list[float]:
        """Reconstruct the maps and return the resolution of each, Å.

        The map of a class of too few images stays as it is.
        """
        n, maps, halves = self.images.box_size, self.maps.clone(), self.half_maps.clone()
        pose, sphere = self.poses, self._sphere(n)
        particles = PosedParticles(
            self.images,
            pose.rotation,
            pose.shift_angstrom,
            self.optics,
            self.pixel_size_angstrom,
            self._half,
        )
        resolution: list[float] = []
        for k in range(len(maps)):
            rows = (self.classes == k).nonzero().flatten()
            if len(rows) < _MIN_IMAGES:
                resolution.append(math.inf)
                continue
            half_set = torch.arange(len(rows)) % 2 + 1
            of_class = replace(particles.subset(rows), half_set=half_set)
            sums = accumulate(of_class, device=self._device)
            pair = torch.stack([half_map(one) for one in sums])
            halves[k] = pair.to(halves)
            curve = fsc(pair[0] * sphere, pair[1] * sphere).cpu()
            resolution.append(n * self.pixel_size_angstrom / max(1, agreeing_shells(curve)))
            maps[k] = wiener_map(sums[0] + sums[1], noise_to_signal(curve)) * sphere
        self.maps, self.half_maps = maps, halves
        return resolution

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Do one round and return its statistics."""
        self._assign()
        resolution = self._reconstruct()
        self.round += 1
        shares = torch.bincount(self.classes, minlength=len(self.maps)) / len(self.classes)
        top = self.likelihood.topk(min(2, len(self.maps)), dim=1).values
        stats = {
            "round": self.round,
            "changed": self.changed,
            "margin": float((top[:, 0] - top[:, -1]).median()),
        }
        if self.dropped:
            stats["dropped"] = float(len(self.dropped))
        for k, (share, angstrom) in enumerate(zip(shares.tolist(), resolution, strict=True)):
            stats |= {f"share_{k + 1}": share, f"resolution_{k + 1}": angstrom}
        return stats

    def result(self) -> Pose:
        """Return the pose of every image, on the CPU."""
        return Pose(self.poses.rotation.cpu(), self.poses.shift_angstrom.cpu())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict` of a solver with the same images, maps and settings.

        The state has fewer maps where a round has dropped some.

        Raises:
            ValueError: more maps than this solver has, or another box size.
        """
        saved, own = tuple(state["maps"].shape), tuple(self.maps.shape)
        if saved[0] > own[0] or saved[1:] != own[1:]:
            raise ValueError(
                f"the state has maps {saved}, this solver {own}; resume with the maps that the run "
                "started from"
            )
        super().load_state_dict(state)


def _known_poses(poses: Pose) -> PoseCandidates:
    """Return known poses as the only candidates of their images."""
    rotation = poses.rotation.float().cpu()[:, None]
    one = torch.ones(len(rotation), 1)
    shift = poses.shift_angstrom.float().cpu()[:, None]
    return PoseCandidates(rotation, shift, 0 * one, one, one, torch.zeros(len(rotation), 1, 5, 5))


def _best(results: list[ExpectationResult]) -> tuple[PoseCandidates, Tensor, Tensor]:
    """Return each image's candidates under its best map, and its ratio and rotation by each map."""
    by_map = [result.candidates.best(_KEPT_CANDIDATES) for result in results]
    log_likelihood_ratio = torch.stack([one.log_likelihood_ratio[:, 0] for one in by_map], 1)
    count = len(log_likelihood_ratio)
    rows = torch.arange(count, device=log_likelihood_ratio.device)
    best = PoseCandidates.cat(by_map)[log_likelihood_ratio.argmax(1) * count + rows]
    rotation = torch.stack([one.rotation[:, 0] for one in by_map], 1)
    return best, log_likelihood_ratio, rotation
