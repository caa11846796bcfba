"""The run behind ``vitreous reconstruct``: check, sum over the particles, make the maps, save."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitreous.cli.common import StopSignals, generator, say, use_device
from vitreous.cli.output import OutputFolder
from vitreous.cli.particle_sources import (
    CheckedImages,
    ParticleFiles,
    WorkingImages,
    assign_halves,
)
from vitreous.cli.progress import RunProgress
from vitreous.cli.reconstruction_output import (
    FILES,
    Halves,
    angstrom,
    report_data,
    summary,
    write_files,
)
from vitreous.core.errors import InputError, UsageError
from vitreous.core.grid import soft_mask
from vitreous.core.params import Pose
from vitreous.core.symmetry import point_group
from vitreous.data.particles import Particles
from vitreous.metrics.fsc import fsc_resolution, fsc_true, solvent_mask
from vitreous.metrics.halves import CUTOFF
from vitreous.physics.insertion import Gridding
from vitreous.report.html import write_report
from vitreous.solvers.direct import EDGE_PX, accumulate, half_map, noise_to_signal, wiener_map

POSE_COLUMNS = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")


@dataclass(frozen=True)
class Request:
    """The options of the command; see its help. ``noise_to_signal`` is None for automatic."""

    files: ParticleFiles
    output: Path
    method: str = "direct"
    symmetry: str = "C1"
    box_size: int | None = None
    noise_to_signal: float | None = None
    mask_diameter_angstrom: float | None = None
    invert: bool = False
    ignore_ctf: bool = False
    skip_bad: bool = False
    seed: int = 0
    overwrite: bool = False
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """A finished run: one sentence, and the lines to print below it."""

    verdict: str
    text: str


@dataclass(frozen=True)
class _Plan:
    """A checked request."""

    particles: Particles
    pose: Pose
    half_set: Tensor
    box_size: int
    pixel_size_angstrom: float
    device: torch.device


def reconstruct(request: Request) -> Reconstruction:
    """Run ``vitreous reconstruct``.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    started = time.monotonic()
    plan = _plan(request)
    folder = _folder(request, plan)
    with folder, StopSignals() as stop, RunProgress("reconstructing", quiet=request.quiet) as bar:
        working = WorkingImages(plan.particles, invert=request.invert)
        images = CheckedImages(working, plan.particles.ids)

        def notify(done: int, total: int) -> None:
            bar.update(done / total)
            stop.exit_if_requested()

        sums = accumulate(
            images,
            plan.pose.rotation,
            plan.pose.shift_angstrom,
            None if request.ignore_ctf else plan.particles.optics,
            plan.particles.pixel_size_angstrom,
            plan.half_set,
            box_size=plan.box_size,
            symmetry=request.symmetry,
            device=plan.device,
            progress=notify,
        )
        if images.constant:
            say(f"warning: {images.constant} images are constant; leave them out with --skip-bad")
        halves = _maps(request, plan, sums)
        seconds = time.monotonic() - started
        verdict = _verdict(halves, len(plan.particles))
        folder.config["run"] |= {
            "verdict": verdict,
            "seconds": round(seconds, 1),
            "resolution_0143_angstrom": halves.masked[0],
            "resolution_05_angstrom": halves.masked[1],
            "images_sha256": images.digest,
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
        )
        write_report(folder.path("report.html"), page)
        folder.finish()
    return Reconstruction(verdict, summary(halves, folder, seconds))


def _plan(request: Request) -> _Plan:
    point_group(request.symmetry)
    device = use_device(request.device, request.threads)
    particles = request.files.open(need_ctf=not request.ignore_ctf)
    if particles.pose is None:
        raise InputError(
            f"{request.files.path}: poses: {', '.join(POSE_COLUMNS)} missing; refine the particles "
            "first, or use `vitreous abinit`, which needs no poses"
        )
    if request.skip_bad:
        particles = particles.without_bad(skip_bad=True)
    assert particles.pose is not None
    full = particles.box_size
    n = request.box_size or full
    if n > full:
        raise UsageError(f"--box {n}: larger than the images ({full} px); choose up to {full}")
    edge = full * particles.pixel_size_angstrom
    diameter = request.mask_diameter_angstrom
    if diameter is not None and diameter > edge:
        raise UsageError(f"--mask-diameter {diameter:g}: wider than the images ({edge:.0f} Å)")
    half_set = assign_halves(particles, request.seed)
    return _Plan(particles, particles.pose, half_set, n, edge / n, device)


def _folder(request: Request, plan: _Plan) -> OutputFolder:
    wiener = "auto" if request.noise_to_signal is None else request.noise_to_signal
    options = {
        "method": request.method,
        "sym": request.symmetry,
        "box": plan.box_size,
        "apix": plan.pixel_size_angstrom,
        "wiener": wiener,
        "mask_diameter": request.mask_diameter_angstrom,
        "invert": request.invert,
        "ignore_ctf": request.ignore_ctf,
        "skip_bad": request.skip_bad,
        "seed": request.seed,
    }
    return OutputFolder(
        request.output,
        "reconstruct",
        options,
        inputs={"particles": request.files.path},
        outputs=FILES,
        machine={"device": str(plan.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
    )


def _maps(request: Request, plan: _Plan, sums: tuple[Gridding, Gridding]) -> Halves:
    """Half maps, their FSC, and the map of all particles, regularised by it."""
    n, pixel = plan.box_size, plan.pixel_size_angstrom
    half1, half2 = half_map(sums[0]).cpu(), half_map(sums[1]).cpu()
    diameter = request.mask_diameter_angstrom
    if diameter is None:
        mask = solvent_mask(0.5 * (half1 + half2))
    else:
        mask = soft_mask(n, 3, diameter / (2 * pixel), EDGE_PX)
    curves = fsc_true(half1, half2, mask, generator(request.seed, "phases"))
    between = curves.unmasked if diameter is None else curves.masked
    ratio = noise_to_signal(between)
    if request.noise_to_signal is not None:
        ratio = torch.full_like(ratio, request.noise_to_signal)
    average = wiener_map(sums[0] + sums[1], ratio.to(plan.device)).cpu()

    def at(curve: Tensor) -> tuple[float, float]:
        both = [fsc_resolution(curve, threshold, n, pixel) for threshold in (CUTOFF, 0.5)]
        return both[0], both[1]

    return Halves(
        half1=half1,
        half2=half2,
        average=average if diameter is None else average * mask,
        curves=curves,
        masked=at(curves.corrected),
        unmasked=at(curves.unmasked),
        mask_name="a soft mask" if diameter is None else f"a sphere of {diameter:g} Å",
    )


def _verdict(halves: Halves, count: int) -> str:
    if halves.masked[0] == float("inf"):
        return (
            f"the half maps of {count:,} particles have nothing in common: check angles and their "
            "convention, contrast (--invert) and CTF"
        )
    return f"{angstrom(halves.masked[0])} at 0.143 between half maps of {count:,} particles"


def _warnings(plan: _Plan) -> tuple[str, ...]:
    if bool((plan.particles.half_set > 0).all()):
        return ()
    return (
        "The half sets were drawn at random. If the poses were refined against one map of all "
        "particles, the half maps share its noise and the resolution is too optimistic.",
    )
