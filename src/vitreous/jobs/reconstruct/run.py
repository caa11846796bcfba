"""The run behind ``vitreous reconstruct``: check, sum over the particles, make the maps, save."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vitreous.jobs.reconstruct.image_pass import pass_over_images
from vitreous.jobs.reconstruct.output import report_data, summary, write_files
from vitreous.jobs.reconstruct.plan import Plan, Request, make_folder, make_plan
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.signals import StopSignals
from vitreous.maps.fsc import FscResult, fsc, fsc_confirmed
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import resolutions
from vitreous.methods.reconstruct.gridding import accumulate
from vitreous.methods.reconstruct.half_maps import compare, described, direct_halves
from vitreous.report.html import angstrom, write_report


@dataclass(frozen=True)
class Reconstruction:
    """A finished run: one sentence, and the lines to print below it."""

    verdict: str
    text: str


def reconstruct(request: Request) -> Reconstruction:
    """Run ``vitreous reconstruct``.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    started = time.monotonic()
    plan = make_plan(request)
    folder = make_folder(plan)
    with folder, StopSignals() as stop:
        found = _direct(plan, stop) if request.prior is None else _model_based(plan, folder, stop)
        halves = found.halves
        seconds = time.monotonic() - started
        verdict = _verdict(halves, len(plan.particles))
        folder.config["run"] |= {
            "verdict": verdict,
            "seconds": round(seconds, 1),
            "resolution_0143_angstrom": halves.headline[0],
            "resolution_05_angstrom": halves.headline[1],
            "images_sha256": found.digest,
            **found.numbers,
        }
        write_files(folder, halves, plan.particles, plan.half_set, plan.pixel_size_angstrom)
        page = report_data(
            "reconstruct",
            f"{request.files.path.name}: {request.method} reconstruction",
            verdict,
            halves,
            half_set=plan.half_set,
            pixel_size_angstrom=plan.pixel_size_angstrom,
            symmetry=request.symmetry,
            seconds=seconds,
            options=folder.config["options"],
            warnings=_warnings(plan),
            more_numbers={name: f"{value:.3g}" for name, value in found.numbers.items()},
        )
        write_report(folder.path("report.html"), replace(page, history=found.history))
        folder.finish()
    more = [f"{name:<12} {value:.4g}" for name, value in found.numbers.items()]
    return Reconstruction(verdict, "\n".join([summary(halves, folder, seconds), *more]))


@dataclass(frozen=True)
class _Found:
    """What a method comes to: maps, a hash of the images, and what else is worth telling."""

    halves: Halves
    digest: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()


def _direct(plan: Plan, stop: StopSignals) -> _Found:
    """Weighted gridding."""
    passed = pass_over_images(plan, "reconstructing", stop, accumulate)
    if passed.constant:
        say(f"warning: {passed.constant} images are constant; leave them out with --skip-bad")
    halves = direct_halves(
        passed.sums,
        seed=plan.request.seed,
        noise_to_signal_is=plan.request.noise_to_signal,
        **plan.sizes,
    )
    return _Found(halves, passed.digest)


def _model_based(plan: Plan, folder: OutputFolder, stop: StopSignals) -> _Found:
    """Regularised least squares."""
    from vitreous.jobs.reconstruct.model_based import solve

    solved = solve(plan, folder, stop)
    maps = solved.maps
    half1, half2 = maps.half1.cpu(), maps.half2.cpu()
    mask, curves = _compare(plan, half1, half2)
    if not all(solution.converged for solution in maps.solutions):
        say(
            "warning: the solution had not settled when its iterations were used up; "
            "give more (--iterations)"
        )
    halves = described(half1, half2, maps.average.cpu(), mask, curves, **plan.sizes)
    first, second = (one.cpu() for one in solved.direct)
    confirmed = fsc_confirmed((half1, half2), (first, second))
    halves = replace(
        halves,
        confirmed=confirmed,
        confirmed_at=resolutions(confirmed, plan.box_size, plan.pixel_size_angstrom),
        more_curves={"direct": fsc(first, second)},
    )
    return _Found(halves, solved.digest, {"strength": maps.strength}, solved.history)


def _compare(plan: Plan, half1: Tensor, half2: Tensor) -> tuple[Tensor, FscResult]:
    return compare(half1, half2, seed=plan.request.seed, **plan.sizes)


def _verdict(halves: Halves, count: int) -> str:
    if halves.headline[0] == float("inf"):
        return (
            f"the half maps of {count:,} particles have nothing in common: check angles and their "
            "convention, contrast (--invert) and CTF"
        )
    how = "" if halves.confirmed is None else ", confirmed without the prior,"
    return f"{angstrom(halves.headline[0])} at 0.143{how} between half maps of {count:,} particles"


def _warnings(plan: Plan) -> tuple[str, ...]:
    found = []
    if not bool((plan.particles.half_set > 0).all()):
        found.append(
            "The half sets were drawn at random. If the poses were refined against one map of all "
            "particles, the half maps share its noise and the resolution is too optimistic."
        )
    if plan.request.prior is not None:
        found.append(
            "Both half maps obey the same prior, and what it supplies they have in common: the FSC "
            "between them is too high. Trust the confirmed one, which compares each with a map of "
            "the other half's particles made without prior."
        )
    return tuple(found)
