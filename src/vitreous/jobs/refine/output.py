"""What ``vitreous auto`` and ``vitreous refine`` write: maps, poses, report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.resolution import angstrom
from vitreous.data.tables import pose_columns
from vitreous.io.atomic import atomic_write_text
from vitreous.io.star import write_star
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.reconstruct.output import (
    finish,
    report_data,
    summary,
    with_warnings,
    write_files,
    write_maps,
)
from vitreous.jobs.refine.evidence import EVIDENCE, evidence, refusal
from vitreous.jobs.refine.micrographs_csv import (
    aberration_numbers,
    micrographs_csv,
    optics_numbers,
    refined_columns,
)
from vitreous.jobs.refine.options import PoseOptions
from vitreous.jobs.refine.page import with_maps_and_plots
from vitreous.jobs.refine.stages import Solution, masked_halves
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.summary import JobResult
from vitreous.maps.fsc_warnings import directional_doubt
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.postprocess import Postprocessed, local_range
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.finer_shells_test import FinerShells
from vitreous.methods.em.initial_model_result import InitialModel, shells_beyond_doubt
from vitreous.methods.em.refinement_result import RefinementResult

# what to do, by whether the halves began with maps of their own
_REMEDY = {
    True: "Try other starts (`seed`, `starts`, `images`), another `symmetry`, or `vitreous refine` "
    "with a model",
    False: "Try a finer `start_resolution_angstrom`, another `symmetry` or start, or go on from "
    "this map",
}
_MORE = "More `images` and `starts`, another `seed` or more particles may lead to another one"


@dataclass(frozen=True)
class RefineResult(JobResult):
    """A finished run of ``auto`` or ``refine``."""

    # where the FSC between the half maps falls below 0.143; infinite without agreement
    resolution_angstrom: float
    initial_model: InitialModel  # the maps that were started from
    refinement: RefinementResult | None  # maps and poses; None where nothing was refined
    finer_shells: FinerShells | None  # whether the images show the map's finer shells


def write_results(
    job: Job, options: PoseOptions, data: WorkingSet, config: RefinementConfig, ended: Solution
) -> RefineResult:
    """Write every output but checkpoints and history, and finish the job.

    Args:
        job, options, data: the run and its particles.
        config: of the refinement.
        ended: initial model, refinement and evidence of the images.
    """
    seconds = job.seconds()
    start, refined, finer = ended.start, ended.refined, ended.finer
    start, data = (start, data) if refined else _on_own_grid(start, data)
    pixel = data.pixel_size_angstrom
    halves, post = _halves(start, refined, config, pixel)
    solved = ended.solved
    verdict = _verdict(halves, start, len(data.particles), data.box_size * pixel, refined, finer)
    doubts = list(post.warnings) if solved else []
    if refined is not None:
        rotations = refined.poses.pose.rotation
        halves, one_sided = directional_doubt(halves, rotations, options.symmetry, pixel)
        doubts += one_sided
    numbers = {} if refined is None else _numbers(refined, post, finer)
    if start.used:
        finer_start = ended.finer_start_angstrom
        began = f", starts at {finer_start:.0f} Å" if finer_start else ""
        used = f"from {start.used:,} of {len(data.particles):,} particles{began}"
        numbers["initial map"] = used
    numbers |= _write_tables(job.folder, data, halves, refined)
    sharp = {"sharpened.mrc": post.sharpened.map, "local_resolution.mrc": post.local_resolution}
    more: dict[str, Tensor | None] = {"start.mrc": start.map, "mask.mrc": post.mask}
    write_maps(job.folder, more | (sharp if refined else {}), pixel)
    facts = {"verdict": verdict, "solved": solved, "start": start.verdict, "tries": start.tries}
    page = report_data(
        job.folder,
        f"{options.particles.name}: from particles to a map",
        verdict,
        halves,
        half_set=data.half_set,
        pixel_size_angstrom=pixel,
        symmetry=options.symmetry,
        seconds=seconds,
        solved=solved,
        warnings=_warnings(doubts, start, refined),
        more_numbers=numbers,
    )
    page = with_maps_and_plots(page, data, ended, halves, post, options.symmetry)
    finish(job, page, halves.headline, {**facts, "seconds": round(seconds, 1)})
    return RefineResult(
        folder=job.folder.root,
        solved=solved,
        verdict=verdict,
        text=with_warnings(doubts, _text(job.folder, halves, start, numbers, seconds, solved)),
        resolution_angstrom=halves.headline[0],
        initial_model=start,
        refinement=refined,
        finer_shells=finer,
    )


def _on_own_grid(start: InitialModel, data: WorkingSet) -> tuple[InitialModel, WorkingSet]:
    """Return the model without frequencies beyond its band, where there is nothing to compare."""
    n = start.box_size
    half1, half2 = (fourier_resize(one, n, 3) for one in (start.half1, start.half2))
    pixel = data.pixel_size_angstrom * data.box_size / n
    return (
        replace(start, half1=half1, half2=half2),
        replace(data, box_size=n, pixel_size_angstrom=pixel),
    )


def _halves(
    start: InitialModel,
    refined: RefinementResult | None,
    config: RefinementConfig,
    pixel_size_angstrom: float,
) -> tuple[Halves, Postprocessed]:
    """Return the maps with their FSC curves, masked and sharpened."""
    post = masked_halves(refined or start, config, pixel_size_angstrom)
    average = start.map if refined is None else refined.map.cpu()
    held_out = {"held_out": torch.tensor(start.held_out)} if start.held_out else {}
    return replace(post, average=average, more_curves=held_out), post


def _verdict(
    halves: Halves,
    start: InitialModel,
    count: int,
    edge_angstrom: float,
    refined: RefinementResult | None,
    finer: FinerShells | None,
) -> str:
    """Return one sentence on what was reached."""
    if not start.solved or refined is None:
        return start.verdict
    reached = halves.headline[0]
    between = f"between half maps of {count:,} particles"
    if finer is None or not finer.shown:
        return f"NOT SOLVED: {refusal(finer, reached)}. {_REMEDY[start.independent]}"
    if start.independent:
        verdict = f"{angstrom(reached)} at 0.143 {between}, independent from the first step on"
        if edge_angstrom / reached >= shells_beyond_doubt(len(halves.half1)):
            return verdict
        doubt = "so coarse an agreement may be of a wrong map: do not build on it"
        return f"{verdict}; {doubt}. {_MORE}"
    shared = start.resolution_angstrom
    if not math.isfinite(reached) or reached > 0.9 * shared:
        return (
            f"nothing was found beyond the start: the half maps agree to {angstrom(reached)}, and "
            f"share the start up to {shared:.0f} Å; check it, `symmetry` and contrast (`invert`), "
            "or let `vitreous auto` find one"
        )
    return f"{angstrom(reached)} at 0.143 {between}, which shared a start up to {shared:.0f} Å"


def _numbers(
    refined: RefinementResult, post: Postprocessed, finer: FinerShells | None
) -> dict[str, str]:
    """Return the report's cards, which are lines for the terminal as well."""
    poses = refined.poses
    certain = float((poses.posterior[poses.kept] > 0.5).float().mean())
    numbers = {
        "kept": f"{int(poses.kept.sum()):,} of {len(poses.kept):,}",
        "sure poses": f"{100 * certain:.0f} %",
        "B factor": f"{post.sharpened.b_factor_angstrom2:.0f} Å²",
    }
    if post.local_resolution is not None:
        low, _, high = local_range(post.local_resolution, post.mask)
        numbers["local"] = f"{low:.1f} to {high:.1f} Å"
    if finer is not None:
        numbers[EVIDENCE] = evidence(finer)
    for one in refined.optics:
        if any(one.estimates):
            numbers |= optics_numbers(one)
    return numbers


def _text(
    folder: OutputFolder,
    halves: Halves,
    start: InitialModel,
    numbers: Mapping[str, str],
    seconds: float,
    solved: bool,
) -> str:
    """Return the lines for the terminal, below the verdict."""
    lines = dict(numbers)
    if len(start.misfits) > 2:
        best_first = torch.tensor(start.misfits).view(2, -1).sort().values
        above = [", ".join(f"{v:.1f}" for v in half[1:] - half[0]) for half in best_first]
        lines["starts"] = (
            f"half 1: {above[0]}; half 2: {above[1]}: -2 ln(likelihood) per image of the other "
            "starts above the best one; near 0, they explain the images as well"
        )
    if start.held_out:
        lines["held out"] = (
            f"FSC {_mean_held_out(start):.2f} on average over shells that took no part in finding "
            "poses; it does not overrule the verdict"
        )
    return summary(halves, folder, seconds, solved=solved, more=lines)


def _mean_held_out(start: InitialModel) -> float:
    return float(torch.tensor(start.held_out)[1:].mean())


def _warnings(
    doubts: Sequence[str], start: InitialModel, refined: RefinementResult | None
) -> tuple[str, ...]:
    """Return the sentences that the report shows prominently."""
    warnings = list(doubts)
    if start.held_out:
        warnings.append(
            'The curve "held out" compares shells that took no part in finding poses (mean '
            f"{_mean_held_out(start):.2f}); in the other curves the half maps also agree on what "
            "the rounds began with. No curve overrules the verdict: the map is not solved."
        )
    if start.tries > 1 and start.solved:
        warnings.append(
            f"The halves disagreed at first; they came together at try {start.tries}, from other "
            "starts and with more images."
        )
    if refined is not None and not refined.settled:
        warnings.append("The halves still came closer in the last round; give more (`rounds`).")
    return tuple(warnings)


def _write_tables(
    folder: OutputFolder, data: WorkingSet, halves: Halves, refined: RefinementResult | None
) -> dict[str, str]:
    """Write half maps, curves, and the particles with their poses; rejected particles apart.

    Returns the lines for the terminal about the new columns.
    """
    if refined is None:
        write_files(folder, halves, data.particles, data.half_set, data.pixel_size_angstrom)
        return {}
    micrographs = refined.optics.micrographs
    if micrographs is not None and any(micrographs.estimates):
        table = micrographs_csv(micrographs, data.particles.micrograph_names)
        atomic_write_text(folder.path("micrographs.csv"), table)
    optics, poses = refined_columns(refined.optics, data.particles), refined.poses

    def columns(rows: Tensor) -> dict[str, Any]:
        """Return poses, their probabilities and optics under RELION's names."""
        here = rows.to(poses.posterior.device)
        return {
            **pose_columns(poses.pose[here]),
            "rlnMaxValueProbDistribution": poses.posterior[here].cpu().numpy(),
            "rlnLogLikeliContribution": poses.log_likelihood[here].cpu().numpy(),
            **{name: [values[row] for row in rows.tolist()] for name, values in optics.items()},
        }

    kept = poses.kept.cpu()
    used, rejected = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    particles, half_set = data.particles.select(used.numpy()), data.half_set[used]
    write_files(folder, halves, particles, half_set, data.pixel_size_angstrom, **columns(used))
    if len(rejected):
        document = data.particles.select(rejected.numpy()).to_star_document(
            relative_to=folder.root,
            rlnRandomSubset=data.half_set[rejected].numpy(),
            **columns(rejected),
        )
        write_star(folder.path("rejected.star"), document)
    return aberration_numbers(optics)
