"""Maps that refinement starts from: a file's, or one found for each half set without a start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vitreous.cli.common import generator, say, stream_seed
from vitreous.cli.maps import read_map, resample_map
from vitreous.cli.working_set import Working, WorkingSet
from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics
from vitreous.metrics.fsc import fsc
from vitreous.metrics.halves import HalvesResult, combine_halves
from vitreous.solvers.images import ChosenImages, ImageSource
from vitreous.solvers.pose_config import RandomStartConfig
from vitreous.solvers.random_start import RandomStart

_SHARE = 0.3  # of the run's time, when the first try succeeds

Notify = Callable[[float, Mapping[str, Any]], None]
Record = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Search:
    """How a start is looked for.

    Args:
        images: of each half set in the first try; every further try takes twice as many.
        starts: random starts of each half in a try.
        tries: how often it is tried.
    """

    images: int = 1000
    starts: int = 4
    tries: int = 3


@dataclass(frozen=True)
class FirstMaps:
    """Where refinement starts.

    Args:
        half1, half2: ``(n, n, n)``, in one frame.
        resolution_angstrom: what they are good for.
        independent: whether each was made from its own half set alone.
        solved: whether they are worth to be refined.
        verdict: of independent halves; empty for a start from a file.
        tries: how many it took.
        misfits: of the starts of the last try, half 1 before half 2; lower explains more.
    """

    half1: Tensor
    half2: Tensor
    resolution_angstrom: float
    independent: bool = False
    solved: bool = True
    verdict: str = ""
    tries: int = 0
    misfits: tuple[float, ...] = ()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and the rest, for a checkpoint."""
        meta = {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}
        return {"first.1": self.half1, "first.2": self.half2}, meta

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> FirstMaps:
        """From what was :meth:`saved`."""
        rest = {**meta, "misfits": tuple(meta["misfits"])}
        return cls(tensors["first.1"], tensors["first.2"], **rest)


def from_file(
    path: Path, box_size: int, pixel_size_angstrom: float, resolution_angstrom: float
) -> FirstMaps:
    """One map for both halves, brought to their grid.

    Raises:
        InputError: as :func:`~vitreous.cli.maps.read_map`.
    """
    volume, pixel = read_map(path)
    volume = resample_map(volume, pixel, box_size, pixel_size_angstrom)
    return FirstMaps(volume, volume, resolution_angstrom)


def ab_initio(
    images: ImageSource,
    optics: Optics | None,
    data: WorkingSet,
    working: Working,
    search: Search,
    shift_range_angstrom: float,
    *,
    notify: Notify,
    record: Record,
) -> FirstMaps:
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
    for attempt in range(search.tries):
        halves = []
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
                ChosenImages(images, rows),
                None if optics is None else optics[rows],
                data.pixel_size_angstrom,
                config,
                correlate=fsc,
                device=data.device,
            )
            _run(task, attempt, half, notify, record)
            halves.append(task)
        first = _joined(halves, data, working, attempt + 1)
        if first.solved:
            break
        if attempt + 1 < search.tries:
            say(f"try {attempt + 1}: {first.verdict}; once more with other starts and more images")
    return first


def _run(task: RandomStart, attempt: int, half: int, notify: Notify, record: Record) -> None:
    """All steps of one half, told as they are done."""
    for step in range(task.steps):
        share = _SHARE * (half - 1 + step / task.steps) / 2
        stats = task.step()
        record({"try": attempt + 1, "start_of_half": half, "round_of_start": step + 1, **stats})
        notify(share, {"stage": f"start {stats['start']:.0f}", "half": half})


def _joined(halves: list[RandomStart], data: WorkingSet, working: Working, tries: int) -> FirstMaps:
    """Both halves' maps in one frame, and what they say together."""
    maps = [task.best.maps()[2] for task in halves]
    pixel = halves[0].pixel_size_angstrom
    result: HalvesResult = combine_halves(
        *maps,
        pixel_size_angstrom=pixel,
        symmetry=working.symmetry,
        n_particles=sum(len(task.rows) for task in halves),
        generator=generator(working.seed, f"combine {tries}"),
        remedy="Give the run more --images and --starts, another --seed,",
    )
    resolution = max(result.unmasked_05_angstrom, 2 * pixel)
    n = data.box_size
    return FirstMaps(
        fourier_resize(maps[0], n, 3),
        fourier_resize(result.half2, n, 3),
        min(resolution, n * data.pixel_size_angstrom / 3),
        independent=True,
        solved=result.solved,
        verdict=result.verdict,
        tries=tries,
        misfits=tuple(misfit for task in halves for misfit in task.misfits),
    )
