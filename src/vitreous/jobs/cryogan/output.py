"""What ``vitreous abinit`` writes: maps, tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vitreous.core.random import generator
from vitreous.core.resolution import angstrom
from vitreous.jobs.cryogan.half_worker import Outcome
from vitreous.jobs.cryogan.plan import CryoGanPlan
from vitreous.jobs.reconstruct.output import (
    FILES,
    finish,
    report_data,
    summary,
    with_warnings,
    write_files,
)
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.summary import JobResult
from vitreous.maps.fsc_warnings import OUTLINE_ONLY, fsc_warnings
from vitreous.maps.half_maps import HalvesResult, combine_halves

OUTPUTS = FILES


@dataclass(frozen=True)
class CryoGanResult(JobResult):
    """A finished run of ``abinit``."""

    halves: HalvesResult  # aligned half maps and their comparison


def write_results(job: Job, plan: CryoGanPlan, outcomes: Mapping[int, Outcome]) -> CryoGanResult:
    """Compare the half maps, write every output but checkpoints and history, finish the job.

    Args:
        job: entered.
        plan: of the run.
        outcomes: of half sets 1 and 2.

    Raises:
        ResourceError: the disk is full.
    """
    seconds = max(outcome.seconds for outcome in outcomes.values())
    result, doubts = doubted(_compared(outcomes, plan), plan.pixel_size_angstrom)
    write_files(job.folder, result, plan.particles, plan.half_set, plan.pixel_size_angstrom)
    page = report_data(
        job.folder,
        f"{plan.options.particles.name}: ab initio reconstruction",
        result.verdict,
        result,
        half_set=plan.half_set,
        pixel_size_angstrom=plan.pixel_size_angstrom,
        symmetry=plan.config.symmetry,
        seconds=seconds,
        solved=result.solved,
        warnings=tuple(doubts),
        more_numbers={"chance alone": angstrom(result.chance_angstrom)},
    )
    examples: dict[str, Any] = dict(outcomes[1].examples)
    facts = {"verdict": result.verdict, "solved": result.solved, "seconds": round(seconds, 1)}
    facts["chance_angstrom"] = result.chance_angstrom
    finish(job, replace(page, **examples), result.headline, facts)
    text = summary(result, job.folder, seconds, solved=result.solved)
    text = with_warnings(doubts if result.solved else (), text)
    return CryoGanResult(result.solved, result.verdict, text, job.folder.root, result)


def doubted(result: HalvesResult, pixel_size_angstrom: float) -> tuple[HalvesResult, list[str]]:
    """Return the comparison, not solved if the halves share an outline only, and warnings."""
    doubts = fsc_warnings(result, pixel_size_angstrom) if result.solved else []
    if OUTLINE_ONLY in doubts:
        result = replace(result, solved=False, verdict=f"NOT SOLVED: {OUTLINE_ONLY}")
    return result, doubts if result.solved else [f"{result.verdict}."]


def _compared(outcomes: Mapping[int, Outcome], plan: CryoGanPlan) -> HalvesResult:
    half1, half2 = (torch.from_numpy(outcomes[half].volume).to(plan.device) for half in (1, 2))
    return combine_halves(
        half1,
        half2,
        pixel_size_angstrom=plan.pixel_size_angstrom,
        symmetry=plan.config.symmetry,
        n_particles=len(plan.particles),
        generator=generator(plan.options.seed, "combine"),
    )
