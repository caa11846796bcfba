"""The run behind ``vitreous abinit``: check, settle the settings, run both halves, save."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.fourier import fourier_resize
from vitreous.core.symmetry import point_group
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.noise_files import NoiseFiles, warn_of_bare_micrographs
from vitreous.data.particles import Particles
from vitreous.data.simulation_inputs import parse_poses, parse_shift
from vitreous.jobs.cryogan.half_processes import Comparison, run_pair
from vitreous.jobs.cryogan.half_worker import HalfImaging, HalfJob, Outcome
from vitreous.jobs.cryogan.output import OUTPUTS, Run, summary, write_results
from vitreous.jobs.inputs.particles import Checked, ParticleFiles, check_images
from vitreous.jobs.run.config import load_config
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import CONFIG, OutputFolder, plain
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.maps.half_maps import HalvesResult, resolutions_between
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage
from vitreous.methods.cryogan.presets import LARGEST_DEFAULT_BOX, default_config, paper_config
from vitreous.physics.ctf import b_factor_from_nyquist_value

MARKS = 6
COMPARISON_BOX = 32
COMPARISON_SPACING_DEG = 24.0
_STEP_OVERHEAD = 500  # cost of a step that does not grow with the image, in pixels


@dataclass(frozen=True)
class Request:
    """The options of the command; see its help."""

    files: ParticleFiles
    noise: NoiseFiles
    output: Path
    symmetry: str = "C1"
    box_size: int | None = None
    invert: bool = False
    skip_bad: bool = False
    envelope_nyquist: float | None = None
    b_factor_angstrom2: float | None = None
    shift: str = "none"
    poses: str = "uniform"
    preset: str = "default"
    config: Path | None = None
    effort: float = 1.0
    mask_diameter_angstrom: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    allow_config_change: bool = False
    checkpoint_minutes: float = 2.0
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """A finished run: what the halves say together, and the lines to print below the verdict."""

    result: HalvesResult
    text: str


@dataclass(frozen=True)
class _Plan:
    """A checked request."""

    checked: Checked
    half_set: Tensor
    imaging: HalfImaging
    config: CryoGanConfig
    device: torch.device
    threads: int

    @property
    def particles(self) -> Particles:
        return self.checked.particles

    @property
    def threads_per_half(self) -> int:
        return max(1, self.threads // 2)


def reconstruct(request: Request) -> Reconstruction:
    """Run ``vitreous abinit``.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    plan = _plan(request)
    folder = _folder(request, plan)
    with folder, StopSignals() as stop:
        if folder.was_finished:
            say(f"{folder.root}: the run was finished already; its results are written once more")
        history = HistoryFile(folder.path("history.jsonl"), keep=folder.resuming)
        with history, RunProgress("abinit", quiet=request.quiet) as progress:
            jobs = _jobs(request, plan, folder)
            outcomes = _run(jobs, plan, stop, history, progress)
        if outcomes is None:
            say(
                f"stopped and saved; go on with: vitreous abinit ... -o {request.output} --continue"
            )
            stop.exit_if_requested()
            raise RuntimeError("the halves stopped without being asked to")
        torch.set_num_threads(plan.threads)
        run = Run(
            particles=plan.particles,
            half_set=plan.half_set,
            outcomes=outcomes,
            pixel_size_angstrom=plan.imaging.pixel_size_angstrom,
            symmetry=plan.config.symmetry,
            seed=request.seed,
            history=history.rows,
            settings=folder.config["options"],
            title=f"{request.files.path.name}: ab initio reconstruction",
            device=plan.device,
        )
        result = write_results(folder, run)
        folder.finish()
    return Reconstruction(result, summary(result, folder, run.seconds))


# -------------------------------------------------------------------- settling the settings


def _plan(request: Request) -> _Plan:
    point_group(request.symmetry)
    threads = request.threads or len(os.sched_getaffinity(0))
    device = use_device(request.device, threads)
    checked = check_images(request.files.open(), skip_bad=request.skip_bad, quiet=request.quiet)
    particles = checked.particles
    half_set = assign_half_sets(particles.half_set, request.seed)
    config = solver_config(request, particles)
    box = config.stages[-1].box_size
    pixel = particles.pixel_size_angstrom * particles.box_size / box
    b_factor = request.b_factor_angstrom2
    if request.envelope_nyquist is not None:
        own_pixel = particles.pixel_size_angstrom
        b_factor = b_factor_from_nyquist_value(request.envelope_nyquist, own_pixel)
    if request.noise.path is not None:
        noise = request.noise.load(particles.micrograph_names, box, pixel)
        warn_of_bare_micrographs(noise, particles)
    parse_poses(request.poses)
    parse_shift(request.shift, pixel)
    if box < particles.box_size and request.box_size is None and not request.quiet:
        say(f"images cropped from {particles.box_size} to {box} px, {pixel:.2f} Å/px; see --box")
    imaging = HalfImaging(box, pixel, request.poses, request.shift, b_factor, request.invert)
    return _Plan(checked, half_set, imaging, config, device, threads)


def solver_config(request: Request, particles: Particles) -> CryoGanConfig:
    """Preset, then the configuration file, then the command line.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    full = particles.box_size
    box = request.box_size or min(full, LARGEST_DEFAULT_BOX)
    if box > full:
        raise UsageError(f"--box {box}: larger than the images ({full} px); choose up to {full}")
    if request.preset == "paper":
        preset = paper_config(box, len(particles) // 2, request.symmetry)
    else:
        preset = default_config(box, request.symmetry)
    overrides = dict(request.overrides)
    overrides["symmetry"] = request.symmetry if request.symmetry != "C1" else None
    if request.mask_diameter_angstrom is not None:
        edge = full * particles.pixel_size_angstrom
        if request.mask_diameter_angstrom > edge:
            raise UsageError(
                f"--mask-diameter {request.mask_diameter_angstrom:g}: wider than the images "
                f"({edge:.0f} Å)"
            )
        overrides["mask_fraction"] = request.mask_diameter_angstrom / edge / 2
    config = load_config(
        CryoGanConfig, request.config, overrides, defaults=dataclasses.asdict(preset)
    )
    boxes = [stage.box_size for stage in config.stages]
    if not boxes or boxes != sorted(boxes) or boxes[0] < 8 or boxes[-1] > full:
        raise UsageError(f"stages: boxes {boxes} must grow from 8 or more up to at most {full}")
    if request.box_size is not None and boxes[-1] != request.box_size:
        raise UsageError(f"--box {request.box_size}: the last stage's box is {boxes[-1]}")
    stages = tuple(
        TrainingStage(stage.box_size, max(1, round(stage.iterations * request.effort)))
        for stage in config.stages
    )
    return dataclasses.replace(config, stages=stages)


def _folder(request: Request, plan: _Plan) -> OutputFolder:
    files, noise = request.files, request.noise
    inputs = {
        "particles": files.path if files.path.suffix == ".star" else None,
        "ctf": files.ctf,
        "particles per micrograph": files.per_micrograph,
        "noise": noise.path,
        "noise table": noise.table if noise.table != noise.path else None,
        "poses": Path(request.poses[5:]) if request.poses.startswith("star:") else None,
    }
    options = {
        "images_sha256": plan.checked.digest,
        "box": plan.imaging.box_size,
        "apix": plan.imaging.pixel_size_angstrom,
        "invert": request.invert,
        "skip_bad": request.skip_bad,
        "b_factor": plan.imaging.b_factor_angstrom2,
        "noise": "white" if noise.path is None else noise.path.name,
        "noise_apix": noise.apix,
        "shift": request.shift,
        "poses": request.poses,
        "preset": request.preset,
        "effort": request.effort,
        "seed": request.seed,
        **dataclasses.asdict(plan.config),
    }
    _warn_of_other_threads(request, plan)
    folder = OutputFolder(
        request.output,
        "abinit",
        options,
        inputs={role: path for role, path in inputs.items() if path is not None},
        outputs=OUTPUTS,
        machine={
            "device": str(plan.device),
            "threads": plan.threads,
            "threads_per_half": plan.threads_per_half,
        },
        overwrite=request.overwrite,
        resume=request.resume,
        allow_config_change=request.allow_config_change,
        resumable=True,
    )
    return folder


def _warn_of_other_threads(request: Request, plan: _Plan) -> None:
    """Sums in another order round differently, so a continued run is then not bitwise the same."""
    path = request.output / CONFIG
    if not request.resume or not path.is_file():
        return
    try:
        machine = tomllib.loads(path.read_text("utf-8")).get("machine", {})
    except ValueError:
        return  # the output folder reports it
    before = (machine.get("device"), machine.get("threads_per_half"))
    now = (str(plan.device), plan.threads_per_half)
    if before != now:
        say(
            f"warning: began with {before[1]} threads per half on {before[0]}, goes on with "
            f"{now[1]} on {now[0]}: the result will not be bitwise that of an unbroken run"
        )


def _jobs(request: Request, plan: _Plan, folder: OutputFolder) -> list[HalfJob]:
    excluded = {k: list(v) for k, v in plan.particles.excluded.items() if v}
    if excluded:
        folder.config["run"]["excluded"] = plain(excluded)
    total = plan.config.iterations
    marks = tuple(sorted({total * (k + 1) // (MARKS + 1) for k in range(MARKS)} - {0}))
    jobs = []
    for half in (1, 2):
        checkpoints = folder.path("checkpoints", f"half{half}")
        if request.overwrite and checkpoints.is_dir():
            for old in checkpoints.iterdir():
                old.unlink()
        jobs.append(
            HalfJob(
                half=half,
                files=request.files,
                rows=plan.checked.rows[(plan.half_set == half).numpy()],
                noise=request.noise,
                imaging=plan.imaging,
                config=plan.config,
                seed=request.seed,
                device=str(plan.device),
                threads=plan.threads_per_half,
                checkpoints=checkpoints,
                checkpoint_seconds=60 * request.checkpoint_minutes,
                marks=marks,
                resume=folder.resuming,
                parent=os.getpid(),
            )
        )
    return jobs


# -------------------------------------------------------------------- running


def _run(
    jobs: list[HalfJob],
    plan: _Plan,
    stop: StopSignals,
    history: HistoryFile,
    progress: RunProgress,
) -> dict[int, Outcome] | None:
    """Both halves to the end, with progress shown and history kept; None when stopped."""
    config = plan.config
    edge = plan.imaging.box_size * plan.imaging.pixel_size_angstrom
    latest: dict[int, dict[str, Any]] = {}
    between: dict[str, float] = {}

    def compare(first: Any, second: Any) -> tuple[float, float]:
        n = min(len(first), COMPARISON_BOX)
        a, b = (fourier_resize(torch.from_numpy(v), n, 3) for v in (first, second))
        return resolutions_between(
            a,
            b,
            pixel_size_angstrom=edge / n,
            symmetry=config.symmetry,
            spacing_deg=COMPARISON_SPACING_DEG,
        )

    comparison = Comparison(compare)

    def listen(message: tuple[Any, ...]) -> None:
        if message[0] == "row":
            history.add(message[1])
        if message[0] == "mark":
            comparison.add(*message[1:])
        if message[0] in ("row", "state"):
            latest[int(message[1]["half"])] = message[1]
        for row in comparison.results():
            history.add(row)
            between.update(row)
        if len(latest) == len(jobs):
            shown = sum(done_share(config, int(row["step"])) for row in latest.values())
            progress.update(shown / len(jobs), _shown(config, latest, between))

    try:
        return run_pair(jobs, stop, listen)
    finally:
        comparison.close()
        for row in comparison.results():
            history.add(row)


def done_share(config: CryoGanConfig, step: int) -> float:
    """Share of the run's time that the first ``step`` iterations take, by the size of the images.

    >>> config = CryoGanConfig(stages=(TrainingStage(16, 100), Stage(32, 100)))
    >>> 0 < done_share(config, 100) < 0.5, done_share(config, 200)
    (True, 1.0)
    """
    total = done = 0.0
    for stage in config.stages:
        cost = stage.box_size**2 + _STEP_OVERHEAD
        total += cost * stage.iterations
        done += cost * min(max(step, 0), stage.iterations)
        step -= stage.iterations
    return done / total


def _shown(
    config: CryoGanConfig, latest: Mapping[int, Mapping[str, Any]], between: Mapping[str, float]
) -> dict[str, Any]:
    """What the progress bar says: means over the halves, and the last comparison."""
    rows = list(latest.values())

    def mean(name: str) -> float:
        return float(sum(row[name] for row in rows)) / len(rows)

    return {
        "stage": f"box {int(rows[0]['box'])}",
        "epoch": round(mean("epoch"), 1),
        "wasserstein": mean("wasserstein"),
        "snr_db": mean("snr_db"),
        "resolution_angstrom": between.get("resolution_angstrom"),
    }
