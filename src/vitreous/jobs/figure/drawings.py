"""Figures that can be drawn from the results of a run, each with its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vitreous.core.resolution import angstrom
from vitreous.io.mrc import read_mrc
from vitreous.io.star import read_star
from vitreous.jobs.figure.results import (
    CLASSIFY2D,
    CORRECTED,
    FREQUENCY,
    HETERO,
    MissingDataError,
    RunResults,
)
from vitreous.jobs.reconstruct.map_plots import local_histogram, view_density
from vitreous.jobs.run.class_tables import class_name
from vitreous.report import print_figures as printing
from vitreous.report.figures import Array, central_slices, contrast_limits, projections
from vitreous.report.surface import colour_limits, default_level

MOST_CURVES, MOST_ROWS, COLUMNS = 8, 8, 6
MOST_IMAGES = 10 * COLUMNS
_VIEW_ROWS = 400
_LABEL_MM = 4.0
GUINIER = ("inv_d2_inv_angstrom2", "ln_amplitude", "fitted")


@dataclass(frozen=True)
class Drawing:
    """A figure: what it shows, in words; height; how it is drawn; columns of its CSV file."""

    shows: str
    height_mm: float
    draw: Callable[[Any], None]
    columns: Mapping[str, Any]


def fsc_figure(results: RunResults, level: float | None) -> Drawing:
    """Return FSC curves: of the half maps, or of each class."""
    if results.command == HETERO:
        return _fsc_of_classes(results)
    best, table = results.headline()
    names = [best, *(name for name in list(table)[3:] if name != best)]
    frequency = table[FREQUENCY]
    curves = {name.replace("_", " "): (frequency, table[name]) for name in names}
    crossings, shows = {}, "curves between the half maps"
    if results.solved:
        crossings[best] = results.resolutions(table[best], results.shown_map[0])
        shows = " at 0.143, ".join(map(angstrom, crossings[best])) + " at 0.5"
    shared = None
    if results.command == "refine":
        shared = results.options.get("start_resolution_angstrom")
    draw = partial(printing.draw_fsc, curves=curves, crossings=crossings, shared_angstrom=shared)
    return Drawing(shows, 68, draw, table)


def _fsc_of_classes(results: RunResults) -> Drawing:
    columns: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    crossings: dict[str, tuple[float, float]] = {}
    for number in results.classes:
        name, label = class_name(number), f"class {number}"
        if not (results.folder / f"{name}_fsc.csv").is_file():
            continue
        table = results.table(f"{name}_fsc.csv", FREQUENCY, CORRECTED)
        columns = columns or dict(list(table.items())[:3])
        columns[name] = table[CORRECTED]
        at = results.class_resolutions(number)
        if len(curves) < MOST_CURVES:
            label += "" if at else ": no resolution"
            curves[label] = table[FREQUENCY], table[CORRECTED]
            crossings |= {label: at} if at else {}
    if not curves:
        raise MissingDataError("the classes have no half maps")
    shows = f"curves of {len(curves)} classes; their half maps share the model that chose particles"
    draw = partial(printing.draw_fsc, curves=curves, crossings=crossings)
    return Drawing(shows, 68, draw, columns)


def views_figure(results: RunResults, level: float | None) -> Drawing:
    """Return the density of viewing directions."""
    rotations = results.rotations()
    seen = view_density(rotations, str(results.options.get("symmetry", "C1")))
    rot, tilt = (angles.tolist() for angles in seen.angles_deg())
    note = f"sampling compensation factor {seen.sampling.scf:.2f}"
    draw = partial(
        printing.draw_views, picture=seen.picture(_VIEW_ROWS), highest=seen.highest, note=note
    )
    columns = {"rot_deg": rot, "tilt_deg": tilt, "density": seen.density.tolist()}
    return Drawing(f"of {len(rotations):,} particles, {note}", 60, draw, columns)


def surface_level(results: RunResults, level: float | None) -> float:
    """Return the density of the surface of the map.

    Raises:
        MissingDataError: no structure, or nothing lies above the level.
    """
    if not results.solved:
        raise MissingDataError("a map that is NOT SOLVED has no surface to show")
    _, volume, _ = results.shown_map
    level = default_level(volume) if level is None else level
    if not level < float(volume.max()):
        raise MissingDataError(f"no density above the level {level:.4g}")
    return level


def surface_figure(results: RunResults, level: float | None) -> Drawing:
    """Return the surface of the map from three sides, coloured by local resolution if known."""
    level = surface_level(results, level)
    _, volume, pixel = results.shown_map
    resolution = results.local_resolution
    limits = None if resolution is None else colour_limits(resolution)
    sheet, centres, scale = printing.surface_sheet(volume, level, resolution)
    draw = partial(
        printing.draw_surface,
        sheet=sheet,
        centres=centres,
        pixels_per_angstrom=scale / pixel,
        limits=limits,
    )
    colours = "in the colours of the local resolution" if limits else "grey: no local resolution"
    enclosed = float((volume > level).sum()) * pixel**3
    columns = {
        "quantity": ["level", "mean", "standard_deviation", "enclosed_volume_angstrom3"],
        "value": [level, float(volume.mean()), float(volume.std()), enclosed],
    }
    height = printing.WIDTH_MM * sheet.shape[0] / sheet.shape[1] + (19 if limits else 7)
    return Drawing(f"at a density of {level:.4g}, {colours}", height, draw, columns)


def slices_figure(results: RunResults, level: float | None) -> Drawing:
    """Return the central slices of the map."""
    _, volume, pixel = results.shown_map
    planes = central_slices(volume)
    limits = [contrast_limits(plane) for plane in planes.values()]
    draw = partial(printing.draw_gallery, rows=[list(planes.values())], labels=[list(planes)])
    columns = {
        "plane": list(planes),
        "black": [low for low, _ in limits],
        "white": [high for _, high in limits],
        "pixel_size_angstrom": [pixel] * len(planes),
    }
    height = printing.WIDTH_MM / 3 + _LABEL_MM
    return Drawing("central slices of the map", height, draw, columns)


def local_figure(results: RunResults, level: float | None) -> Drawing:
    """Return the histogram of the local resolution."""
    if not results.solved:
        raise MissingDataError("a map that is NOT SOLVED has no resolution")
    if results.local_resolution is None:
        raise MissingDataError("no local_resolution.mrc")
    mask = torch.from_numpy(results.map("mask.mrc")[0])
    bars = local_histogram(torch.from_numpy(results.local_resolution), mask).data[0]
    labels = ("local resolution (Å)", "share of the mask (%)")
    draw = partial(printing.draw_bars, x=bars["x"], y=bars["y"], labels=labels)
    columns = {"local_resolution_angstrom": bars["x"], "share_percent": bars["y"]}
    return Drawing("histogram within the mask", 52, draw, columns)


def guinier_figure(results: RunResults, level: float | None) -> Drawing:
    """Return the Guinier plot."""
    try:
        table = results.table("guinier.csv", *GUINIER)
    except MissingDataError as error:
        halves = [str(results.folder / f"half{half}.mrc") for half in (1, 2)]
        command = shlex.join(["vitreous", "postprocess", *halves, "-o", "POST"])
        raise MissingDataError(f"{error}; `{command}` makes it") from error
    x, y, used = (table[name] for name in GUINIER)
    shown = np.isfinite(y) & (x > 0)
    x, y, fitted = x[shown], y[shown], used[shown] > 0
    line, text = np.zeros(0), "without a fit"
    if fitted.any():
        slope, intercept = np.polyfit(x[fitted], y[fitted], 1)
        line, text = intercept + slope * x[fitted], f"B = {4 * slope:.0f} Å²"
    draw = partial(printing.draw_guinier, x=x, y=y, fitted=fitted, line=line, b=text)
    return Drawing(text, 60, draw, table)


def classes_figure(results: RunResults, level: float | None) -> Drawing:
    """Return class averages, or the projections of the maps of classes."""
    if results.command == CLASSIFY2D:
        return _class_averages(results)
    if not results.classes:
        raise MissingDataError("the classes have no maps")
    sizes = results.run["sizes"]
    total = sum(sizes) + int(results.run.get("unsorted", 0))
    columns: dict[str, list[Any]] = {
        "class": results.classes,
        "particles": [sizes[k - 1] for k in results.classes],
        "share": [sizes[k - 1] / total for k in results.classes],
        "resolution_0143_angstrom": [],
    }
    rows: list[list[Array]] = []
    labels = []
    for number in results.classes:
        at = results.class_resolutions(number)
        columns["resolution_0143_angstrom"].append(at[0] if at else "")
        if len(rows) == MOST_ROWS:
            continue
        views = projections(results.map(f"{class_name(number)}.mrc")[0])
        text = f"class {number}, {100 * sizes[number - 1] / total:.0f} %"
        rows.append(list(views.values()))
        labels.append([f"{text}: {next(iter(views))}", *list(views)[1:]])
    shows = f"projections of {len(rows)} of {len(results.classes)} class maps"
    draw = partial(printing.draw_gallery, rows=rows, labels=labels)
    return Drawing(shows, (printing.WIDTH_MM / 3 + _LABEL_MM) * len(rows), draw, columns)


def _class_averages(results: RunResults) -> Drawing:
    images = read_mrc(results.file("classes.mrcs"))[0]
    path = results.file("classes.star")
    table = read_star(path).blocks["model_classes"]
    share = table.numbers("rlnClassDistribution", path)
    count = min(len(images), MOST_IMAGES)
    across = min(COLUMNS, count)
    rows = [range(first, min(first + across, count)) for first in range(0, count, across)]
    draw = partial(
        printing.draw_gallery,
        rows=[[images[k] for k in row] for row in rows],
        labels=[[f"{k + 1}: {100 * share[k]:.1f} %" for k in row] for row in rows],
    )
    columns = {
        "class": list(range(1, len(images) + 1)),
        "share": share.tolist(),
        "resolution_0143_angstrom": table.text("rlnEstimatedResolution", path),
    }
    shows = f"{count} of {len(images)} class averages, the largest first"
    height = (printing.WIDTH_MM / across + _LABEL_MM) * len(rows)
    return Drawing(shows, height, draw, columns)
