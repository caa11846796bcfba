"""Files that every command that reconstructs writes from two half maps: maps, tables, report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitreous.data.maps import shell_frequencies, write_fsc_csv
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.run.folder import OutputFolder, plain
from vitreous.jobs.run.messages import reworded
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import subtitle
from vitreous.maps.half_map_pair import Halves, curves_by_name
from vitreous.report.html import ReportData, Resolution, angstrom

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "particles.star", "fsc.csv", "report.html")


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
    write_maps(folder, (halves.half1, halves.half2, halves.average), pixel_size_angstrom)
    document = particles.to_star_document(
        relative_to=folder.root, rlnRandomSubset=half_set.cpu().numpy(), **columns
    )
    write_star(folder.path("particles.star"), document)
    curves = curves_by_name(halves)
    write_fsc_csv(folder.path("fsc.csv"), curves, len(halves.half1), pixel_size_angstrom)


def write_maps(folder: OutputFolder, maps: Sequence[Tensor], pixel_size_angstrom: float) -> None:
    """Write the maps of half 1, of half 2 and of all data, ``(z, y, x)``."""
    for name, volume in zip(("half1.mrc", "half2.mrc", "map.mrc"), maps, strict=True):
        write_mrc(folder.path(name), volume.cpu().float().numpy(), pixel_size_angstrom)


def report_data(
    command: str,
    title: str,
    verdict: str,
    halves: Halves,
    *,
    half_set: Tensor | None,
    pixel_size_angstrom: float,
    symmetry: str,
    seconds: float,
    options: Mapping[str, object],
    warnings: tuple[str, ...] = (),
    more_numbers: Mapping[str, str] | None = None,
) -> ReportData:
    """Return the report's page, without what only one command shows.

    The verdict is one sentence without full stop; ``half_set`` is None where only maps are known.
    ``warnings`` are shown prominently, ``more_numbers`` as cards after the resolutions.
    """
    counts = {}
    if half_set is not None:
        sizes = [int((half_set == half).sum()) for half in (1, 2)]
        counts = {"particles per half": f"{sizes[0]:,} and {sizes[1]:,}"}
    page = map_page(command, title, verdict, halves.average, pixel_size_angstrom, options)
    return replace(
        page,
        warnings=tuple(map(reworded, warnings)),
        key_numbers={
            **resolution_cards(halves.headline, 2 * pixel_size_angstrom),
            **(more_numbers or {}),
            **counts,
            "symmetry": symmetry,
            "time": duration(seconds),
        },
        fsc_curves=shown_curves(curves_by_name(halves), len(halves.half1), pixel_size_angstrom),
        resolutions=_resolution_rows(halves),
    )


def map_page(
    command: str,
    title: str,
    verdict: str,
    volume: Tensor,
    pixel_size_angstrom: float,
    options: Mapping[str, object],
) -> ReportData:
    """Return a page with title, verdict, map and options."""
    return ReportData(
        title=title,
        subtitle=subtitle(command),
        verdict=reworded(verdict[0].upper() + verdict[1:] + "."),
        pixel_size_angstrom=pixel_size_angstrom,
        settings={name: str(plain(value)) for name, value in options.items()},
        volume=volume.cpu().numpy(),
    )


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
    at_0143, at_05 = (
        angstrom(one) + (" (= limit of this box)" if one <= 1.001 * limit else "")
        for one in resolution
    )
    return {"resolution at 0.143": at_0143, "resolution at 0.5": at_05}


def resolution_numbers(resolution: tuple[float, float]) -> dict[str, float]:
    """Return the resolutions at 0.143 and 0.5 under the names of ``config.toml``."""
    at_0143, at_05 = resolution
    return {"resolution_0143_angstrom": at_0143, "resolution_05_angstrom": at_05}


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


def summary(halves: Halves, folder: OutputFolder, seconds: float, remark: str = "") -> str:
    """Return the lines to print below the verdict."""
    without = (
        "without mask" if halves.confirmed is None else "between the half maps, which share it"
    )
    kind = "masked, corrected" if halves.confirmed is None else "confirmed without the prior"
    resolution = (
        f"{angstrom(halves.headline[0])} at 0.143, {angstrom(halves.headline[1])} at 0.5 ({kind}); "
        f"{angstrom(halves.unmasked[0])} and {angstrom(halves.unmasked[1])} {without}{remark}"
    )
    return summary_lines(resolution, folder, duration(seconds))


def summary_lines(resolution: str, folder: OutputFolder, time: str) -> str:
    """Return the lines that tell resolution, time, and where map and report are."""
    lines = (
        f"resolution   {resolution}",
        f"time         {time}",
        f"map          {folder.root / 'map.mrc'} (halves: half1.mrc, half2.mrc)",
        f"report       {folder.root / 'report.html'}",
    )
    return "\n".join(lines)
