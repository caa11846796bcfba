"""Initial model: a map of each half set from images without poses, and whether it is believable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImageSource, ImageSubset, pixel_size_of
from vitreous.core.params import Optics
from vitreous.core.random import generator, stream_seed, with_random_phases
from vitreous.maps.fsc import fsc
from vitreous.maps.half_maps import BETTER_THAN_CHANCE, HalvesResult, SolvedCriteria, combine_halves
from vitreous.methods.em.config import SHIFT_SHARE, InitialModelConfig
from vitreous.methods.em.held_out_shells import held_out_map
from vitreous.methods.em.initial_model_result import InitialModel, shells_beyond_doubt
from vitreous.methods.em.random_start import RandomStart
from vitreous.optim.loop import Callback, Stateful, Stats, run

CERTAIN = 5.0  # standard errors by which images fit better than noise
FEWEST_PARTICLES = 200
_REMEDY = "Give the run more `images` and `starts`, another `seed`,"


def initial_model(
    images: ImageSource,
    optics: Optics | None,
    half_set: Tensor,
    *,
    symmetry: str | None = None,
    seed: int | None = None,
    config: InitialModelConfig | None = None,
    device: torch.device | None = None,
    callbacks: Iterable[Callback] = (),
) -> InitialModel:
    """Find a map of each half set from random starts, without poses and without a model.

    Args:
        images: all particle images, protein positive, which carry their pixel size.
        optics: CTF parameters of each image; None for images without CTF.
        half_set: long ``(b,)`` of 1 and 2.
        symmetry: point group about RELION's axes; instead of the configuration's.
        seed: of all random numbers; instead of the configuration's.
        config: settings.
        device: where to compute; the CPU by default.
        callbacks: each is called after every round as ``callback(step, stats)``.

    Returns:
        half maps and their resolution; ``solved`` says whether the half sets came to the same map.

    >>> import vitreous as vt
    >>> particles = vt.simulate(vt.phantom(16, 8.0), 20, 8.0, snr_db=0, seed=1).with_half_sets(1)
    >>> images, optics, half_set = particles.images(), particles.optics, particles.half_set
    >>> start = initial_model(images, optics, half_set, seed=1)  # doctest: +SKIP

    The same step by step, which can be stopped and continued:

    >>> search = InitialModelSearch(images, optics, half_set, InitialModelConfig(seed=1))
    >>> search.step()["round_of_start"]
    1
    """
    config = config or InitialModelConfig()
    config = replace(
        config,
        symmetry=config.symmetry if symmetry is None else symmetry,
        seed=config.seed if seed is None else seed,
    )
    return run(InitialModelSearch(images, optics, half_set, config, device=device), callbacks)


class InitialModelSearch(Stateful):
    """Search for an initial model, a :class:`~vitreous.optim.loop.Solver`.

    A step is a round of a random start of one half set. After the last round of a try the halves'
    maps are compared; if they disagree, the next try has other starts and twice as many images.

    Args:
        images, optics, half_set: see :func:`initial_model`.
        config: settings.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        device: where to compute; the CPU by default.
        progress: called in the long steps in which maps are compared, with the progress.
    """

    STATE = ("_tries_done", "_best_try")

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        half_set: Tensor,
        config: InitialModelConfig,
        *,
        pixel_size_angstrom: float | None = None,
        device: torch.device | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self._images, self._optics, self._half_set = images, optics, half_set
        self._pixel_size = pixel_size_of(images, pixel_size_angstrom)
        self._edge_angstrom = images.box_size * self._pixel_size
        shift = config.shift_range_angstrom
        shift = SHIFT_SHARE * self._edge_angstrom if shift is None else shift
        self._config, self._shift_range = config, shift
        self._device, self._report = device, progress or float
        self._tries_done = 0
        self._halves: list[RandomStart] = []  # of the try at hand
        self._best: InitialModel | None = None
        self._best_halves: list[RandomStart] = []
        self._best_try = 0

    def _random_start(self, attempt: int, half: int) -> RandomStart:
        """Return the random start of a half set in a try, numbered from 0."""
        config = self._config
        rows = (self._half_set == half).nonzero().flatten()
        return RandomStart(
            ImageSubset(self._images, rows),
            None if self._optics is None else self._optics[rows],
            replace(
                config,
                shift_range_angstrom=self._shift_range,
                images=config.images * 2**attempt,
                seed=stream_seed(config.seed, f"start {attempt} of half {half}"),
            ),
            pixel_size_angstrom=self._pixel_size,
            device=self._device,
        )

    # ---------------------------------------------------------------- solver

    @property
    def done(self) -> bool:
        """Whether the halves agree beyond doubt, or the tries are used up."""
        if self._best is None:
            return False
        return self._best.beyond_doubt or self._tries_done == self._config.tries

    @property
    def progress(self) -> float:
        """Share of the present try that is done."""
        if self.done:
            return 1.0
        return sum(half.progress for half in self._halves) / 2

    def step(self) -> Stats:
        """Do one round of a random start; compare the maps after the last one of a try."""
        if not self._halves or self._halves[-1].done:
            half = len(self._halves) + 1
            self._halves.append(self._random_start(self._tries_done, half))
        start = self._halves[-1]
        stats: Stats = {
            "try": self._tries_done + 1,
            "start_of_half": len(self._halves),
            "round_of_start": start.steps_done + 1,
            **start.step(),
        }
        if len(self._halves) == 2 and start.done:
            self._finish_try()
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step needs."""
        return super().state_dict() | {
            "halves": [half.state_dict() for half in self._halves],
            "best": None if self._best is None else dict(vars(self._best)),
            "best_halves": [half.state_dict() for half in self._best_halves],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a search with the same images and settings."""
        super().load_state_dict(state)
        self._halves = self._restored(state["halves"], self._tries_done)
        self._best = None if state["best"] is None else InitialModel(**state["best"])
        self._best_halves = self._restored(state["best_halves"], self._best_try)

    def _restored(self, states: list[dict[str, Any]], attempt: int) -> list[RandomStart]:
        starts = [self._random_start(attempt, half + 1) for half in range(len(states))]
        for start, state in zip(starts, states, strict=True):
            start.load_state_dict(state)
        return starts

    def result(self) -> InitialModel:
        """Return the best model so far.

        Raises:
            RuntimeError: before the first try has ended.
        """
        if self._best is None:
            raise RuntimeError("no try has ended; call step() until done")
        return replace(self._best, tries=self._tries_done)

    # ---------------------------------------------------------------- comparison of the halves

    def _finish_try(self) -> None:
        """Compare the halves' maps, keep the better model, and begin the next try."""
        halves, self._halves = self._halves, []
        self._tries_done += 1
        model = self._compared(halves, self._tries_done)
        if self._best is None or model.better_than(self._best):
            self._best, self._best_halves = model, halves
            self._best_try = self._tries_done - 1
        if not self.done:
            doubt = ", which wrong maps have done as well" if model.solved else ""
            warnings.warn(
                f"try {self._tries_done}: {model.verdict}{doubt}; once more with other starts and "
                "more images",
                stacklevel=3,
            )
        else:
            if not self._best.solved:
                held_out = self._held_out_fsc(self._best_halves, self._best)
                self._best = replace(self._best, held_out=held_out)
            self._best_halves = []

    def _compared(self, halves: list[RandomStart], tries: int) -> InitialModel:
        """Return both halves' maps in one frame, and the verdict on them."""
        combined = self._combined(halves, tries)
        certainty = min(halves[0].map_score_on(halves[1]), halves[1].map_score_on(halves[0]))
        shells = self._edge_angstrom / combined.structure_angstrom
        doubt = ""
        if combined.solved and certainty < CERTAIN:
            doubt = (
                "the halves agree, but the images fit their maps no better than noise of the same "
                f"power does ({certainty:.1f} standard errors): there is nothing, or too few "
                "particles to show it"
            )
        elif combined.solved and shells < shells_beyond_doubt(halves[0].box_size):
            chance = self._agreement_by_chance(halves, tries)
            if combined.structure_angstrom * BETTER_THAN_CHANCE >= chance:
                doubt = (
                    f"beyond their outline the halves agree to {combined.structure_angstrom:.0f} "
                    "Å; made of the same images with random phases, which show nothing, they agree "
                    f"to {chance:.0f} Å. {_REMEDY} or more particles"
                )
        n = self._images.box_size
        maps = (halves[0].best.maps()[2], combined.half2)
        half1, half2 = (fourier_resize(one, n, 3) for one in maps)
        finest = 2 * halves[0].pixel_size_angstrom
        return InitialModel(
            half1,
            half2,
            min(max(combined.unmasked[1], finest), self._edge_angstrom / 3),
            independent=True,
            solved=combined.solved and not doubt,
            verdict=f"NOT SOLVED: {doubt}" if doubt else combined.verdict,
            shells=shells,
            shells_at_half=self._edge_angstrom / combined.unmasked[1],
            certainty=certainty,
            tries=tries,
            box_size=halves[0].box_size,
            misfits=tuple(misfit for start in halves for misfit in start.misfits),
            used=sum(len(start.rows) for start in halves),
        )

    def _combined(self, halves: list[RandomStart], tries: int) -> HalvesResult:
        used, there = sum(len(start.rows) for start in halves), int((self._half_set > 0).sum())
        criteria = SolvedCriteria(FEWEST_PARTICLES, _REMEDY)
        if used < there:
            more = f"Only {used:,} of the {there:,} particles were used; give more `images`"
            criteria = replace(criteria, more_particles=more)
        return combine_halves(
            *(start.best.maps()[2] for start in halves),
            pixel_size_angstrom=halves[0].pixel_size_angstrom,
            symmetry=self._config.symmetry,
            n_particles=used,
            generator=generator(self._config.seed, f"combine {tries}"),
            criteria=criteria,
        )

    def _agreement_by_chance(self, halves: list[RandomStart], tries: int) -> float:
        """Return how far the halves come to agree, in Å, when the images show nothing any more.

        Rounds on noise fall into modes, half by half, which agree.
        """
        stream = generator(self._config.seed, f"random phases {tries}")
        of_noise = []
        for half in halves:
            start = half.of_noise(with_random_phases(half.images, stream))
            while not start.done:
                start.step()
                self._report(1.0)
            of_noise.append(start)
        return self._combined(of_noise, tries).structure_angstrom

    def _held_out_fsc(self, halves: list[RandomStart], model: InitialModel) -> tuple[float, ...]:
        """Return the FSC of shells by which no pose was found: each half under the other's map."""
        maps = [
            held_out_map(
                fourier_resize(other, model.box_size, 3),
                start.pixel_size_angstrom,
                start.images,
                start.optics,
                torch.stack(start.best.noise_power).mean(0),
                start.best.config,
                progress=lambda share: self._report(1.0),
            )
            for start, other in zip(halves, (model.half2, model.half1), strict=True)
        ]
        return tuple(fsc(*maps).tolist())
