"""Job of ``vitreous tomo reconstruct``: read, choose strengths, solve, save."""

from dataclasses import dataclass

from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.resolution import angstrom
from vitreous.data.maps import write_fsc_csv
from vitreous.data.tilts import TiltSeries, read_tilt_series
from vitreous.jobs.reconstruct.output import (
    NO_RESOLUTION,
    finish,
    resolution_cards,
    shown_curves,
    summary_lines,
    write_maps,
)
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import JobResult, page_head
from vitreous.jobs.tomography.options import TomoReconstructOptions
from vitreous.maps.fsc import CUTOFF, fsc
from vitreous.maps.fsc_warnings import agreement_without
from vitreous.maps.half_maps import FEWEST_SHELLS, resolutions
from vitreous.methods.tomography.tomogram import Tomogram, TomogramConfig, TomogramMaps
from vitreous.methods.tomography.total_variation import Scan
from vitreous.report.html import ReportData, Resolution

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "report.html")
_FEWEST_ROWS = 8  # images of fewer rows keep what is constant over them
_PRIOR = (
    "Both half maps obey the same prior, and what it supplies they have in common: the FSC between "
    "them is too high. Method wbp makes half maps without one.",
)


@dataclass(frozen=True)
class TomoReconstructResult(JobResult):
    """Result of a reconstruction."""

    # between the half maps
    resolution_0143_angstrom: float
    resolution_05_angstrom: float
    strengths: dict[str, float]  # "strength" and "inpainting", where the method has them


def reconstruct_tilts(options: TomoReconstructOptions) -> TomoReconstructResult:
    """Reconstruct a volume from a tilt series, of which pixels may be missing.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    device = use_device(options.device, options.threads)
    pixel = options.pixel_size_angstrom
    files = options.tilts, options.angles, options.mask
    series = read_tilt_series(*files, pixel_size_angstrom=pixel)
    scanned = series.scanned.to(device)
    scan = Scan(series.images.to(device), series.tilts_degrees, scanned).compact()
    if len(scan.images) < 2:
        raise InputError(f"{options.tilts}: one scanned image is no tilt series; give more")
    depth = options.thickness or max(1, scan.images.shape[2] // 2)
    job = Job(
        "tomo reconstruct",
        options,
        outputs=FILES,
        resolved={"thickness": depth, "pixel_size_angstrom": series.pixel_size_angstrom},
        machine={"device": str(device)},
    )
    with job:
        solver = Tomogram(scan, depth, _config(options), report_progress=job.report_progress)
        maps = job.run(
            solver, "maps", label="reconstructing", columns=solver.label, rows=None, numbered=False
        )
        return _write(options, job, maps, series)


def _config(options: TomoReconstructOptions) -> TomogramConfig:
    return TomogramConfig(
        method=options.method,
        strength=None if options.strength == "auto" else options.strength,
        inpainting=None if options.inpainting == "auto" else options.inpainting,
        iterations=options.iterations or (30 if options.method == "sirt" else 60),
        seed=options.seed,
    )


def _without_slab(volume: Tensor) -> Tensor:
    """Return a volume less what is constant along the tilt axis: a slab of the images' mean."""
    return volume - volume.mean(1, keepdim=True)


def _write(
    options: TomoReconstructOptions, job: Job, maps: TomogramMaps, series: TiltSeries
) -> TomoReconstructResult:
    """Write maps, FSC and report."""
    half1, half2, average = (one.cpu() for one in (maps.half1, maps.half2, maps.average))
    pixel, n = series.pixel_size_angstrom, max(average.shape)
    volumes = {"half1.mrc": half1, "half2.mrc": half2, "map.mrc": average}
    write_maps(job.folder, volumes, pixel)
    curves = {"unmasked": fsc(half1, half2)}
    write_fsc_csv(job.path("fsc.csv"), curves, n, pixel)
    resolution = resolutions(curves["unmasked"], n, pixel)
    seconds, dose = job.seconds(), f"{100 * series.dose:.3g} %"
    solved = n * pixel / resolution[0] >= FEWEST_SHELLS and (
        average.shape[1] < _FEWEST_ROWS
        or agreement_without(_without_slab, half1, half2, resolution[0], pixel) >= CUTOFF
    )
    verdict = (
        "the half maps have nothing in common but a slab of the images' mean: check angles, "
        "alignment and mask"
    )
    if solved:
        verdict = (
            f"{angstrom(resolution[0])} at 0.143 between half maps of {len(series.images)} tilts, "
            f"{dose} of their pixels scanned"
        )
    title = f"{options.tilts.name}: {options.method} reconstruction"
    page = ReportData(
        **page_head(job.folder, title, verdict, _PRIOR if maps.strengths else ()),
        pixel_size_angstrom=pixel,
        volume=average.numpy(),
        key_numbers={
            **(resolution_cards(resolution) if solved else {}),
            "tilts": f"{len(series.images)}",
            "scanned": dose,
            **{name: f"{value:.3g}" for name, value in maps.strengths.items()},
            "time": duration(seconds),
        },
        fsc_curves=shown_curves(curves, n, pixel),
        resolutions=[Resolution("half maps", *resolution)],
    )
    facts = {"verdict": verdict, "solved": solved, "seconds": round(seconds, 1)}
    finish(job, page, resolution, {**facts, **maps.strengths})
    at_0143, at_05 = map(angstrom, resolution)
    text = summary_lines(
        f"{at_0143} at 0.143, {at_05} at 0.5 between the halves" if solved else NO_RESOLUTION,
        job.folder,
        duration(seconds),
        {name: f"{value:.3g}" for name, value in maps.strengths.items()},
    )
    folder = options.output
    return TomoReconstructResult(solved, verdict, text, folder, *resolution, maps.strengths)
