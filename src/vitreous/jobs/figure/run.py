"""The work of ``vitreous figure``: every figure that the results of a run have the data for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_file, atomic_write_text
from vitreous.io.csv_columns import csv_text
from vitreous.jobs.figure.chimerax import maps_script
from vitreous.jobs.figure.drawings import (
    Drawing,
    classes_figure,
    fsc_figure,
    guinier_figure,
    local_figure,
    slices_figure,
    surface_figure,
    surface_level,
    views_figure,
)
from vitreous.jobs.figure.options import FigureOptions
from vitreous.jobs.figure.results import CLASSIFY2D, HETERO, MissingDataError, RunResults
from vitreous.jobs.run.class_tables import class_name
from vitreous.jobs.run.folder import CONFIG, OutputFolder
from vitreous.jobs.run.summary import JobResult, rows_of_text
from vitreous.report.print_figures import SUFFIXES, printed
from vitreous.report.surface import colour_limits, default_level

SCRIPT = "chimerax.cxc"
DRAWINGS: dict[str, Callable[[RunResults, float | None], Drawing]] = {
    "fsc": fsc_figure,
    "views": views_figure,
    "surface": surface_figure,
    "slices": slices_figure,
    "local_resolution": local_figure,
    "guinier": guinier_figure,
    "classes": classes_figure,
}
OF_MAPS = ("fsc", "views", "surface", "slices", "local_resolution", "guinier")
KINDS = {CLASSIFY2D: ("classes",), HETERO: ("fsc", "views", "classes")}
FILES = (SCRIPT, *(f"{name}.{suffix}" for name in DRAWINGS for suffix in (*SUFFIXES, "csv")))


@dataclass(frozen=True)
class FigureResult(JobResult):
    """Figures of a run, and those that were left out."""

    figures: tuple[str, ...]  # names of those that were drawn
    left_out: dict[str, str]  # name to reason


def figure(options: FigureOptions) -> FigureResult:
    """Draw figures of the results of a run, and write the script for ChimeraX.

    Raises:
        InputError: no finished run that has figures, or none that can be drawn.
        UsageError: the run is not solved, or the folder to write holds something else.
        ResourceError: the disk is full.
    """
    results = RunResults(options.folder)
    results.require_solved(allowed=options.not_solved)
    output = options.output or options.folder / "figures"
    options = options.replaced(output=output)
    drawn: dict[str, str] = {}
    left_out: dict[str, str] = {}
    inputs = {"run": options.folder / CONFIG}
    with OutputFolder.of("figure", options, FILES, inputs=inputs) as folder:
        for name in KINDS.get(results.command, OF_MAPS):
            try:
                drawing = DRAWINGS[name](results, options.level)
            except MissingDataError as error:
                left_out[name] = str(error)
                continue
            _write(folder, name, drawing, "" if results.solved else "NOT SOLVED")
            drawn[name] = drawing.shows
        if not drawn:
            folder.discard()
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise InputError(f"{options.folder}: has nothing to draw: {reasons}")
        script = None
        if results.command != CLASSIFY2D:
            try:
                script = script_of(results, options)
            except MissingDataError as error:
                left_out[SCRIPT] = str(error)
        if script is not None:
            atomic_write_text(folder.path(SCRIPT), script)
        folder.config["run"] |= {"figures": list(drawn), "left_out": left_out}
        folder.finish()
    rows = dict(drawn)
    if script is not None:
        rows[SCRIPT] = "opens the maps in ChimeraX"
    text = "\n".join(
        [rows_of_text(rows), *(f"left out: {name}: {reason}" for name, reason in left_out.items())]
    )
    count = f"{len(drawn)} figures" if len(drawn) > 1 else "one figure"
    verdict = f"{count} of {options.folder}, as PDF and PNG with their numbers, in {output}"
    return FigureResult(results.solved, verdict, text, output, tuple(drawn), left_out)


def _write(folder: OutputFolder, name: str, drawing: Drawing, heading: str) -> None:
    height = drawing.height_mm + (6 if heading else 0)
    for suffix, content in printed(drawing.draw, height, heading).items():
        with atomic_file(folder.path(f"{name}.{suffix}")) as stream:
            stream.write(content)
    atomic_write_text(folder.path(f"{name}.csv"), csv_text(drawing.columns))


def script_of(results: RunResults, options: FigureOptions) -> str:
    """Return the script for ChimeraX; MissingDataError without maps."""
    assert options.output is not None
    if results.command == HETERO:
        names = [f"{class_name(number)}.mrc" for number in results.classes]
        if not names:
            raise MissingDataError("the classes have no maps")
        levels = {name: default_level(results.map(name)[0]) for name in names}
        return maps_script(results.folder, options.output, levels, (), None)
    level = surface_level(results, options.level)
    others = ("half1.mrc", "half2.mrc", "mask.mrc")
    hidden = [name for name in others if (results.folder / name).is_file()]
    local = None
    if results.local_resolution is not None:
        local = ("local_resolution.mrc", colour_limits(results.local_resolution))
    shown = {results.shown_map[0]: level}
    return maps_script(results.folder, options.output, shown, hidden, local)
