"""What ``vitreous abinit`` writes: maps, tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.random import generator
from vitreous.data.particles import Particles
from vitreous.jobs.cryogan.half_worker import Outcome
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.reconstruct.output import FILES, report_data, summary, write_files
from vitreous.jobs.run.job import Job
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import HalvesResult, combine_halves
from vitreous.report.html import angstrom, write_report

OUTPUTS = FILES


@dataclass(frozen=True)
class CryoGanResult:
    """A finished run of ``abinit``.

    Args:
        folder: where everything was written.
        solved: whether the halves agree on a structure.
        verdict: one sentence on the map.
        text: lines on resolution, time and files.
        halves: aligned half maps and their comparison.
    """

    folder: Path
    solved: bool
    verdict: str
    text: str
    halves: HalvesResult


def write_results(
    job: Job,
    options: CryoGanOptions,
    particles: Particles,
    half_set: Tensor,
    outcomes: Mapping[int, Outcome],
    *,
    pixel_size_angstrom: float,
    symmetry: str,
    device: torch.device,
) -> CryoGanResult:
    """Compare the half maps, write every output but checkpoints and history, finish the job.

    Args:
        job: entered.
        options: of the job.
        particles: those used.
        half_set: long ``(n,)`` of 1 and 2.
        outcomes: of half sets 1 and 2.
        pixel_size_angstrom: of the maps, Å.
        symmetry: point group.
        device: where to compute.

    Raises:
        ResourceError: the disk is full.
    """
    seconds = max(outcome.seconds for outcome in outcomes.values())
    result, halves = _compared(
        outcomes, len(particles), pixel_size_angstrom, symmetry, options.seed, device
    )
    write_files(job.folder, halves, particles, half_set, pixel_size_angstrom)
    page = report_data(
        "abinit",
        f"{options.particles.name}: ab initio reconstruction",
        result.verdict,
        halves,
        half_set=half_set,
        pixel_size_angstrom=pixel_size_angstrom,
        symmetry=symmetry,
        seconds=seconds,
        options=job.folder.config["options"],
        warnings=() if result.solved else (result.verdict + ".",),
        more_numbers={"chance alone": angstrom(result.chance_angstrom)},
    )
    examples: dict[str, Any] = dict(outcomes[1].examples)
    write_report(job.path("report.html"), replace(page, history=job.history.rows, **examples))
    job.finish(
        {
            "verdict": result.verdict,
            "solved": result.solved,
            "seconds": round(seconds, 1),
            "resolution_0143_angstrom": result.resolution_0143_angstrom,
            "resolution_05_angstrom": result.resolution_05_angstrom,
            "chance_angstrom": result.chance_angstrom,
        }
    )
    remark = "" if result.solved else "; they mean little while it is not solved"
    text = summary(halves, job.folder, seconds, remark)
    return CryoGanResult(job.folder.root, result.solved, result.verdict, text, result)


def _compared(
    outcomes: Mapping[int, Outcome],
    n_particles: int,
    pixel_size_angstrom: float,
    symmetry: str,
    seed: int,
    device: torch.device,
) -> tuple[HalvesResult, Halves]:
    """Return the comparison of the half maps, and the maps with their curves."""
    half1, half2 = (torch.from_numpy(outcomes[half].volume).to(device) for half in (1, 2))
    result = combine_halves(
        half1,
        half2,
        pixel_size_angstrom=pixel_size_angstrom,
        symmetry=symmetry,
        n_particles=n_particles,
        generator=generator(seed, "combine"),
    )
    halves = Halves(
        half1=half1,
        half2=result.half2,
        average=result.average,
        curves=result.curves,
        masked=(result.resolution_0143_angstrom, result.resolution_05_angstrom),
        unmasked=(result.unmasked_0143_angstrom, result.unmasked_05_angstrom),
    )
    return result, halves
