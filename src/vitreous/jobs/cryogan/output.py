"""What ``vitreous abinit`` writes: maps, tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vitreous.core.images import ImagesInMemory
from vitreous.core.random import generator
from vitreous.core.resolution import angstrom
from vitreous.data.simulation_inputs import parse_shift
from vitreous.data.working_images import SignedImages
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
from vitreous.jobs.refine.evidence import EVIDENCE, evidence, refusal
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.summary import JobResult
from vitreous.maps.fsc_warnings import OUTLINE_ONLY, fsc_warnings
from vitreous.maps.half_maps import FEWEST_SHELLS, HalvesResult, combine_halves
from vitreous.methods.em.config import SHIFT_SHARE, RefinementConfig
from vitreous.methods.em.finer_shells_test import FinerShells, finer_shells_test
from vitreous.methods.em.poses_for_half_maps import with_poses

OUTPUTS = FILES
_ASKED = 1000  # particles of each half set, by which the map is tested
_REMEDY = "Give the run more time (`effort`) or another `seed`, or find a map with `vitreous auto`"


@dataclass(frozen=True)
class CryoGanResult(JobResult):
    """A finished run of ``abinit``."""

    halves: HalvesResult  # aligned half maps and their comparison
    finer_shells: FinerShells | None  # whether the images show the finer shells; None if not asked


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
    finer = _asked(job, plan, result) if result.solved else None
    if finer is not None and not finer.shown:
        verdict = f"NOT SOLVED: {refusal(finer, result.headline[0])}. {_REMEDY}"
        result, doubts = replace(result, solved=False, verdict=verdict), [f"{verdict}."]
    numbers = {"chance alone": angstrom(result.chance_angstrom)}
    if finer is not None:
        numbers[EVIDENCE] = evidence(finer)
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
        more_numbers=numbers,
    )
    examples: dict[str, Any] = dict(outcomes[1].examples)
    facts = {"verdict": result.verdict, "solved": result.solved, "seconds": round(seconds, 1)}
    facts["chance_angstrom"] = result.chance_angstrom
    finish(job, replace(page, **examples), result.headline, facts)
    more = {EVIDENCE: numbers[EVIDENCE]} if finer is not None else {}
    text = summary(result, job.folder, seconds, solved=result.solved, more=more)
    text = with_warnings(doubts if result.solved else (), text)
    return CryoGanResult(result.solved, result.verdict, text, job.folder.root, result, finer)


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


def _asked(job: Job, plan: CryoGanPlan, result: HalvesResult) -> FinerShells:
    """Ask the images whether they show the finer shells of half maps that agree."""
    chosen, stream = [], generator(plan.options.seed, "finer shells")
    for half in (1, 2):
        rows = (plan.half_set == half).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=stream)[:_ASKED]])
    every = torch.cat(chosen).sort().values
    particles, half_set = plan.particles.select(every.numpy()), plan.half_set[every]
    optics = particles.optics.with_b_factor(plan.b_factor_angstrom2)
    images = SignedImages(particles, plan.grey, box_size=plan.box_size)
    images_read = ImagesInMemory(images.read(slice(None)))
    pixel, edge = plan.pixel_size_angstrom, plan.box_size * plan.pixel_size_angstrom
    shifts = parse_shift(plan.options.shift, pixel).sample(_ASKED, generator=stream)
    config = RefinementConfig(
        symmetry=plan.config.symmetry,
        shift_range_angstrom=max(SHIFT_SHARE * edge, float(shifts.norm(dim=1).max())),
        seed=plan.options.seed,
        diameter_angstrom=2 * plan.config.mask_fraction * edge,
    )
    resolution = min(result.headline[1], edge / FEWEST_SHELLS)
    job.report_progress(0.0, label="do the images show the map")
    given = images_read, optics, half_set, resolution, config
    posed = with_poses(
        (result.half1, result.half2),
        *given,
        pixel_size_angstrom=pixel,
        progress=lambda share: job.report_progress(share / 2),
    )
    return finer_shells_test(
        posed,
        *given,
        pixel_size_angstrom=pixel,
        progress=lambda share: job.report_progress((1 + share) / 2),
    )
