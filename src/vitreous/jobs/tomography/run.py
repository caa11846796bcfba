"""The run behind ``vitreous tomo reconstruct``: read, choose strengths, solve, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.random import generator
from vitreous.data.maps import shell_frequencies, write_fsc_csv
from vitreous.data.tilts import TiltSeries, read_tilt_series
from vitreous.io.mrc import write_mrc
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder, plain
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.progress import RunProgress, duration
from vitreous.jobs.run.signals import StopSignals
from vitreous.maps.fsc import fsc
from vitreous.maps.half_maps import resolutions
from vitreous.methods.tomography.back_projection import sirt, weighted_back_projection
from vitreous.methods.tomography.inpainting import (
    choose_inpainting_strength,
    choose_two_strengths,
    inpaint,
)
from vitreous.methods.tomography.total_variation import (
    WINDOW,
    Scan,
    choose_strength,
    total_variation,
)
from vitreous.optim.loop import Stats
from vitreous.physics.tomography.projector import expand_slices
from vitreous.report.html import ReportData, Resolution, angstrom, write_report

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "history.jsonl", "report.html")
_SLICES = 32  # of the volume that strengths are chosen on
_SEARCHES = 6  # strengths that are usually tried
_PRIOR = (
    "Both half maps obey the same prior, and what it supplies they have in common: the FSC between "
    "them is too high. --method wbp makes half maps without one.",
)


@dataclass(frozen=True)
class TomoRequest:
    """The options of the command; see its help. None for strengths means automatic."""

    tilts: Path
    angles: Path
    output: Path
    mask: Path | None = None
    thickness: int | None = None
    method: str = "tv"
    strength: float | None = None
    inpainting: float | None = None
    iterations: int = 60
    apix: float | None = None
    seed: int = 0
    overwrite: bool = False
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Tomogram:
    """A finished run: one sentence, and the lines to print below it."""

    verdict: str
    text: str


@dataclass
class _Run:
    """What the steps of one run share."""

    request: TomoRequest
    scan: Scan
    depth: int
    advance: Callable[[float], None]
    record: Callable[[dict[str, object]], None]
    strengths: dict[str, float] = field(default_factory=dict)

    def choose(self) -> None:
        """Set the strengths of total variation."""
        request, part = self.request, self.scan.busiest(_SLICES)
        draw = generator(request.seed, "tomo validation")
        tried = 0

        def notify(strength: float, score: float) -> None:
            nonlocal tried
            tried += 1
            self.record({"stage": "strength", "strength": strength, "score": score})
            self.advance(min(tried / _SEARCHES, 1.0))

        if request.method == "two-step" and request.inpainting is None:
            self.strengths["inpainting"] = choose_inpainting_strength(part, draw)
        elif request.method == "two-step":
            self.strengths["inpainting"] = float(request.inpainting or 0.0)
        if request.strength is not None:
            self.strengths["strength"] = request.strength
        elif request.method == "two-step":
            mu = self.strengths["inpainting"]
            choice = choose_two_strengths(part, self.depth, mu, draw, notify)
            self.strengths["strength"] = choice.strength
        else:
            halves = part.halves(draw)
            choice = choose_strength(halves, self.depth, notify=notify)
            self.strengths["strength"] = choice.strength

    def solve(self, scan: Scan, half: int | None) -> Tensor:
        """A map ``(z, y, x)`` of some of the measurements."""
        request, iterations = self.request, self.request.iterations

        def tell(step: int, stats: Stats) -> None:
            which = {} if half is None else {"half": half}
            self.record({"step": step, **which, **stats})
            self.advance((step + 1) / iterations)

        if request.method == "wbp":
            return weighted_back_projection(scan, self.depth)
        if request.method == "sirt":
            coefficients = sirt(scan, self.depth, iterations=iterations, callbacks=[tell])
            return expand_slices(coefficients, WINDOW)
        if request.method == "two-step":
            scan = inpaint(scan, self.strengths["inpainting"], lambda _: self.advance(0.0))
        result = total_variation(
            scan, self.depth, self.strengths["strength"], iterations=iterations, callbacks=[tell]
        )
        return expand_slices(result.volume, WINDOW)


def reconstruct_tilts(request: TomoRequest) -> Tomogram:
    """Run ``vitreous tomo reconstruct``.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    started = time.monotonic()
    place = use_device(request.device, request.threads)
    series = read_tilt_series(
        request.tilts, request.angles, request.mask, pixel_size_angstrom=request.apix
    )
    scan = Scan(series.images.to(place), series.tilts_degrees, series.scanned.to(place)).compact()
    if len(scan.images) < 2:
        raise InputError(f"{request.tilts}: one scanned image is no tilt series; give more")
    depth = request.thickness or max(1, scan.images.shape[2] // 2)
    folder = _folder(request, depth, series, place)
    with (
        folder,
        StopSignals() as stop,
        RunProgress("reconstructing", quiet=request.quiet) as bar,
        HistoryFile(folder.path("history.jsonl"), keep=False) as history,
    ):
        stages = 4 if request.method in ("tv", "two-step") else 3
        stage = 0

        def advance(fraction: float) -> None:
            bar.update((stage + fraction) / stages, {"stage": _stage(stage - (stages - 3))})
            stop.exit_if_requested()

        run = _Run(request, scan, depth, advance, history.add)
        if stages == 4:
            run.choose()
            stage += 1
        halves = scan.halves(generator(request.seed, "tomo halves"))
        maps = {}
        for half, part in enumerate((*halves, scan), 1):
            maps[half] = run.solve(part, half if half < 3 else None).cpu()
            stage += 1
            advance(0.0)
        names = ("half1.mrc", "half2.mrc", "map.mrc")
        for name, volume in zip(names, maps.values(), strict=True):
            write_mrc(folder.path(name), volume.numpy(), series.pixel_size_angstrom)
        done = _finish(request, folder, run, maps, series, history.rows, started)
    return done


def _stage(maps_done: int) -> str:
    return "strength" if maps_done < 0 else f"map {min(maps_done + 1, 3)} of 3"


def _finish(
    request: TomoRequest,
    folder: OutputFolder,
    run: _Run,
    maps: dict[int, Tensor],
    series: TiltSeries,
    rows: list[dict[str, object]],
    started: float,
) -> Tomogram:
    """FSC, report and verdict."""
    curve, pixel = fsc(maps[1], maps[2]), series.pixel_size_angstrom
    n = max(maps[3].shape)
    at = resolutions(curve, n, pixel)
    write_fsc_csv(folder.path("fsc.csv"), {"unmasked": curve}, n, pixel)
    seconds = time.monotonic() - started
    dose = f"{100 * series.dose:.3g} %"
    if math.isfinite(at[0]):
        verdict = (
            f"{angstrom(at[0])} at 0.143 between half maps of {len(series.images)} tilts, "
            f"{dose} of their pixels scanned"
        )
    else:
        verdict = "the half maps have nothing in common: check angles, alignment and mask"
    folder.config["run"] |= {
        "verdict": verdict,
        "seconds": round(seconds, 1),
        "resolution_0143_angstrom": at[0],
        "resolution_05_angstrom": at[1],
        **run.strengths,
    }
    page = ReportData(
        title=f"{request.tilts.name}: {request.method} reconstruction",
        subtitle=f"vitreous tomo reconstruct, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC",
        verdict=verdict[0].upper() + verdict[1:] + ".",
        warnings=_PRIOR if run.strengths else (),
        pixel_size_angstrom=pixel,
        key_numbers={
            "resolution at 0.143": angstrom(at[0]),
            "resolution at 0.5": angstrom(at[1]),
            "tilts": f"{len(series.images)}",
            "scanned": dose,
            **{name: f"{value:.3g}" for name, value in run.strengths.items()},
            "time": duration(seconds),
        },
        settings={k: str(plain(v)) for k, v in folder.config["options"].items()},
        volume=maps[3].numpy(),
        fsc_curves={"unmasked": (shell_frequencies(n, pixel).numpy(), curve.numpy())},
        resolutions=[Resolution("half maps", at[0], at[1])],
        history=[row for row in rows if "step" in row],
    )
    write_report(folder.path("report.html"), page)
    folder.finish()
    chosen = ", ".join(f"{name} {value:.3g}" for name, value in run.strengths.items())
    lines = (
        f"resolution   {angstrom(at[0])} at 0.143, {angstrom(at[1])} at 0.5 between the halves",
        f"time         {duration(seconds)}" + (f" ({chosen})" if chosen else ""),
        f"map          {folder.root / 'map.mrc'} (halves: half1.mrc, half2.mrc)",
        f"report       {folder.root / 'report.html'}",
    )
    return Tomogram(verdict, "\n".join(lines))


def _folder(
    request: TomoRequest, depth: int, series: TiltSeries, place: torch.device
) -> OutputFolder:
    used = {"tv": ("strength",), "two-step": ("strength", "inpainting")}.get(request.method, ())
    given = {"strength": request.strength, "inpainting": request.inpainting}
    options = {
        "method": request.method,
        "thickness": depth,
        "apix": series.pixel_size_angstrom,
        **{name: "auto" if given[name] is None else given[name] for name in used},
        "iterations": None if request.method == "wbp" else request.iterations,
        "seed": request.seed,
    }
    inputs = {"tilts": request.tilts, "angles": request.angles}
    if request.mask is not None:
        inputs["mask"] = request.mask
    return OutputFolder(
        request.output,
        "tomo reconstruct",
        options,
        inputs=inputs,
        outputs=FILES,
        machine={"device": str(place), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
    )
