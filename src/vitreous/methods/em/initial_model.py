"""Maps that refinement starts from: a file's, or one found for each half set without a start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImagesInMemory, ImageSource, ImageSubset
from vitreous.core.params import Optics
from vitreous.core.random import generator, stream_seed
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet
from vitreous.jobs.run.messages import say
from vitreous.maps.fsc import fsc
from vitreous.maps.half_maps import BETTER_THAN_CHANCE, HalvesResult, combine_halves
from vitreous.methods.em.config import RandomStartConfig
from vitreous.methods.em.held_out_shells import held_out_map
from vitreous.methods.em.map_vs_noise_test import with_random_phases
from vitreous.methods.em.random_start import RandomStart

CERTAIN = 5.0  # standard errors by which images fit better than noise
_BEYOND_DOUBT = 16  # shells to which halves have not been seen to agree on noise or a wrong map
_OF_BOX = 0.43  # its edge in pixels: as good, where there are not many more shells
_AT_HALF = 0.5  # of those shells: halves that agree weakly everywhere share a map half right
FEWEST_PARTICLES = 200
_REMEDY = "Give the run more --images and --starts, another --seed,"
_SHARE = 0.3  # of the run's time, when the first try succeeds

Notify = Callable[[float, Mapping[str, Any]], None]
Record = Callable[[Mapping[str, Any]], None]


def shells_beyond_doubt(box_size: int) -> float:
    """How far halves must agree, in cycles per box, to be believed without further questions.

    >>> shells_beyond_doubt(64), round(shells_beyond_doubt(32), 1)
    (16, 13.8)
    """
    return min(_BEYOND_DOUBT, _OF_BOX * box_size)


@dataclass(frozen=True)
class InitialModelConfig:
    """How a start is looked for.

    Args:
        images: of each half set in the first try; every further try takes twice as many.
        starts: random starts of each half in a try.
        tries: how often it is tried.
    """

    images: int = 1000
    starts: int = 2
    tries: int = 3


@dataclass(frozen=True)
class InitialModel:
    """Where refinement starts.

    Args:
        half1, half2: ``(n, n, n)``, in one frame.
        resolution_angstrom: what they are good for.
        independent: whether each was made from its own half set alone.
        solved: whether they are worth to be refined.
        verdict: of independent halves; empty for a start from a file.
        shells: how far independent halves agree beyond their outline.
        shells_at_half: how far their FSC stays above 0.5.
        certainty: that images show the map of the other half set, in standard errors.
        tries: how many it took.
        box_size: of the grid that holds all that is in them.
        misfits: of the starts of the last try, half 1 before half 2; lower explains more.
        held_out: of halves that are not solved, FSC by shell of ``box_size`` between maps whose
            shells took no part in finding poses (:mod:`vitreous.methods.em.held_out_shells`).
    """

    half1: Tensor
    half2: Tensor
    resolution_angstrom: float
    independent: bool = False
    solved: bool = True
    verdict: str = ""
    shells: float = 0.0
    shells_at_half: float = 0.0
    certainty: float = 0.0
    tries: int = 0
    box_size: int = 0
    misfits: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()

    @property
    def beyond_doubt(self) -> bool:
        """Whether the halves agree further, and better, than wrong maps have been seen to."""
        needed = shells_beyond_doubt(self.box_size)
        return self.solved and self.shells >= needed and self.shells_at_half >= _AT_HALF * needed

    def better_than(self, other: InitialModel) -> bool:
        """Solved before not solved, beyond doubt first, then by how far the halves agree."""
        mine, theirs = ((o.solved, o.beyond_doubt, o.shells) for o in (self, other))
        return mine > theirs

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and the rest, for a checkpoint."""
        meta = {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}
        return {"first.1": self.half1, "first.2": self.half2}, meta

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> InitialModel:
        """From what was :meth:`saved`."""
        told = {name: tuple(meta.get(name, ())) for name in ("misfits", "held_out")}
        return cls(tensors["first.1"], tensors["first.2"], **(dict(meta) | told))


def ab_initio(
    images: ImageSource,
    optics: Optics | None,
    data: WorkingSet,
    working: ProcessingOptions,
    search: InitialModelConfig,
    shift_range_angstrom: float,
    *,
    notify: Notify,
    record: Record,
) -> InitialModel:
    """A map of each half set from random starts, tried again with more images if they disagree.

    Args:
        images: all particles, at the working box.
        optics: of each.
        data: half sets and pixel size.
        working: symmetry, diameter and seed.
        search: how long to try.
        shift_range_angstrom: farthest shift.
        notify: told how far the run is, before and after every step.
        record: told the numbers of every step.
    """
    first: InitialModel | None = None
    behind: list[RandomStart] = []
    for attempt in range(search.tries):
        halves: list[RandomStart] = []
        for half in (1, 2):
            rows = (data.half_set == half).nonzero().flatten()
            config = RandomStartConfig(
                symmetry=working.symmetry,
                shift_range_angstrom=shift_range_angstrom,
                images=search.images * 2**attempt,
                starts=search.starts,
                seed=stream_seed(working.seed, f"start {attempt} of half {half}"),
                diameter_angstrom=working.mask_diameter_angstrom,
            )
            task = RandomStart(
                ImageSubset(images, rows),
                None if optics is None else optics[rows],
                data.pixel_size_angstrom,
                config,
                correlate=fsc,
                device=data.device,
            )
            _run(task, attempt, half, notify, record)
            halves.append(task)
        found = _joined(halves, data, working, attempt + 1, notify)
        if first is None or found.better_than(first):
            first, behind = found, halves
        if first.beyond_doubt:
            break
        if attempt + 1 < search.tries:
            doubt = ", which wrong maps have done as well" if found.solved else ""
            say(
                f"try {attempt + 1}: {found.verdict}{doubt}; once more with other starts and more "
                "images"
            )
    assert first is not None
    if not first.solved:
        first = replace(first, held_out=_held_out(behind, first, notify))
    return replace(first, tries=attempt + 1)


def _run(task: RandomStart, attempt: int, half: int, notify: Notify, record: Record) -> None:
    """All steps of one half, told as they are done."""
    for step in range(task.steps):
        share = _SHARE * (half - 1 + step / task.steps) / 2
        stats = task.step()
        record({"try": attempt + 1, "start_of_half": half, "round_of_start": step + 1, **stats})
        notify(share, {"stage": f"start {stats['start']:.0f}", "half": half})


def _joined(
    halves: list[RandomStart],
    data: WorkingSet,
    working: ProcessingOptions,
    tries: int,
    notify: Notify,
) -> InitialModel:
    """Both halves' maps in one frame, and what they say together."""
    result = _combined(halves, working, tries)
    certainty = min(halves[0].recognised_by(halves[1]), halves[1].recognised_by(halves[0]))
    verdict = result.verdict
    edge = data.box_size * data.pixel_size_angstrom
    shells = edge / result.structure_angstrom
    if result.solved and certainty < CERTAIN:
        verdict = (
            "NOT SOLVED: the halves agree, but the images fit their maps no better than noise of "
            f"the same power does ({certainty:.1f} standard errors): there is nothing, or too few "
            "particles to show it"
        )
    elif result.solved and shells < shells_beyond_doubt(halves[0].box_size):
        chance = _by_chance(halves, working, tries, notify)
        if result.structure_angstrom * BETTER_THAN_CHANCE >= chance:
            verdict = (
                "NOT SOLVED: beyond their outline the halves agree to "
                f"{result.structure_angstrom:.0f} Å; made of the same images with random phases, "
                f"which show nothing, they agree to {chance:.0f} Å. {_REMEDY} or more particles"
            )
    n = data.box_size
    maps = (halves[0].best.maps()[2], result.half2)
    half1, half2 = (fourier_resize(one, n, 3) for one in maps)
    return InitialModel(
        half1,
        half2,
        min(max(result.unmasked_05_angstrom, 2 * halves[0].pixel_size_angstrom), edge / 3),
        independent=True,
        solved=not verdict.startswith("NOT SOLVED"),
        verdict=verdict,
        shells=shells,
        shells_at_half=edge / result.unmasked_05_angstrom,
        certainty=certainty,
        tries=tries,
        box_size=halves[0].box_size,
        misfits=tuple(misfit for task in halves for misfit in task.misfits),
    )


def _combined(halves: list[RandomStart], working: ProcessingOptions, tries: int) -> HalvesResult:
    return combine_halves(
        *(task.best.maps()[2] for task in halves),
        pixel_size_angstrom=halves[0].pixel_size_angstrom,
        symmetry=working.symmetry,
        n_particles=sum(len(task.rows) for task in halves),
        generator=generator(working.seed, f"combine {tries}"),
        remedy=_REMEDY,
        fewest_particles=FEWEST_PARTICLES,
    )


def _by_chance(
    halves: list[RandomStart], working: ProcessingOptions, tries: int, notify: Notify
) -> float:
    """How far the halves come to agree, in Å, when all that the images show is destroyed.

    Rounds on noise have modes that they fall into, half by half, and which agree.
    """
    stream = generator(working.seed, f"random phases {tries}")
    empty = []
    for task in halves:
        one = RandomStart(
            ImagesInMemory(with_random_phases(task.images, stream)),
            task.optics,
            task.pixel_size_angstrom,
            replace(task.config, starts=1),
            correlate=fsc,
            device=task.device,
        )
        for _ in range(one.steps):
            one.step()
            notify(_SHARE, {"stage": "chance"})
        empty.append(one)
    return _combined(empty, working, tries).structure_angstrom


def _held_out(halves: list[RandomStart], first: InitialModel, notify: Notify) -> tuple[float, ...]:
    """FSC of shells that no pose was found by: the images of each half under the other's map."""
    maps = [
        held_out_map(
            fourier_resize(other, first.box_size, 3),
            task.pixel_size_angstrom,
            task.images,
            task.optics,
            torch.stack(task.best.noise_power).mean(0),
            task.best.config,
            progress=lambda share: notify(_SHARE, {"stage": "shells held out"}),
        )
        for task, other in zip(halves, (first.half2, first.half1), strict=True)
    ]
    return tuple(fsc(*maps).tolist())
