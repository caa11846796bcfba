"""Random start: a map without poses, from the best of several runs from random blobs.

Every run is a :class:`~vitreous.methods.em.refinement.Refinement` of some images at low
frequencies, in which every round searches all poses and the band grows slowly. At first a round
uses a part of the images: a wrong map is left in as many rounds of a part as of all, if at all.
After one round of all images the run with the lowest misfit goes on. Where configured, it then runs
against itself with the sign of an angular degree reversed: of a nearly spherical particle with
symmetry, images tell the strength of each degree well, and its sign poorly. The winner goes on
alone. Its images are split in two once more; the FSC between these leads band and regularisation.
As both share the map under which poses are found, that FSC does not show whether the map is right.
Two such maps of independent images do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImagesInMemory, ImageSource, ImageSubset, pixel_size_of
from vitreous.core.params import Optics
from vitreous.core.symmetry import point_group
from vitreous.maps.angular_degrees import degree_parts
from vitreous.methods.em.config import RandomStartConfig, RefinementConfig
from vitreous.methods.em.map_vs_noise_test import MOST_IMAGES, map_vs_noise_test
from vitreous.methods.em.refinement import Refinement
from vitreous.optim.loop import Stateful, Stats

FEWEST_IMAGES = 4  # that a start needs: it splits them in two halves

_MOST_DEGREE = 12  # whose sign is tried
_BLOB_SIZE = 0.06  # sigma of a blob, in units of the diameter


@torch.no_grad()
def random_blobs(
    n: int,
    diameter_px: float,
    symmetry: str,
    generator: torch.Generator,
    *,
    count: int = RandomStartConfig.blobs,
    reach: float = RandomStartConfig.reach,
) -> Tensor:
    """Return Gaussian blobs at random positions of a ball, and their symmetry mates, ``(n, n, n)``.

    Args:
        n: edge of the box, pixels.
        diameter_px: of the sphere that holds the molecule.
        symmetry: point group.
        generator: on the CPU.
        count: of blobs, without their mates.
        reach: largest distance of a blob from the centre, a share of the diameter.

    >>> blobs = random_blobs(16, 14.0, "C2", torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(blobs[1:, 1:, 1:], blobs[1:, 1:, 1:].flip(1, 2), atol=1e-5))
    True
    """
    direction = torch.randn(count, 3, generator=generator)
    distance = reach * diameter_px * torch.rand(count, 1, generator=generator) ** (1 / 3)
    centre = direction / direction.norm(dim=1, keepdim=True) * distance
    mates = (point_group(symmetry).matrices.float() @ centre.mT).permute(0, 2, 1).reshape(-1, 3)
    axis = torch.arange(n) - n // 2
    width = _BLOB_SIZE * diameter_px
    x, y, z = torch.exp(-0.5 * ((axis - mates.mT[..., None]) / width) ** 2)
    return torch.einsum("bz,by,bx->zyx", z, y, x)


class RandomStart(Stateful):
    """Runs from random blobs, a :class:`~vitreous.optim.loop.Solver`; a step is a round of one run.

    Args:
        images: of one half set, protein positive.
        optics: CTF parameters of each image; None for images without CTF.
        config: settings.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        device: where to compute; the CPU by default.

    Attributes:
        images: those used, cropped to ``box_size``, of ``pixel_size_angstrom``.
        optics: of each of them.
        rows: of the given images that are used.
        runs: begun so far.
        misfits: of the runs whose trial has ended; lower explains the images better.
        reversed_degrees: angular degrees whose sign was tried.

    Raises:
        ValueError: fewer than four images.
    """

    STATE = ("misfits", "reversed_degrees", "_stream")

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        config: RandomStartConfig,
        *,
        pixel_size_angstrom: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        if len(images) < FEWEST_IMAGES:
            raise ValueError(f"a start needs at least four images, got {len(images)}")
        self.config, self.device = config, device or torch.device("cpu")
        self._full_box = images.box_size
        self._stream = torch.Generator().manual_seed(config.seed)
        self.rows = torch.randperm(len(images), generator=self._stream)[: config.images].sort()[0]
        self.box_size = min(self._full_box, 2 * (config.box_radius + 3))
        pixel = pixel_size_of(images, pixel_size_angstrom)
        self.pixel_size_angstrom = pixel * self._full_box / self.box_size
        read = ImageSubset(images, self.rows).read
        batches = (read(rows).float() for rows in torch.split(torch.arange(len(self.rows)), 512))
        self.images = torch.cat([fourier_resize(batch, self.box_size, 2) for batch in batches])
        self.optics = None if optics is None else optics[self.rows]
        self._half_set = torch.arange(len(self.rows)) % 2 + 1
        self.runs: list[Refinement] = []
        self.misfits: list[float] = []
        self.reversed_degrees: list[int] = []

    @property
    def _edge_angstrom(self) -> float:
        return self.box_size * self.pixel_size_angstrom

    def _run_from(self, start: Tensor) -> Refinement:
        config = self.config
        settings = RefinementConfig(
            start_resolution_angstrom=self._edge_angstrom / config.start_radius,
            symmetry=config.symmetry,
            shift_range_angstrom=config.shift_range_angstrom,
            rounds=self._rounds,
            searches=self._rounds,
            certain=1.0,
            search_radius=config.search_radius,
            growth=config.growth,
            seed=config.seed,
            diameter_angstrom=config.diameter_angstrom,
            one_map=config.one_map,
            batches=config.batches,
        )
        return Refinement(
            ImagesInMemory(self.images),
            self.optics,
            self._half_set,
            start.to(self.device),
            settings,
            pixel_size_angstrom=self.pixel_size_angstrom,
        )

    @property
    def _rounds(self) -> int:
        """Rounds of the best run."""
        return self.config.batches.rounds + self.config.rounds

    @property
    def _trial_rounds(self) -> int:
        """Rounds of every run."""
        return self.config.batches.rounds + 1

    @property
    def _trials(self) -> int:
        """Number of runs: from blobs, and two for each degree."""
        return self.config.starts + 2 * self.config.degrees

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return self._trials * self._trial_rounds + self.config.rounds - 1

    @property
    def steps_done(self) -> int:
        """Number of steps done."""
        return sum(run.round for run in self.runs)

    @property
    def done(self) -> bool:
        """Whether the best run has come to its end."""
        return len(self.misfits) == self._trials and self.best.round >= self._rounds

    @property
    def progress(self) -> float:
        """Share of the steps that is done."""
        return self.steps_done / self.steps

    @property
    def best(self) -> Refinement:
        """Run that explains the images best, of those tried so far."""
        starts, tried = self.config.starts, len(self.misfits)
        rivals = range(min(starts, tried))
        if tried >= starts + 2:
            last = tried - (tried - starts) % 2
            rivals = range(last - 2, last)
        return self.runs[min(rivals, key=self.misfits.__getitem__)]

    def _start_of_next_run(self) -> Tensor:
        """Return random blobs; then the best run's map, as it is and with a degree reversed."""
        config, number = self.config, len(self.runs) - self.config.starts
        if number < 0:
            return random_blobs(
                self.box_size,
                (config.diameter_angstrom or self._edge_angstrom) / self.pixel_size_angstrom,
                config.symmetry,
                self._stream,
                count=config.blobs,
                reach=config.reach,
            )
        best = self.best.maps()[2]
        if number % 2 == 0:
            return best
        parts = degree_parts(best, _MOST_DEGREE)
        power = parts.square().sum((1, 2, 3))
        power[[degree - 1 for degree in self.reversed_degrees]] = 0
        strongest = int(power.argmax())
        self.reversed_degrees.append(strongest + 1)
        return best - 2 * parts[strongest]

    def step(self) -> Stats:
        """Do one round of one run and return its statistics, with the number of the run."""
        if len(self.misfits) < self._trials:
            if len(self.runs) == len(self.misfits):
                self.runs.append(self._run_from(self._start_of_next_run()))
            run = self.runs[-1]
            stats = run.step()
            if run.round == self._trial_rounds:
                # the highest shell that every run may have compared by the end of its trial
                batches = self.config.batches
                radius = min(self.config.start_radius + batches.rounds, batches.radius)
                self.misfits.append(run.misfit(radius))
        else:
            run = self.best
            stats = run.step()
        return {**stats, "start": self.runs.index(run) + 1.0}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step needs."""
        return super().state_dict() | {"runs": [run.state_dict() for run in self.runs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a random start of the same images and settings."""
        super().load_state_dict(state)
        blank = torch.zeros((self.box_size,) * 3)
        self.runs = [self._run_from(blank) for _ in state["runs"]]
        for run, of_run in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(of_run)

    def result(self) -> Tensor:
        """Return the best run's map, weighted by its FSC, in the box of the given images."""
        return fourier_resize(self.best.maps()[2], self._full_box, 3)

    def of_noise(self, images: Tensor) -> RandomStart:
        """Return a random start with one run of other images of the same optics and settings."""
        return RandomStart(
            ImagesInMemory(images),
            self.optics,
            replace(self.config, starts=1, degrees=0),
            pixel_size_angstrom=self.pixel_size_angstrom,
            device=self.device,
        )

    def map_score_on(self, other: RandomStart) -> float:
        """Return how much better another half set's images fit this map than noise does.

        Refinements of noise fall into modes in which two half sets agree.

        Returns:
            standard errors; see :func:`~vitreous.methods.em.map_vs_noise_test.map_vs_noise_test`.
        """
        best = self.best
        rows = torch.arange(min(MOST_IMAGES, len(other.rows)))
        return map_vs_noise_test(
            best.maps()[2],
            self.pixel_size_angstrom,
            other.images[rows],
            None if other.optics is None else other.optics[rows],
            torch.stack(best.noise_power).mean(0),
            [min(best.radius, self.config.search_radius)],
            best.config,
        )
