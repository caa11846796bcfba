"""Postprocess half maps: read, compute, write maps, tables and report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.random import generator
from vitreous.core.resolution import angstrom
from vitreous.core.symmetry import point_group
from vitreous.data.maps import read_mask, read_pair, write_fsc_csv
from vitreous.io.atomic import atomic_write_text
from vitreous.jobs.postprocess.options import PostprocessOptions
from vitreous.jobs.reconstruct.map_plots import EMPTY, sharpening_plots
from vitreous.jobs.reconstruct.output import (
    report_data,
    sharpened_first,
    with_warnings,
    write_maps,
)
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import JobResult, rows_of_text
from vitreous.maps.half_map_pair import curves_by_name
from vitreous.maps.postprocess import Postprocessed, local_range, postprocess
from vitreous.maps.sharpening import Guinier
from vitreous.report.figures import central_slices, enlarge
from vitreous.report.html import Picture, ReportData, picture, write_report

MAPS = ("mask", "sharpened", "sharpened_masked", "local_resolution", "local_filtered")
FILES = (*(f"{name}.mrc" for name in MAPS), "fsc.csv", "guinier.csv", "report.html")


@dataclass(frozen=True)
class PostprocessResult(JobResult):
    """Maps and numbers of a pair of half maps."""

    maps: Postprocessed  # what was computed


def postprocess_files(options: PostprocessOptions) -> PostprocessResult:
    """Mask, sharpen and measure two half maps, and write maps, tables and report.

    Raises:
        UsageError: an unknown point group, or a folder that holds something else.
        InputError: maps that cannot be read or compared.
        ResourceError: the disk is full.
    """
    started = time.monotonic()
    use_device("cpu", options.threads)
    symmetry = point_group(options.symmetry).name
    half1, half2, pixel = read_pair(
        options.half1, options.half2, options.pixel_size_angstrom, different=True
    )
    mask = None if options.mask is None else read_mask(options.mask, half1, pixel)
    b_factor = options.b_factor_angstrom2
    resolved = {"symmetry": symmetry}
    with OutputFolder.of("postprocess", options, FILES, resolved=resolved) as folder:
        done = postprocess(
            half1,
            half2,
            pixel_size_angstrom=pixel,
            generator=generator(options.seed, "phases"),
            mask=mask,
            symmetry=symmetry,
            b_factor_angstrom2=None if b_factor == "auto" else b_factor,
            local=options.local_resolution,
        )
        seconds = time.monotonic() - started
        _write(folder, done, pixel)
        folder.config["run"] |= {
            "verdict": done.verdict,
            "warnings": list(done.warnings),
            "seconds": round(seconds, 1),
            "resolution_0143_angstrom": done.masked[0],
            "resolution_05_angstrom": done.masked[1],
            "unmasked_0143_angstrom": done.unmasked[0],
            "b_factor_angstrom2": done.sharpened.b_factor_angstrom2,
        }
        title = f"{options.half1.name}, {options.half2.name}: postprocessing"
        page = _page(title, done, folder, pixel, seconds)
        write_report(folder.path("report.html"), page)
        folder.finish()
    text = _summary(done, folder.root, seconds)
    return PostprocessResult(None, done.verdict, text, folder.root, done)


def _write(folder: OutputFolder, done: Postprocessed, pixel: float) -> None:
    sharpened, masked = done.sharpened.map, done.sharpened.map * done.mask
    maps = (done.mask, sharpened, masked, done.local_resolution, done.locally_filtered)
    names = (f"{name}.mrc" for name in MAPS)
    write_maps(folder, dict(zip(names, maps, strict=True)), pixel)
    curves = curves_by_name(done)
    write_fsc_csv(folder.path("fsc.csv"), curves, len(done.average), pixel)
    atomic_write_text(folder.path("guinier.csv"), guinier_csv(done.sharpened.guinier))


def guinier_csv(fit: Guinier) -> str:
    """Return the Guinier plot as text: shell, 1/d^2, ln of the weighted amplitude, whether fitted.

    >>> some = torch.tensor([0.0, 0.01])
    >>> fit = Guinier(some, some, some > 0, -50.0, 5.0, 0.0, "")
    >>> guinier_csv(fit).splitlines()[-1]
    '1,0.01000000,0.010000,1'
    """
    rows = ["shell,inv_d2_inv_angstrom2,ln_amplitude,fitted"]
    columns = (fit.inv_d2.tolist(), fit.log_amplitude.tolist(), fit.fitted.tolist())
    for shell, (x, y, fitted) in enumerate(zip(*columns, strict=True)):
        value = f"{y:.6f}" if y > EMPTY else "nan"
        rows.append(f"{shell},{x:.8f},{value},{int(fitted)}")
    return "\n".join(rows) + "\n"


def _page(
    title: str, done: Postprocessed, folder: OutputFolder, pixel: float, seconds: float
) -> ReportData:
    cards = {"B factor": f"{done.sharpened.b_factor_angstrom2:.0f} Å²"}
    plots, pictures = sharpening_plots(done), []
    if done.local_resolution is not None:
        low, _, high = local_range(done.local_resolution, done.mask)
        cards["local resolution"] = f"{low:.1f} to {high:.1f} Å"
        pictures = _resolution_pictures(done.local_resolution, low, high)
    page = report_data(
        folder,
        title,
        done.verdict,
        replace(done, average=done.sharpened.map * done.mask, mask_name="the mask"),
        half_set=None,
        pixel_size_angstrom=pixel,
        symmetry=folder.config["options"]["symmetry"],
        seconds=seconds,
        warnings=done.warnings,
        more_numbers=cards,
    )
    heading = "Sharpening and local resolution" if pictures else "Sharpening"
    surfaces = sharpened_first(done, page.surfaces[1:])
    return replace(
        page, surfaces=surfaces, more_title=heading, more_plots=plots, more_pictures=pictures
    )


def _resolution_pictures(resolution: Tensor, low: float, high: float) -> list[Picture]:
    """Return central slices, fine resolution white; outside the mask black."""
    worst = high + 0.15 * max(high - low, 0.1)
    shown = torch.where(resolution > 0, resolution.clamp(max=worst), worst).numpy()
    return [
        picture(
            enlarge(-plane, 384),
            (-worst, -low),
            f"Local resolution in the {name} plane",
            f"local resolution, {name}: white {low:.1f} Å or finer, dark {high:.1f} Å or coarser",
        )
        for name, plane in central_slices(shown).items()
    ]


def _summary(done: Postprocessed, folder: Path, seconds: float) -> str:
    rows = {
        "resolution": f"{angstrom(done.masked[0])} at 0.143, {angstrom(done.masked[1])} at 0.5 "
        f"(masked, corrected); {angstrom(done.unmasked[0])} and {angstrom(done.unmasked[1])} "
        "without mask",
        "B factor": f"{done.sharpened.b_factor_angstrom2:.0f} Å²",
    }
    if done.local_resolution is not None:
        low, middle, high = local_range(done.local_resolution, done.mask)
        rows["local"] = f"{low:.1f} to {high:.1f} Å, median {middle:.1f} Å"
    rows |= {
        "time": duration(seconds),
        "map": f"{folder / 'sharpened.mrc'}",
        "report": f"{folder / 'report.html'}",
    }
    return with_warnings(done.warnings, rows_of_text(rows))
