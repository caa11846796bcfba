"""What ``vitreous refine``, ``auto`` and ``abinit --method em`` write: maps, poses, report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.random import generator
from vitreous.data.tables import pose_columns
from vitreous.io.atomic import atomic_write_text
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet
from vitreous.jobs.reconstruct.output import report_data, summary, write_files
from vitreous.jobs.refine.micrographs_csv import micrographs_csv, optics_numbers, refined_columns
from vitreous.jobs.run.folder import OutputFolder
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import MOST_MASK_GAIN
from vitreous.maps.postprocess import Postprocessed, local_range, postprocess
from vitreous.methods.em.initial_model import InitialModel, shells_beyond_doubt
from vitreous.methods.em.pose_posterior import RefinedPoses
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.reconstruct.half_maps import sphere
from vitreous.report.html import angstrom, write_report

_MORE = "More --images and --starts, another --seed or more particles may lead to another one"


@dataclass(frozen=True)
class Refined:
    """A finished run: whether there is a structure, one sentence, and the lines below it."""

    solved: bool
    verdict: str
    text: str


def write_results(
    folder: OutputFolder,
    working: ProcessingOptions,
    data: WorkingSet,
    first: InitialModel,
    task: Refinement | None,
    *,
    title: str,
    command: str,
    history: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Refined:
    """Write every output but checkpoints and history.

    Args:
        folder: where to.
        working: options.
        data: the particles.
        first: what was started from.
        task: its rounds; None where there was nothing to be refined.
        title: of the report.
        command: name of the subcommand.
        history: rows of the run.
        seconds: wall time.

    Raises:
        ResourceError: the disk is full.
    """
    if task is None:
        first, data = _on_own_grid(first, data)
    pixel = data.pixel_size_angstrom
    poses = None if task is None else task.poses()
    half1, half2, average = (
        (first.half1, first.half2, 0.5 * (first.half1 + first.half2))
        if task is None
        else (one.cpu() for one in task.maps())
    )
    post = _postprocessed(half1, half2, working, pixel)
    halves = Halves(
        half1=half1,
        half2=half2,
        average=average,
        curves=post.curves,
        masked=post.masked,
        unmasked=post.unmasked,
        more_curves={"held_out": torch.tensor(first.held_out)} if first.held_out else {},
    )
    verdict = _verdict(
        halves, first, len(data.particles), len(half1) * pixel, refined=task is not None
    )
    numbers = {} if poses is None else _numbers(poses, post)
    judged = None if task is None else task.judged
    for one in judged or ():
        if any(one.found):
            numbers |= optics_numbers(one)
    micrographs = None if judged is None else judged.micrographs
    if micrographs is not None and any(micrographs.found):
        table = micrographs_csv(micrographs, data.particles.micrograph_names)
        atomic_write_text(folder.path("micrographs.csv"), table)
    _write_tables(folder, data, halves, poses, refined_columns(judged))
    more = {
        "start.mrc": 0.5 * (first.half1 + first.half2),
        "mask.mrc": post.mask,
        "sharpened.mrc": None if task is None else post.sharpened.map,
        "local_resolution.mrc": None if task is None else post.local_resolution,
    }
    for name, volume in more.items():
        if volume is not None:
            write_mrc(folder.path(name), volume.cpu().float().numpy(), pixel)
    folder.config["run"] |= {
        "verdict": verdict,
        "solved": first.solved,
        "seconds": round(seconds, 1),
        "resolution_0143_angstrom": halves.headline[0],
        "resolution_05_angstrom": halves.headline[1],
        "start": first.verdict,
        "tries": first.tries,
    }
    page = report_data(
        command,
        title,
        verdict,
        halves,
        half_set=data.half_set,
        pixel_size_angstrom=pixel,
        symmetry=working.symmetry,
        seconds=seconds,
        options=folder.config["options"],
        warnings=_warnings(halves, first, task),
        more_numbers=numbers,
    )
    write_report(folder.path("report.html"), replace(page, history=history))
    remark = "" if first.solved else "; they mean nothing while it is not solved"
    told = numbers | ({"starts": _spread(first)} if first.misfits else {})
    if first.held_out:
        told["held out"] = (
            f"FSC {_mean_held_out(first):.2f} on average over shells that took no part in finding "
            "poses"
        )
    lines = [f"{name:<12} {value}" for name, value in told.items()]
    text = "\n".join([summary(halves, folder, seconds, remark), *lines])
    return Refined(first.solved, verdict, text)


def _on_own_grid(first: InitialModel, data: WorkingSet) -> tuple[InitialModel, WorkingSet]:
    """Without the frequencies beyond the band of the starts, where there is nothing to compare."""
    n = first.box_size
    half1, half2 = (fourier_resize(one, n, 3) for one in (first.half1, first.half2))
    pixel = data.pixel_size_angstrom * data.box_size / n
    return (
        replace(first, half1=half1, half2=half2),
        replace(data, box_size=n, pixel_size_angstrom=pixel),
    )


def _postprocessed(
    half1: Tensor, half2: Tensor, working: ProcessingOptions, pixel_size_angstrom: float
) -> Postprocessed:
    diameter, mask = working.mask_diameter_angstrom, None
    if diameter is not None:
        mask = sphere(len(half1), diameter, pixel_size_angstrom)
    return postprocess(
        half1,
        half2,
        pixel_size_angstrom=pixel_size_angstrom,
        generator=generator(working.seed, "phases"),
        mask=mask,
    )


def _verdict(
    halves: Halves, first: InitialModel, count: int, edge_angstrom: float, *, refined: bool
) -> str:
    if not first.solved or not refined:
        return first.verdict
    reached = halves.headline[0]
    between = f"between half maps of {count:,} particles"
    if first.independent:
        told = f"{angstrom(reached)} at 0.143 {between}, independent from the first step on"
        if edge_angstrom / reached >= shells_beyond_doubt(len(halves.half1)):
            return told
        return f"{told}; so coarse an agreement may be of a wrong map: do not build on it. {_MORE}"
    if not math.isfinite(reached) or reached > 0.9 * first.resolution_angstrom:
        return (
            f"nothing was found beyond the start: the half maps agree to {angstrom(reached)}, and "
            f"share the start up to {first.resolution_angstrom:.0f} Å; check it, --sym and "
            "contrast (--invert), or let `vitreous auto` find one"
        )
    return f"{angstrom(reached)} at 0.143 {between}, which shared a start up to " + (
        f"{first.resolution_angstrom:.0f} Å"
    )


def _numbers(poses: RefinedPoses, post: Postprocessed) -> dict[str, str]:
    """The report's cards, and lines for the terminal."""
    certain = float((poses.posterior[poses.kept] > 0.5).float().mean())
    found = {
        "kept": f"{int(poses.kept.sum()):,} of {len(poses.kept):,}",
        "sure poses": f"{100 * certain:.0f} %",
        "B factor": f"{post.sharpened.b_factor_angstrom2:.0f} Å²",
    }
    if post.local_resolution is not None:
        low, _, high = local_range(post.local_resolution, post.mask)
        found["local"] = f"{low:.1f} to {high:.1f} Å"
    return found


def _spread(first: InitialModel) -> str:
    """How far the starts of either half lay apart."""
    halves = torch.tensor(first.misfits).view(2, -1)
    above = [", ".join(f"{value:.1f}" for value in half - half.min()) for half in halves]
    return f"{above[0]} and {above[1]} (misfit of each half's starts above the best)"


def _mean_held_out(first: InitialModel) -> float:
    return float(torch.tensor(first.held_out)[1:].mean())


def _warnings(halves: Halves, first: InitialModel, task: Refinement | None) -> tuple[str, ...]:
    found = []
    if first.held_out:
        found.append(
            "Believe the curve of shells held out, which no pose was found by: its mean is "
            f"{_mean_held_out(first):.2f}. In the others the half maps also agree on what the "
            "rounds began with."
        )
    if first.tries > 1 and first.solved:
        found.append(
            f"The halves disagreed at first; they came together at try {first.tries}, from other "
            "starts and with more images."
        )
    if task is not None and not task.settled and task.round >= task.config.rounds:
        found.append("The halves still came closer in the last round; give more (--rounds).")
    if halves.unmasked[0] > MOST_MASK_GAIN * halves.masked[0]:
        found.append(
            "The mask gains suspiciously much resolution; look at the unmasked curve as well."
        )
    return tuple(found)


def _write_tables(
    folder: OutputFolder,
    data: WorkingSet,
    halves: Halves,
    poses: RefinedPoses | None,
    more: Mapping[str, Tensor],
) -> None:
    """Maps, curves, and the particles with their poses, those left out apart."""
    if poses is None:
        write_files(folder, halves, data.particles, data.half_set, data.pixel_size_angstrom)
        return

    def columns(rows: Tensor) -> dict[str, Any]:
        return _columns(poses, rows) | {name: more[name][rows].numpy() for name in more}

    kept = poses.kept.cpu()
    used, left_out = kept.nonzero().flatten(), (~kept).nonzero().flatten()
    some = data.particles.select(used.numpy())
    half = data.half_set[used]
    write_files(folder, halves, some, half, data.pixel_size_angstrom, **columns(used))
    if len(left_out):
        document = data.particles.select(left_out.numpy()).to_star_document(
            relative_to=folder.root,
            rlnRandomSubset=data.half_set[left_out].numpy(),
            **columns(left_out),
        )
        write_star(folder.path("rejected.star"), document)


def _columns(poses: RefinedPoses, rows: Tensor) -> dict[str, Any]:
    """Poses and what is known of them, under RELION's names."""
    here = rows.to(poses.posterior.device)
    return {
        **pose_columns(poses.pose[here]),
        "rlnMaxValueProbDistribution": poses.posterior[here].cpu().numpy(),
        "rlnLogLikeliContribution": poses.log_likelihood[here].cpu().numpy(),
    }
