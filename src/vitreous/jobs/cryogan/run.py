"""The work of ``vitreous abinit``: check, settle the settings, run both half sets, save."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.jobs.cryogan.half_processes import Comparison, run_pair
from vitreous.jobs.cryogan.half_worker import HalfJob, Outcome
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.cryogan.output import OUTPUTS, CryoGanResult, write_results
from vitreous.jobs.cryogan.plan import CryoGanPlan, make_plan
from vitreous.jobs.run.folder import CONFIG, plain, read_config
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.messages import say
from vitreous.maps.half_maps import resolutions_between
from vitreous.methods.cryogan.config import CryoGanConfig

MARKS = 6
COMPARISON_BOX = 32
COMPARISON_SPACING_DEG = 24.0
_STEP_OVERHEAD = 500  # cost of a step that does not grow with the image, in pixels


def abinit(options: CryoGanOptions) -> CryoGanResult:
    """Reconstruct both half sets by CryoGAN, compare them, write results.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    plan = make_plan(options)
    _warn_of_other_threads(plan)
    with _job(plan) as job:
        outcomes = _run(_halves(plan, job), plan, job)
        if outcomes is None and job.stop_requested:
            job.leave()
        if outcomes is None:
            raise RuntimeError("the halves stopped without being asked to")
        torch.set_num_threads(plan.threads)
        return write_results(job, plan, outcomes)


def _job(plan: CryoGanPlan) -> Job:
    return Job(
        "abinit",
        plan.options,
        outputs=OUTPUTS,
        resolved={
            "images_sha256": plan.checked.digest,
            "box_size": plan.box_size,
            "contrast": plan.grey.contrast,
            "pixel_size_angstrom": plan.pixel_size_angstrom,
            "b_factor_angstrom2": plan.b_factor_angstrom2,
            **dataclasses.asdict(plan.config),
        },
        machine={
            "device": str(plan.device),
            "threads": plan.threads,
            "threads_per_half": plan.threads_per_half,
        },
        in_parts=True,
    )


def _warn_of_other_threads(plan: CryoGanPlan) -> None:
    """Say that sums in another order round differently, where a run continues on other threads."""
    path = plan.options.output / CONFIG
    if not plan.options.resume or not path.is_file():
        return
    try:
        machine = read_config(path)["machine"]
    except InputError:
        return  # the output folder reports it
    before = (machine.get("device"), machine.get("threads_per_half"))
    now = (str(plan.device), plan.threads_per_half)
    if before != now:
        say(
            f"warning: began with {before[1]} threads per half on {before[0]}, goes on with "
            f"{now[1]} on {now[0]}: the result will not be bitwise that of an unbroken run"
        )


def _halves(plan: CryoGanPlan, job: Job) -> list[HalfJob]:
    """Return what each half's process needs."""
    excluded = {k: list(v) for k, v in plan.particles.excluded.items() if v}
    if excluded:
        job.folder.config["run"]["excluded"] = plain(excluded)
    total = plan.config.iterations
    marks = tuple(sorted({total * (k + 1) // (MARKS + 1) for k in range(MARKS)} - {0}))
    halves = []
    for half in (1, 2):
        checkpoints = job.path("checkpoints", f"half{half}")
        halves.append(
            HalfJob(
                half=half,
                options=plan.options,
                grey=plan.grey,
                rows=plan.checked.rows[(plan.half_set == half).numpy()],
                config=plan.config,
                box_size=plan.box_size,
                pixel_size_angstrom=plan.pixel_size_angstrom,
                b_factor_angstrom2=plan.b_factor_angstrom2,
                device=str(plan.device),
                threads=plan.threads_per_half,
                checkpoints=checkpoints,
                marks=marks,
                resume=job.folder.resuming,
                parent=os.getpid(),
            )
        )
    return halves


def _run(halves: list[HalfJob], plan: CryoGanPlan, job: Job) -> dict[int, Outcome] | None:
    """Run both halves to the end, with progress and history; return None when stopped."""
    config = plan.config
    edge = plan.box_size * plan.pixel_size_angstrom
    latest: dict[int, dict[str, Any]] = {}
    between: dict[str, float] = {}

    def compare(first: Any, second: Any) -> tuple[float, float]:
        n = min(len(first), COMPARISON_BOX)
        a, b = (fourier_resize(torch.from_numpy(v), n, 3) for v in (first, second))
        spacing, pixel = COMPARISON_SPACING_DEG, edge / n
        return resolutions_between(
            a, b, pixel_size_angstrom=pixel, symmetry=config.symmetry, spacing_deg=spacing
        )

    comparison = Comparison(compare)

    def listen(message: tuple[Any, ...]) -> None:
        if message[0] == "row":
            job.history.add(message[1])
        if message[0] == "mark":
            comparison.add(*message[1:])
        if message[0] in ("row", "state"):
            latest[int(message[1]["half"])] = message[1]
        for row in comparison.results():
            _add_once(job, row)
            between.update(row)
        if len(latest) == len(halves):
            shares = [time_share(config, int(row["step"])) for row in latest.values()]
            job.show_progress(sum(shares) / len(shares), _shown(latest, between))

    try:
        return run_pair(halves, lambda: job.stop_requested, listen)
    finally:
        comparison.close()
        for row in comparison.results():
            _add_once(job, row)


def time_share(config: CryoGanConfig, step: int) -> float:
    """Return the share of the run's time of the first ``step`` iterations, by the images' size.

    >>> stages = [{"box_size": 16, "iterations": 100}, {"box_size": 32, "iterations": 100}]
    >>> config = CryoGanConfig(stages=stages)
    >>> 0 < time_share(config, 100) < 0.5, time_share(config, 200)
    (True, 1.0)
    """
    total = done = 0.0
    for stage in config.stages:
        cost = stage.box_size**2 + _STEP_OVERHEAD
        total += cost * stage.iterations
        done += cost * min(max(step, 0), stage.iterations)
        step -= stage.iterations
    return done / total


def _add_once(job: Job, row: dict[str, float]) -> None:
    """Add a row of a comparison; the halves of a continued run come to the same mark again."""
    if not any("half" not in old and old["step"] == row["step"] for old in job.history.rows):
        job.history.add(row)


def _shown(latest: Mapping[int, Mapping[str, Any]], between: Mapping[str, float]) -> dict[str, Any]:
    """Return the numbers of the progress bar: means over the halves, and the last comparison."""
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
