"""What ``vitreous abinit`` writes: history while it runs, then maps, tables and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vitreous.core.random import generator
from vitreous.data.particles import Particles
from vitreous.jobs.cryogan.half_worker import Outcome
from vitreous.jobs.reconstruct import output as reconstruction_output
from vitreous.jobs.reconstruct.output import FILES, report_data, write_files
from vitreous.jobs.run.folder import OutputFolder
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import HalvesResult, combine_halves
from vitreous.report.html import angstrom, write_report

OUTPUTS = (*FILES, "history.jsonl")


@dataclass(frozen=True)
class Run:
    """What the outputs of a finished run are made from."""

    particles: Particles
    half_set: torch.Tensor
    outcomes: Mapping[int, Outcome]
    pixel_size_angstrom: float
    symmetry: str
    seed: int
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    title: str
    device: torch.device

    @property
    def seconds(self) -> float:
        """Wall time of the slower half, interruptions left out."""
        return max(outcome.seconds for outcome in self.outcomes.values())


def write_results(folder: OutputFolder, run: Run) -> HalvesResult:
    """Join the halves and write every output but the checkpoints and the history.

    Raises:
        ResourceError: the disk is full.
    """
    pixel = run.pixel_size_angstrom
    half1, half2 = (torch.from_numpy(run.outcomes[h].volume).to(run.device) for h in (1, 2))
    result = combine_halves(
        half1,
        half2,
        pixel_size_angstrom=pixel,
        symmetry=run.symmetry,
        n_particles=len(run.particles),
        generator=generator(run.seed, "combine"),
    )
    halves = _halves(half1, result)
    write_files(folder, halves, run.particles, run.half_set, pixel)
    page = report_data(
        "abinit",
        run.title,
        result.verdict,
        halves,
        half_set=run.half_set,
        pixel_size_angstrom=pixel,
        symmetry=run.symmetry,
        seconds=run.seconds,
        options=run.settings,
        warnings=() if result.solved else (result.verdict + ".",),
        more_numbers={"chance alone": angstrom(result.chance_angstrom)},
    )
    examples: dict[str, Any] = dict(run.outcomes[1].examples)
    page = replace(page, history=run.history, **examples)
    write_report(folder.path("report.html"), page)
    folder.config["run"] |= {
        "verdict": result.verdict,
        "solved": result.solved,
        "seconds": round(run.seconds, 1),
        "resolution_0143_angstrom": result.resolution_0143_angstrom,
        "resolution_05_angstrom": result.resolution_05_angstrom,
        "chance_angstrom": result.chance_angstrom,
    }
    return result


def _halves(half1: torch.Tensor, result: HalvesResult) -> Halves:
    return Halves(
        half1=half1,
        half2=result.half2,
        average=result.average,
        curves=result.curves,
        masked=(result.resolution_0143_angstrom, result.resolution_05_angstrom),
        unmasked=(result.unmasked_0143_angstrom, result.unmasked_05_angstrom),
    )


def summary(result: HalvesResult, folder: OutputFolder, seconds: float) -> str:
    """The lines for the person who waited, to follow the verdict."""
    remark = "" if result.solved else "; they mean little while it is not solved"
    return reconstruction_output.summary(_halves(result.half2, result), folder, seconds, remark)
