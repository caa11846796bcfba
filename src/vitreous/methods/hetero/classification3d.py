r"""Particles of several known maps: pose and class of every image, new maps, and again.

A round assigns poses under every map (:mod:`vitreous.methods.em.expectation`), takes for each
image the map and pose of the highest likelihood, and makes every map anew from its images by direct
reconstruction (:mod:`vitreous.methods.reconstruct.gridding`), weighted by the FSC between its odd
and its even
images. The first round may search among all poses; others refine the candidates that were kept. All
maps share one frame, one band and one noise, so that likelihoods compare.

It needs maps that differ already, such as those of clusters of a
:class:`~vitreous.methods.hetero.linear_variability.LinearVariability`: what they differ in is
sharpened, not found.

Images whose poses were lost together, often those of some views, make a map that explains them
better than that of their structure does as long as it lacks them. It gives itself away: under the
other maps their poses are in another frame, at little cost of likelihood (:func:`superfluous`). The
first round, if it searches, drops such maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.images import ImageSource, ImageSubset, check_image_rows, read_ahead, shell_power
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import geodesic_distance_deg
from vitreous.core.symmetry import point_group
from vitreous.core.threads import parallel_map
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep, together
from vitreous.methods.em.pose_posterior import ExpectationResult, PoseCandidates
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    agreeing_shells,
    half_map,
    noise_to_signal,
    particle_sphere,
    wiener_map,
)
from vitreous.optim.admm_config import STRICT

KEPT = 4  # candidates of each image handed to the next round
_LEAST = 2  # images of a class whose map is made anew
_EQUAL = 0.02  # of the likelihood: costs that differ by less are the same
_APART_DEG = 20.0

Correlate = Callable[[Tensor, Tensor], Tensor]


@validated(frozen=True, config=STRICT)
class ClassificationConfig:
    """Rounds of :class:`Classification`.

    Args:
        poses: of search and refinement of one round; what is said there of rounds, draws, bands and
            rejection does not matter here.
        rounds: at most.
        search: whether the first round searches among all poses.
        settled: share of images that change their class, at which rounds end.
        radius: highest shell compared.
        loss: share of the likelihood of its images that a map may be worth and yet be dropped by a
            search, if their poses are in another frame under the others; 0 drops none.
    """

    poses: RefinementConfig
    rounds: int = Field(default=6, ge=1)
    search: bool = True
    settled: float = Field(default=0.002, ge=0)
    radius: int = Field(default=24, ge=2)
    loss: float = Field(default=0.25, ge=0)


@dataclass(frozen=True)
class _Swept:
    """Images under all maps: candidates of the best, likelihoods, rotations, what is left."""

    found: PoseCandidates
    likelihood: Tensor
    rotation: Tensor | None
    left: Tensor


class Classification:
    """The rounds; one call of :meth:`step` is one of them.

    Args:
        images: protein positive.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        poses: of each, to start from, in the frame of the maps.
        maps: ``(K, n, n, n)`` of the images' box and, unless each image has a scale of its own
            (``config.poses.scale``), of their grey scale.
        config: settings.
        correlate: Fourier shell correlation of two maps, such as :func:`vitreous.maps.fsc.fsc`.
        progress: told the share of a round that is done, after each batch of images.
        device: where to compute; that of the maps by default.

    Attributes:
        classes: long ``(b,)`` from 0 on; -1 before the first round.
        dropped: numbers of the maps that the latest round dropped; others move up.
        likelihood: ``(b, K)``, logarithm of each image's under each map, over that of noise alone.
        maps: ``(K, n, n, n)``.
        half_maps: unfiltered, of the odd and even images of each class, ``(K, 2, n, n, n)``; the
            poses of both were found under the same map.

    Raises:
        ValueError: lengths or boxes that do not agree.
    """

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        poses: Pose,
        maps: Tensor,
        config: ClassificationConfig,
        *,
        correlate: Correlate,
        progress: Callable[[float], object] | None = None,
        device: torch.device | None = None,
    ) -> None:
        n, total = images.box_size, len(images)
        self._half = torch.arange(total) % 2 + 1
        check_image_rows(images, poses.rotation, poses.shift_angstrom, optics, self._half, n)
        if maps.ndim != 4 or tuple(maps.shape[1:]) != (n, n, n):
            raise ValueError(f"maps must be (K, {n}, {n}, {n}), got {tuple(maps.shape)}")
        self.images, self.optics, self.config = images, optics, config
        self.pixel_size_angstrom = pixel_size_angstrom
        self._correlate, self._progress = correlate, progress or float
        self._device = device or maps.device
        self.radius = min(config.radius, (n - 1) // 2)
        self.maps = maps.to(self._device, torch.float32) * self._sphere(n)
        self.half_maps = torch.zeros(len(maps), 2, n, n, n)
        self.noise_power = shell_power(images, torch.arange(total)).to(self._device)
        self.round, self.changed = 0, 1.0
        self.dropped: list[int] = []
        self.classes = torch.full((total,), -1, dtype=torch.long)
        self.likelihood = torch.zeros(total, len(maps))
        self._found = _given(poses)

    @property
    def poses(self) -> Pose:
        """The best of every image under the map of its class."""
        return Pose(self._found.rotation[:, 0], self._found.shift_angstrom[:, 0])

    @property
    def scale(self) -> Tensor:
        """Factor of the map in each image, ``(b,)``."""
        return self._found.scale[:, 0]

    @property
    def done(self) -> bool:
        """Whether classes have settled, or all rounds are done."""
        return self.round >= self.config.rounds or self.changed <= self.config.settled

    @property
    def progress(self) -> float:
        """Share of the rounds that is done."""
        return 1.0 if self.done else self.round / self.config.rounds

    def _sphere(self, box: int) -> Tensor:
        length = self.images.box_size * self.pixel_size_angstrom
        diameter = self.config.poses.diameter_angstrom or length
        return particle_sphere(box, diameter / length, self._device)

    def _assign(self) -> None:
        """Pose and class of every image, and the noise that is left."""
        search = self.config.search and self.round == 0
        assigners = [
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
        swept = self._sweep(assigners, torch.arange(len(self.images)), search=search)
        self._found, self.likelihood, self.dropped = swept.found, swept.likelihood, []
        left = swept.left
        if search and self.config.loss > 0:
            self.dropped = superfluous(
                swept.likelihood, swept.rotation, self.config.loss, self.config.poses.symmetry
            )
        if self.dropped:
            kept = [k for k in range(len(self.maps)) if k not in self.dropped]
            rows = torch.isin(self.likelihood.argmax(1), torch.tensor(self.dropped))
            rows = rows.nonzero().flatten()
            again = self._sweep([assigners[k] for k in kept], rows, search=True)
            self._found = _put(self._found, rows, again.found)
            self.likelihood = self.likelihood[:, kept]
            self.likelihood[rows] = again.likelihood
            self.maps, self.half_maps, left = self.maps[kept], self.half_maps[kept], left[kept]
            self.classes = torch.full_like(self.classes, -1)
        classes = self.likelihood.argmax(1)
        self.changed = float((classes != self.classes).double().mean())
        self.classes = classes
        # what other maps leave of an image is more than noise; the least is nearest to it
        left = left.amin(0) / len(self.images)
        self.noise_power = assigners[0].noise_after(self.noise_power, left)

    def _sweep(self, assigners: list[ExpectationStep], rows: Tensor, *, search: bool) -> _Swept:
        """Images ``rows`` under every map."""
        fixed = None if self.config.poses.scale == "image" else 1.0
        left = torch.zeros(len(assigners), assigners[0].refiner.band.radius + 1).double()
        parts: list[PoseCandidates] = []
        likelihood: list[Tensor] = []
        rotation: list[Tensor] = []
        done = 0

        def assign(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, list[ExpectationResult]]:
            chosen, images = batch[0], batch[1].to(self._device, torch.float32)
            optics = None if self.optics is None else self.optics[chosen].to(self._device)
            start = None if search else _moved_to(self._found[chosen], self._device)
            return chosen, [a(images, optics, start=start, scale=fixed) for a in assigners]

        batches = read_ahead(self.images, rows, max_batch=together(self._device, len(rows)))
        for chosen, told in parallel_map(assign, batches, self._device):
            left += torch.stack([one.left for one in told])
            best, log_likelihood_ratio, turned = _best(told)
            parts.append(_moved_to(best, torch.device("cpu")))
            likelihood.append(log_likelihood_ratio.cpu() / 2)
            rotation.append(turned.cpu())
            done += len(chosen)
            self._progress(done / len(rows) if len(rows) == len(self.images) else 1.0)
        return _Swept(
            PoseCandidates.cat(parts),
            torch.cat(likelihood),
            torch.cat(rotation) if search else None,
            left,
        )

    def _reconstruct(self) -> list[float]:
        """The maps from their images; resolution of each, Å. One of too few stays as it was."""
        n, maps, halves = self.images.box_size, self.maps.clone(), self.half_maps.clone()
        pose, sphere = self.poses, self._sphere(n)
        resolution: list[float] = []
        for k in range(len(maps)):
            rows = (self.classes == k).nonzero().flatten()
            if len(rows) < _LEAST:
                resolution.append(math.inf)
                continue
            sums = accumulate(
                ImageSubset(self.images, rows),
                pose.rotation[rows],
                pose.shift_angstrom[rows],
                None if self.optics is None else self.optics[rows],
                self.pixel_size_angstrom,
                torch.arange(len(rows)) % 2 + 1,
                device=self._device,
            )
            pair = torch.stack([half_map(one) for one in sums])
            halves[k] = pair.to(halves)
            fsc = self._correlate(pair[0] * sphere, pair[1] * sphere).cpu()
            resolution.append(n * self.pixel_size_angstrom / max(1, agreeing_shells(fsc)))
            maps[k] = wiener_map(sums[0] + sums[1], noise_to_signal(fsc)) * sphere
        self.maps, self.half_maps = maps, halves
        return resolution

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """One round; numbers of it."""
        self._assign()
        resolution = self._reconstruct()
        self.round += 1
        shares = torch.bincount(self.classes, minlength=len(self.maps)) / len(self.classes)
        top = self.likelihood.topk(min(2, len(self.maps)), dim=1).values
        stats = {"changed": self.changed, "margin": float((top[:, 0] - top[:, -1]).median())}
        if self.dropped:
            stats["dropped"] = float(len(self.dropped))
        for k, (share, angstrom) in enumerate(zip(shares.tolist(), resolution, strict=True)):
            stats |= {f"share_{k + 1}": share, f"resolution_{k + 1}": angstrom}
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on bitwise."""
        found = {f"found.{name}": value.clone() for name, value in vars(self._found).items()}
        return found | {
            "round": self.round,
            "changed": self.changed,
            "classes": self.classes.clone(),
            "likelihood": self.likelihood.clone(),
            "maps": self.maps.clone(),
            "half_maps": self.half_maps.clone(),
            "noise_power": self.noise_power.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a task with the same images and settings.

        The task must have been made with the state's maps, some of which may have been dropped.

        Raises:
            ValueError: maps of another number or box.
        """
        if state["maps"].shape != self.maps.shape:
            raise ValueError(
                f"the state has maps {tuple(state['maps'].shape)}, this task "
                f"{tuple(self.maps.shape)}; resume with the state's maps"
            )
        self.round, self.changed = int(state["round"]), float(state["changed"])
        self.classes, self.likelihood = state["classes"].cpu(), state["likelihood"].cpu()
        self.maps = state["maps"].to(self._device)
        self.half_maps = state["half_maps"].cpu()
        self.noise_power = state["noise_power"].to(self._device)
        self._found = PoseCandidates(
            **{name: state[f"found.{name}"].cpu() for name in vars(self._found)}
        )


def _given(poses: Pose) -> PoseCandidates:
    """Known poses as the only candidates."""
    rotation = poses.rotation.float().cpu()[:, None]
    one = torch.ones(len(rotation), 1)
    shift = poses.shift_angstrom.float().cpu()[:, None]
    return PoseCandidates(rotation, shift, 0 * one, one, one, torch.zeros(len(rotation), 1, 5, 5))


def _moved_to(found: PoseCandidates, device: torch.device) -> PoseCandidates:
    return PoseCandidates(**{name: value.to(device) for name, value in vars(found).items()})


def _best(told: list[ExpectationResult]) -> tuple[PoseCandidates, Tensor, Tensor]:
    """Of every image the candidates under its best map; of all maps gains and best rotations."""
    parts = [one.found.best(KEPT) for one in told]
    log_likelihood_ratio = torch.stack([part.log_likelihood_ratio[:, 0] for part in parts], 1)
    every = PoseCandidates.cat(parts)
    rows = torch.arange(len(log_likelihood_ratio), device=log_likelihood_ratio.device)
    rotation = torch.stack([part.rotation[:, 0] for part in parts], 1)
    return (
        every[log_likelihood_ratio.argmax(1) * len(log_likelihood_ratio) + rows],
        log_likelihood_ratio,
        rotation,
    )


def _put(into: PoseCandidates, rows: Tensor, found: PoseCandidates) -> PoseCandidates:
    """A copy in which some images have other candidates."""
    values = {name: value.clone() for name, value in vars(into).items()}
    for name, value in vars(found).items():
        values[name][rows] = value
    return PoseCandidates(**values)


def superfluous(
    likelihood: Tensor, rotation: Tensor | None, loss: float, symmetry: str = "C1"
) -> list[int]:
    """Maps that images do well without, in another frame.

    Of the maps that qualify the one is dropped that costs least, then it is asked again. Of maps
    that cost the same, as copies in two frames do, the one goes whose frame fewer images share.

    Args:
        likelihood: ``(b, K)``, logarithm of each image's under each map over noise alone.
        rotation: ``(b, K, 3, 3)``, best of each image under each map; None drops nothing.
        loss: what a map may be worth to its images, as share of their likelihood under it.
        symmetry: of all maps: turns that make no difference.

    Returns:
        numbers of the maps, from 0 on, rising. A map stays if half of its images keep their
        rotation, to 20 degrees, under the next best map: then it is a structure of its own in the
        common frame, however like another one.
    """
    left = list(range(likelihood.shape[1]))
    if rotation is None:
        return []
    group = point_group(symmetry).matrices.to(rotation)
    while len(left) > 1:
        log_likelihood_ratio = likelihood[:, left]
        own = log_likelihood_ratio.argmax(1)
        costs: dict[int, float] = {}
        for i, k in enumerate(left):
            rows = (own == i).nonzero().flatten()
            if not len(rows):
                continue
            others = log_likelihood_ratio[rows].clone()
            others[:, i] = -math.inf
            next_best, place = others.max(1)
            cost = 1 - float(next_best.sum() / log_likelihood_ratio[rows, i].sum().clamp(min=1e-9))
            there = rotation[rows, torch.tensor(left)[place]]
            if cost < loss and _in_frame(rotation[rows, k], there, group) < 0.5:
                costs[k] = cost
        if not costs:
            break
        owner = torch.tensor(left)[own]
        best = rotation[torch.arange(len(own)), owner]
        equals = [k for k in costs if costs[k] <= min(costs.values()) + _EQUAL]
        shared = {k: _in_frame(rotation[owner != k, k], best[owner != k], group) for k in equals}
        left.remove(min(equals, key=lambda k: (shared[k], costs[k])))
    return [k for k in range(likelihood.shape[1]) if k not in left]


def _in_frame(rotation: Tensor, other: Tensor, group: Tensor) -> float:
    """Share of images that have one rotation ``(b, 3, 3)`` under two maps, but for symmetry."""
    turned = geodesic_distance_deg(rotation[:, None], other[:, None] @ group)
    return float((turned.amin(1) <= _APART_DEG).double().mean())
