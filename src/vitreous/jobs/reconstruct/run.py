"""Job of ``vitreous reconstruct``: check, sum over the particles, make the maps, save."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vitreous.core.errors import InputError
from vitreous.core.resample import is_same_map
from vitreous.core.resolution import angstrom
from vitreous.jobs.reconstruct.map_plots import view_plot
from vitreous.jobs.reconstruct.options import ReconstructOptions
from vitreous.jobs.reconstruct.output import finish, report_data, summary, write_files
from vitreous.jobs.reconstruct.plan import (
    ImagePass,
    Plan,
    Sums,
    make_plan,
    pass_over_images,
    read_only,
)
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.summary import JobResult
from vitreous.maps.fsc_warnings import (
    OUTLINE_ONLY,
    directional_doubt,
    fsc_warnings,
    rise_warnings,
)
from vitreous.maps.half_map_pair import Halves
from vitreous.methods.reconstruct import gridding
from vitreous.methods.reconstruct.half_maps import direct_halves, regularised_halves
from vitreous.methods.reconstruct.model_based import HalfEquations, ModelBased, accumulate


@dataclass(frozen=True)
class ReconstructResult(JobResult):
    """Result of a reconstruction."""

    # between the half maps
    resolution_0143_angstrom: float
    resolution_05_angstrom: float
    strength: float | None  # of the regulariser; None for the direct method
    digest: str  # hash of all pixels


_Maps = tuple[Halves, str, dict[str, float]]  # of a method, a hash of the images, its numbers


def reconstruct(options: ReconstructOptions) -> ReconstructResult:
    """Reconstruct a map from particles whose poses are known.

    A continued run reads the images once, from the first, and refuses changed ones; everything
    else goes on from its checkpoint.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    plan = make_plan(options)
    with plan.job() as job:
        method = _model_based if options.regularised else _direct
        halves, digest, numbers = method(plan, job)
        seconds = job.seconds()
        data, pixel = plan.data, plan.data.pixel_size_angstrom
        halves, doubts = _examined(halves, plan)
        solved = math.isfinite(halves.headline[0]) and OUTLINE_ONLY not in doubts
        verdict = OUTLINE_ONLY if OUTLINE_ONLY in doubts else _verdict(halves, len(data.particles))
        write_files(job.folder, halves, data.particles, data.half_set, pixel)
        views, missing = view_plot(plan.pose.rotation, options.symmetry)
        page = report_data(
            job.folder,
            f"{options.particles.name}: {options.method} reconstruction",
            verdict,
            halves,
            half_set=data.half_set,
            pixel_size_angstrom=pixel,
            symmetry=options.symmetry,
            seconds=seconds,
            solved=OUTLINE_ONLY not in doubts,
            warnings=(*doubts, *missing, *_warnings(plan)),
            more_numbers={name: f"{value:.3g}" for name, value in numbers.items()},
        )
        page = replace(page, more_title="Particles", more_plots=[views])
        facts = {"verdict": verdict, "solved": solved, "seconds": round(seconds, 1)}
        finish(job, page, halves.headline, {**facts, "images_sha256": digest, **numbers})
    more = {name: f"{value:.4g}" for name, value in numbers.items()}
    return ReconstructResult(
        solved,
        verdict,
        summary(halves, job.folder, seconds, more=more),
        options.output,
        *halves.headline,
        strength=numbers.get("strength"),
        digest=digest,
    )


def _direct(plan: Plan, job: Job) -> _Maps:
    """Reconstruct by weighted gridding."""
    images = _read(plan, job, "reconstructing", gridding.accumulate)
    wiener = plan.options.wiener
    ratio = 0.0 if wiener == "none" else None if wiener == "auto" else wiener
    halves = direct_halves(images.sums, plan.comparison, noise_ratio=ratio)
    return halves, images.digest, {}


def _read(plan: Plan, job: Job, label: str, accumulate: Callable[..., Sums]) -> ImagePass[Sums]:
    """Return :func:`pass_over_images`, with warnings.

    Raises:
        InputError: a continued run has other images than it began with.
    """

    def progress(images: int, total: int) -> None:
        job.report_progress(images / total, label=label)

    images = pass_over_images(plan, accumulate, progress)
    if images.constant:
        warnings.warn(
            f"{images.constant} images are constant; leave them out with `skip_bad`", stacklevel=2
        )
    finished = job.folder.config["run"].get("images_sha256", images.digest)
    _require_same_images(plan, images.digest, job.state.get("direct", {"digest": finished}))
    return images


def _require_same_images(plan: Plan, digest: str, earlier: Mapping[str, Any]) -> None:
    if digest != earlier["digest"]:
        raise InputError(
            f"{plan.options.particles}: the images have changed since the run began; give the "
            "same, or start it anew with `overwrite`"
        )


def _model_based(plan: Plan, job: Job) -> _Maps:
    """Solve regularised least squares; half maps without prior tell what to believe of it."""
    if "direct" in job.state:
        _read(plan, job, "reading images", read_only)
    else:
        images = _read(plan, job, "reading images", gridding.accumulate)
        first, second = (gridding.half_map(one).cpu() for one in images.sums)
        job.keep("direct", {"half1": first, "half2": second, "digest": images.digest})
    direct = job.state["direct"]

    def sums(scale: int, *, progress: gridding.Progress | None) -> HalfEquations:
        way = partial(accumulate, window=plan.prior.basis, scale=scale)
        images = pass_over_images(plan, way, progress)
        _require_same_images(plan, images.digest, direct)
        return images.sums

    diameter = plan.options.mask_diameter_angstrom
    solver = ModelBased(
        sums,
        plan.data.box_size,
        plan.prior,
        radius_px=diameter and diameter / (2 * plan.data.pixel_size_angstrom),
        device=plan.data.device,
        report_progress=job.report_progress,
    )
    maps = job.run(solver, "maps", label="solving", columns=solver.label, rows=None, numbered=False)
    if not maps.converged:
        warnings.warn(
            "the solution had not settled when its iterations were used up; give more "
            "(`iterations`)",
            stacklevel=2,
        )
    pair = direct["half1"], direct["half2"]
    halves = regularised_halves(maps, pair, plan.comparison)
    return halves, direct["digest"], {"strength": maps.strength}


def _examined(halves: Halves, plan: Plan) -> tuple[Halves, list[str]]:
    """Return the half maps, with a directional FSC where it is needed, and doubts about them."""
    pixel = plan.data.pixel_size_angstrom
    if is_same_map(halves.half1, halves.half2):
        raise InputError(
            f"{plan.options.particles}: half sets: both make the same map, so that their FSC means "
            "nothing; correct _rlnRandomSubset, or take out copies of images"
        )
    if halves.confirmed is None:
        doubts = fsc_warnings(halves, pixel)
    else:
        doubts = rise_warnings(halves.confirmed, pixel)
    halves, one_sided = directional_doubt(halves, plan.pose.rotation, plan.options.symmetry, pixel)
    return halves, doubts + one_sided


def _verdict(halves: Halves, count: int) -> str:
    if not math.isfinite(halves.headline[0]):
        return (
            f"the half maps of {count:,} particles have nothing in common: check angles and their "
            "convention, contrast (`invert`) and CTF"
        )
    how = "" if halves.confirmed is None else ", confirmed without the prior,"
    return f"{angstrom(halves.headline[0])} at 0.143{how} between half maps of {count:,} particles"


def _warnings(plan: Plan) -> tuple[str, ...]:
    texts = []
    if not bool((plan.data.particles.half_set > 0).all()):
        texts.append(
            "The half sets were drawn at random. If the poses were refined against one map of all "
            "particles, the half maps share its noise and the resolution is too optimistic."
        )
    if plan.options.regularised:
        texts.append(
            "Both half maps obey the same prior, and what it supplies they have in common: the FSC "
            "between them is too high. Trust the confirmed one, which compares each with a map of "
            "the other half's particles made without prior."
        )
    return tuple(texts)
