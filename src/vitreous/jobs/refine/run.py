"""The runs behind ``vitreous refine``, ``auto`` and ``abinit --method em``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.core.images import ImageCache
from vitreous.data.working_images import SignedImages
from vitreous.io.checkpoint import load_checkpoint, save_checkpoint
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet, open_working_set
from vitreous.jobs.reconstruct.output import FILES
from vitreous.jobs.refine.given_map import from_file
from vitreous.jobs.refine.output import Refined, write_results
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.maps.align import align_nearby
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.initial_model import InitialModel, InitialModelConfig, ab_initio
from vitreous.methods.em.refinement import Refinement

OUTPUTS = (
    *FILES,
    "sharpened.mrc",
    "local_resolution.mrc",
    "mask.mrc",
    "start.mrc",
    "rejected.star",
    "micrographs.csv",
    "history.jsonl",
)
_ROUNDS_EXPECTED = 8


@dataclass(frozen=True)
class Request:
    """The options of the commands; see their help.

    Args:
        start: map to start from; None to find one.
        start_resolution_angstrom: what it is good for.
        search: how a start is found.
        settings: those of :class:`RefinementConfig` that options set.
        only_start: end with the maps that refinement would start from.
    """

    files: ParticleFiles
    output: Path
    working: ProcessingOptions
    start: Path | None = None
    start_resolution_angstrom: float = 40.0
    search: InitialModelConfig = field(default_factory=InitialModelConfig)
    shift_range_angstrom: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    only_start: bool = False
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    @property
    def command(self) -> str:
        """Which of the three it is."""
        if self.start is not None:
            return "refine"
        return "abinit" if self.only_start else "auto"


@dataclass(frozen=True)
class _Plan:
    """A checked request."""

    request: Request
    data: WorkingSet
    shift_range_angstrom: float

    @property
    def optics(self) -> Any:
        return None if self.request.working.ignore_ctf else self.data.particles.optics

    def settings(self, start_resolution_angstrom: float) -> RefinementConfig:
        """Of the rounds."""
        working = self.request.working
        return RefinementConfig(
            start_resolution_angstrom=start_resolution_angstrom,
            symmetry=working.symmetry,
            shift_range_angstrom=self.shift_range_angstrom,
            seed=working.seed,
            diameter_angstrom=working.mask_diameter_angstrom,
            **self.request.settings,
        )


def refine(request: Request) -> Refined:
    """First maps, rounds until nothing is gained, results.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal; rounds that were finished are saved.
    """
    plan = _plan(request)
    folder = _folder(plan)
    with folder, StopSignals() as stop:
        if folder.was_finished:
            say(f"{folder.root}: the run was finished already; its results are written once more")
        with (
            HistoryFile(folder.path("history.jsonl"), keep=folder.resuming) as history,
            RunProgress(request.command, quiet=request.quiet) as bar,
        ):
            run = _Run(plan, folder, stop, history, bar)
            first = run.first()
            done = request.only_start or not first.solved
            task = None if done else run.rounds(first)
        refined = write_results(
            folder,
            request.working,
            plan.data,
            first,
            task,
            title=f"{request.files.path.name}: from particles to a map",
            command=request.command,
            history=history.rows,
            seconds=run.seconds(),
        )
        folder.finish()
    return refined


def _plan(request: Request) -> _Plan:
    data = open_working_set(request.files, request.working, check_all=True, quiet=request.quiet)
    edge = data.box_size * data.pixel_size_angstrom
    farthest = request.shift_range_angstrom
    if farthest is not None and farthest > edge / 2:
        raise UsageError(
            f"--shift-range {farthest:g}: beyond the images' edge; at most {edge / 2:.0f}"
        )
    optics = request.settings.get("refine_defocus"), request.settings.get("scale")
    if request.working.ignore_ctf and (optics[0] or optics[1] == "micrograph"):
        raise UsageError(
            "--ignore-ctf: leaves no optics of micrographs to be refined; leave out "
            "--refine-defocus and --scale micrograph"
        )
    coarsest = request.start_resolution_angstrom
    if request.start is not None and not 2 * data.pixel_size_angstrom < coarsest <= edge / 2:
        raise UsageError(
            f"--start-resolution {coarsest:g}: must be finer than half the box, {edge / 2:.0f} Å, "
            f"and coarser than two pixels, {2 * data.pixel_size_angstrom:.1f} Å"
        )
    return _Plan(request, data, data.shift_range(farthest))


def _folder(plan: _Plan) -> OutputFolder:
    request, data = plan.request, plan.data
    working, start = request.working, request.start
    own = (
        {"start_resolution": request.start_resolution_angstrom}
        if start is not None
        else vars(request.search)
    )
    options = {
        "images_sha256": data.digest,
        "sym": working.symmetry,
        "box": data.box_size,
        "apix": data.pixel_size_angstrom,
        "mask_diameter": working.mask_diameter_angstrom,
        "invert": working.invert,
        "ignore_ctf": working.ignore_ctf,
        "skip_bad": working.skip_bad,
        "seed": working.seed,
        "shift_range": plan.shift_range_angstrom,
        "method": "em" if request.only_start else None,
        **own,
        **request.settings,
    }
    inputs = {"particles": request.files.path} | ({} if start is None else {"map": start})
    return OutputFolder(
        request.output,
        request.command,
        options,
        inputs=inputs,
        outputs=OUTPUTS,
        machine={"device": str(data.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=True,
        changeable=False,
    )


class _Run:
    """What is done between the opening of the folder and the results."""

    def __init__(
        self,
        plan: _Plan,
        folder: OutputFolder,
        stop: StopSignals,
        history: HistoryFile,
        bar: RunProgress,
    ) -> None:
        self._plan, self._folder, self._stop = plan, folder, stop
        self._history, self._bar = history, bar
        working = SignedImages(plan.data.particles, invert=plan.request.working.invert)
        self._images = ImageCache(working, plan.data.box_size, torch.device("cpu"))
        self._saved = load_checkpoint(folder.checkpoints) if folder.resuming else None
        self._before = 0.0 if self._saved is None else float(self._saved.meta["seconds"])
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Wall time, interruptions left out."""
        return self._before + time.monotonic() - self._started

    def first(self) -> InitialModel:
        """The maps to start from, made, read, or taken from the checkpoint."""
        request, data = self._plan.request, self._plan.data
        if self._saved is not None:
            return InitialModel.restored(self._saved.tensors, self._saved.meta["first"])
        if request.start is not None:
            resolution = request.start_resolution_angstrom
            try:
                first = from_file(
                    request.start,
                    self._images,
                    self._plan.optics,
                    data,
                    self._plan.settings(resolution),
                )
            except InputError:
                self._folder.discard()
                raise
        else:
            first = ab_initio(
                self._images,
                self._plan.optics,
                data,
                request.working,
                request.search,
                self._plan.shift_range_angstrom,
                notify=self._notify,
                record=self._record,
            )
        self._save(0, {}, {}, first)
        return first

    def rounds(self, first: InitialModel) -> Refinement:
        """Rounds until nothing is gained."""
        request, data = self._plan.request, self._plan.data
        settings = self._plan.settings(first.resolution_angstrom)
        if first.beyond_doubt:
            settings = replace(settings, searches=1)
        done_before = 0.0 if request.start is not None else 0.3
        task = Refinement(
            self._images,
            self._plan.optics,
            data.pixel_size_angstrom,
            data.half_set,
            (first.half1.to(data.device), first.half2.to(data.device)),
            settings,
            correlate=fsc,
            register=partial(_register, symmetry=request.working.symmetry)
            if first.independent
            else None,
            micrograph=data.particles.micrograph_id,
            progress=lambda share: self._notify(
                done_before + (1 - done_before) * _share(task.round + share), {}
            ),
        )
        if self._saved is not None and self._saved.step > 0:
            task.restore(self._saved.tensors, self._saved.meta["numbers"])
        while task.round < settings.rounds and not task.settled:
            stats = task.step()
            self._record({"step": task.round, **stats})
            self._save(task.round, *task.state(), first)
            self._bar.update(
                done_before + (1 - done_before) * _share(task.round),
                {"stage": f"round {task.round}", **stats},
            )
        return task

    def _record(self, row: Mapping[str, Any]) -> None:
        self._history.add({**row, "seconds": round(self.seconds(), 2)})

    def _notify(self, share: float, stats: Mapping[str, Any]) -> None:
        self._bar.update(share, stats)
        self._stop.exit_if_requested()

    def _save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, float],
        first: InitialModel,
    ) -> None:
        more, meta = first.saved()
        save_checkpoint(
            self._folder.checkpoints,
            step,
            {**tensors, **more},
            {"numbers": dict(numbers), "first": meta, "seconds": self.seconds()},
        )


def _share(rounds: float) -> float:
    """Of the work done; nobody knows how many rounds it takes."""
    return rounds / max(_ROUNDS_EXPECTED, rounds + 1)


def _register(
    moving: Tensor, reference: Tensor, pixel_size_angstrom: float, *, symmetry: str
) -> tuple[Tensor, Tensor]:
    return align_nearby(
        moving, reference, pixel_size_angstrom=pixel_size_angstrom, point_group=symmetry
    )
