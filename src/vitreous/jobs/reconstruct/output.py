"""Files that every command that reconstructs writes from two half maps: maps, tables, report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.core.resolution import angstrom
from vitreous.data.maps import shell_frequencies, write_fsc_csv
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import page_head, rows_of_text
from vitreous.maps.half_map_pair import Halves, curves_by_name
from vitreous.maps.postprocess import Postprocessed
from vitreous.report.html import ReportData, Resolution, write_report
from vitreous.report.surface import Surface

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "particles.star", "fsc.csv", "report.html")
NO_RESOLUTION = "none, as the map is not solved; fsc.csv has the curves between the half maps"


def write_files(
    folder: OutputFolder,
    halves: Halves,
    particles: Particles,
    half_set: Tensor,
    pixel_size_angstrom: float,
    **columns: Any,
) -> None:
    """Write the maps, ``particles.star`` (with further columns, if given) and ``fsc.csv``.

    Raises:
        ResourceError: the disk is full.
    """
    maps = {"half1.mrc": halves.half1, "half2.mrc": halves.half2, "map.mrc": halves.average}
    write_maps(folder, maps, pixel_size_angstrom)
    document = particles.to_star_document(
        relative_to=folder.root, rlnRandomSubset=half_set.cpu().numpy(), **columns
    )
    write_star(folder.path("particles.star"), document)
    curves = curves_by_name(halves)
    write_fsc_csv(folder.path("fsc.csv"), curves, len(halves.half1), pixel_size_angstrom)


def write_maps(
    folder: OutputFolder, maps: Mapping[str, Tensor | None], pixel_size_angstrom: float
) -> None:
    """Write maps ``(z, y, x)`` by file name; those that are None are left out.

    Raises:
        DivergedError: a map is not finite; nothing is written.
    """
    for name, volume in maps.items():
        if volume is not None and not bool(volume.isfinite().all()):
            raise DivergedError(
                f"{name}: is not finite: images hold values beyond single precision; find them "
                "with `vitreous check` and leave them out"
            )
    for name, volume in maps.items():
        if volume is not None:
            write_mrc(folder.path(name), volume.cpu().float().numpy(), pixel_size_angstrom)


def report_data(
    folder: OutputFolder,
    title: str,
    verdict: str,
    halves: Halves,
    *,
    half_set: Tensor | None,
    pixel_size_angstrom: float,
    symmetry: str,
    seconds: float,
    solved: bool = True,
    warnings: tuple[str, ...] = (),
    more_numbers: Mapping[str, str] | None = None,
) -> ReportData:
    """Return the report's page, without what only one command shows.

    The verdict is one sentence without full stop; ``half_set`` is None where only maps are known.
    Maps that are not ``solved`` have no resolution. ``warnings`` are shown prominently,
    ``more_numbers`` as cards after the resolutions.
    """
    counts = {}
    if half_set is not None:
        sizes = [int((half_set == half).sum()) for half in (1, 2)]
        counts = {"particles per half": f"{sizes[0]:,} and {sizes[1]:,}"}
    limit = 2 * pixel_size_angstrom
    return ReportData(
        **page_head(folder, title, verdict, warnings),
        pixel_size_angstrom=pixel_size_angstrom,
        volume=halves.average.cpu().numpy(),
        surfaces=map_surfaces(halves),
        key_numbers={
            **(resolution_cards(halves.headline, limit) if solved else {}),
            **(more_numbers or {}),
            **counts,
            "symmetry": symmetry,
            "time": duration(seconds),
        },
        fsc_curves=shown_curves(curves_by_name(halves), len(halves.half1), pixel_size_angstrom),
        resolutions=_resolution_rows(halves) if solved else (),
    )


def map_surfaces(halves: Halves, **more: Tensor | None) -> list[Surface]:
    """Return the map, which is drawn at first, the half maps, and those of ``more`` not None."""
    others = {"half map 1": halves.half1, "half map 2": halves.half2} | more
    return [
        Surface(name, volume.cpu().numpy(), shown=name == "map")
        for name, volume in ({"map": halves.average} | others).items()
        if volume is not None
    ]


def sharpened_first(post: Postprocessed, others: Sequence[Surface]) -> list[Surface]:
    """Return surfaces of which only the sharpened map, in colours, is drawn at first."""
    local = post.local_resolution
    volume = (post.sharpened.map * post.mask).cpu().numpy()
    sharp = Surface("sharpened map", volume, None if local is None else local.cpu().numpy())
    return [sharp, *(replace(one, shown=False) for one in others)]


def finish(
    job: Job, page: ReportData, resolution: tuple[float, float], facts: Mapping[str, Any]
) -> None:
    """Write the report with the history of the run, and finish the job.

    ``resolution`` at 0.143 and 0.5, Å, and ``facts`` go to the table ``[run]`` of ``config.toml``.
    """
    write_report(job.path("report.html"), replace(page, history=job.history.rows))
    at_0143, at_05 = resolution
    shown = {"resolution_0143_angstrom": at_0143, "resolution_05_angstrom": at_05}
    job.finish({**facts, **shown})


def shown_curves(
    curves: Mapping[str, Tensor], box_size: int, pixel_size_angstrom: float
) -> dict[str, tuple[Any, Any]]:
    """Return FSC curves by their titles, each with its frequencies in 1/Å."""
    frequency = shell_frequencies(box_size, pixel_size_angstrom).numpy()
    return {
        name.replace("_", " "): (frequency, curve.cpu().numpy()) for name, curve in curves.items()
    }


def resolution_cards(resolution: tuple[float, float], limit: float = 0.0) -> dict[str, str]:
    """Return the cards of the resolutions at 0.143 and 0.5, Å; ``limit`` is the box's, Å."""
    at_0143, at_05 = (angstrom(one) for one in resolution)
    return {"resolution at 0.143": at_0143, "resolution at 0.5": at_05}


def _resolution_rows(halves: Halves) -> list[Resolution]:
    if halves.confirmed_at is not None:
        return [
            Resolution("confirmed without the prior", *halves.confirmed_at),
            Resolution("between the half maps, which share it", *halves.unmasked),
        ]
    return [
        Resolution(f"within {halves.mask_name}, corrected", *halves.masked),
        Resolution("without mask", *halves.unmasked),
    ]


def summary(
    halves: Halves,
    folder: OutputFolder,
    seconds: float,
    *,
    solved: bool = True,
    more: Mapping[str, str] | None = None,
) -> str:
    """Return the lines to print below the verdict, with ``more`` named values at their end."""
    without = (
        "without mask" if halves.confirmed is None else "between the half maps, which share it"
    )
    kind = "masked, corrected" if halves.confirmed is None else "confirmed without the prior"
    resolution = (
        f"{angstrom(halves.headline[0])} at 0.143, {angstrom(halves.headline[1])} at 0.5 ({kind}); "
        f"{angstrom(halves.unmasked[0])} and {angstrom(halves.unmasked[1])} {without}"
    )
    return summary_lines(
        resolution if solved else NO_RESOLUTION, folder, duration(seconds), more or {}
    )


def with_warnings(warnings: Sequence[str], text: str) -> str:
    """Return lines for the terminal with warnings above them."""
    return "\n".join([*(f"warning: {warning}" for warning in warnings), text])


def summary_lines(resolution: str, folder: OutputFolder, time: str, more: Mapping[str, str]) -> str:
    """Return the lines that tell resolution, time, where map and report are, and ``more``."""
    return rows_of_text(
        {
            "resolution": resolution,
            "time": time,
            "map": f"{folder.root / 'map.mrc'} (halves: half1.mrc, half2.mrc)",
            "report": f"{folder.root / 'report.html'}",
            **more,
        }
    )
