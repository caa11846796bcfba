"""What every command that reconstructs writes from two half maps: maps, tables, report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from vitreous.data.maps import shell_frequencies, write_fsc_csv
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.run.folder import OutputFolder, plain
from vitreous.jobs.run.progress import duration
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
    maps = {"half1.mrc": halves.half1, "half2.mrc": halves.half2, "map.mrc": halves.average}
    for name, volume in maps.items():
        write_mrc(folder.path(name), volume.cpu().float().numpy(), pixel_size_angstrom)
    document = particles.to_star_document(
        relative_to=folder.root, rlnRandomSubset=half_set.cpu().numpy(), **columns
    )
    write_star(folder.path("particles.star"), document)
    curves = curves_by_name(halves)
    write_fsc_csv(folder.path("fsc.csv"), curves, len(halves.half1), pixel_size_angstrom)


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
    """The report's page, without what only one command has to show.

    Args:
        command: name of the subcommand.
        title: of the page.
        verdict: one sentence without full stop.
        halves: what came out.
        half_set: long ``(particles,)`` of 1 and 2; None where only maps are known.
        pixel_size_angstrom: of the maps, Å.
        symmetry: point group.
        seconds: wall time.
        options: those of the run.
        warnings: sentences to be shown prominently.
        more_numbers: further cards, after the resolutions.
    """
    frequency = shell_frequencies(len(halves.half1), pixel_size_angstrom).numpy()
    counts = {}
    if half_set is not None:
        sizes = [int((half_set == half).sum()) for half in (1, 2)]
        counts = {"particles per half": f"{sizes[0]:,} and {sizes[1]:,}"}
    curves = curves_by_name(halves)
    resolutions = [
        Resolution(f"within {halves.mask_name}, corrected", *halves.masked),
        Resolution("without mask", *halves.unmasked),
    ]
    if halves.confirmed_at is not None:
        resolutions = [
            Resolution("confirmed without the prior", *halves.confirmed_at),
            Resolution("between the half maps, which share it", *halves.unmasked),
        ]
    return ReportData(
        title=title,
        subtitle=f"vitreous {command}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC",
        verdict=verdict[0].upper() + verdict[1:] + ".",
        warnings=warnings,
        pixel_size_angstrom=pixel_size_angstrom,
        key_numbers={
            "resolution at 0.143": angstrom(halves.headline[0]),
            "resolution at 0.5": angstrom(halves.headline[1]),
            **(more_numbers or {}),
            **counts,
            "symmetry": symmetry,
            "time": duration(seconds),
        },
        settings={name: str(plain(value)) for name, value in options.items()},
        volume=halves.average.cpu().numpy(),
        fsc_curves={
            name.replace("_", " "): (frequency, curve.cpu().numpy())
            for name, curve in curves.items()
        },
        resolutions=resolutions,
    )


def summary(halves: Halves, folder: OutputFolder, seconds: float, remark: str = "") -> str:
    """The lines for the person who waited, to follow the verdict."""
    without = (
        "without mask" if halves.confirmed is None else "between the half maps, which share it"
    )
    kind = "masked, corrected" if halves.confirmed is None else "confirmed without the prior"
    lines = (
        f"resolution   {angstrom(halves.headline[0])} at 0.143, {angstrom(halves.headline[1])} at "
        f"0.5 ({kind}); {angstrom(halves.unmasked[0])} and {angstrom(halves.unmasked[1])} "
        f"{without}{remark}",
        f"time         {duration(seconds)}",
        f"map          {folder.root / 'map.mrc'} (halves: half1.mrc, half2.mrc)",
        f"report       {folder.root / 'report.html'}",
    )
    return "\n".join(lines)
