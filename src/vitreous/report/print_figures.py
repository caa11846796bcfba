"""Figures at print size, one column wide (89 mm), as PNG of 300 dpi and PDF with its fonts."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitreous.core.resolution import AtNyquist, angstrom
from vitreous.report.figures import Array, contrast_limits, enlarge
from vitreous.report.plots import resolution_ticks
from vitreous.report.shading import looked_along, seen_surface
from vitreous.report.surface import PALETTE, colour_limits

WIDTH_MM, DPI, POINTS = 89.0, 300, 7
SUFFIXES = ("png", "pdf")
GREY = (0.69, 0.745, 0.8)
LOCAL = LinearSegmentedColormap.from_list("local resolution", np.divide(PALETTE, 255))
_PANEL_PX = 1000  # width of the picture of a surface
_FINER = 2  # pixels that are averaged to one of it
_GAP_PX = 24
_BAR_PX = 45  # height of the scale bar with its text
_THRESHOLDS = (0.143, 0.5)
_COLOURS = ("#000000", "#0072B2", "#E69F00", "#999999", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_DASHES = ("-", "-", "-", "--", "-.", "-.", ":", ":")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": POINTS,
    "axes.titlesize": POINTS,
    "axes.labelsize": POINTS,
    "legend.fontsize": POINTS,
    "xtick.labelsize": POINTS,
    "ytick.labelsize": POINTS,
    "figure.titlesize": POINTS,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "lines.linewidth": 1.0,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "pdf.fonttype": 42,
}


def printed(draw: Callable[[Figure], None], height_mm: float, heading: str) -> dict[str, bytes]:
    """Draw a figure of one column's width.

    Args:
        draw: draws into an empty figure.
        height_mm: height of the figure.
        heading: written above it in red; "" for none.

    Returns:
        suffix to the content of the file.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_MM / 25.4, height_mm / 25.4), layout="constrained")
        FigureCanvasAgg(figure)
        if heading:
            figure.suptitle(heading, color="#C00000", weight="bold")
        draw(figure)
        files = {}
        for suffix, stamp in zip(SUFFIXES, ("Software", "CreationDate"), strict=True):
            stream = io.BytesIO()
            figure.savefig(stream, format=suffix, dpi=DPI, metadata={stamp: None})
            files[suffix] = stream.getvalue()
    return files


def draw_fsc(
    figure: Figure,
    curves: Mapping[str, tuple[Array, Array]],
    crossings: Mapping[str, tuple[float, float]],
    shared_angstrom: float | None = None,
) -> None:
    """Draw FSC curves, the thresholds 0.143 and 0.5, and where curves cross them.

    Args:
        figure: to draw into.
        curves: label to (frequency in 1/Å, correlation), the most important first.
        crossings: resolutions in Å at the thresholds, of some of the curves.
        shared_angstrom: the half maps shared a start up to this resolution, Å.
    """
    axes = figure.subplots()
    for threshold in _THRESHOLDS:
        axes.axhline(threshold, color="#777777", linewidth=0.5, linestyle=":")
        axes.annotate(
            f"{threshold:g}",
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
        )
    highest = max(float(frequency[-1]) for frequency, _ in curves.values())
    if shared_angstrom:
        axes.axvspan(0, min(1 / shared_angstrom, highest), color="#E4E4E4", label="shared start")
    for number, (label, (frequency, correlation)) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = _DASHES[number % len(_DASHES)] if len(crossings) < 2 else "-"
        at = crossings.get(label, ())
        text = f"{label}: {angstrom(at[0])}" if at else label
        (drawn,) = axes.plot(frequency, correlation, color=colour, linestyle=dash, label=text)
        if number == 0 and len(crossings) < 2:  # the others are drawn over it
            drawn.set_linewidth(2.2)
        for resolution, threshold in zip(at, _THRESHOLDS, strict=bool(at)):
            if math.isfinite(resolution) and not isinstance(resolution, AtNyquist):
                axes.plot(1 / resolution, threshold, "o", color=colour, markersize=2.5)
    axes.set(xlim=(0, highest), ylim=(-0.1, 1.04), ylabel="Fourier shell correlation")
    axes.set_xlabel("spatial frequency (1/Å)")
    above, ticks = axes.secondary_xaxis("top"), resolution_ticks(highest)
    above.set_xticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    above.set_xlabel("resolution (Å)")
    axes.legend(loc="best")


def draw_views(figure: Figure, picture: Array, highest: float, note: str) -> None:
    """Draw the density of views, a picture in Hammer's projection with NaN off the sphere."""
    axes = figure.subplots()
    shown = axes.imshow(picture, cmap="viridis", vmin=0, vmax=highest, extent=(-2, 2, -1, 1))
    turn = np.linspace(0, 2 * np.pi, 361)
    axes.plot(2 * np.cos(turn), np.sin(turn), color="black", linewidth=0.5)
    axes.set_axis_off()
    for text, at, along in (
        ("tilt 0°", (0, 1.02), ("center", "bottom")),
        ("tilt 180°", (0, -1.02), ("center", "top")),
        ("rot -180°", (-2.02, 0), ("right", "center")),
        ("rot 180°", (2.02, 0), ("left", "center")),
    ):
        axes.text(at[0], at[1], text, ha=along[0], va=along[1])
    bar = figure.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.6, aspect=30)
    bar.set_label("density of views (1: uniform)")
    axes.set_title(note, pad=12, wrap=True)


def draw_bars(
    figure: Figure, x: Sequence[float], y: Sequence[float], labels: Sequence[str]
) -> None:
    """Draw a histogram; ``labels`` are those of its two axes."""
    axes = figure.subplots()
    axes.bar(x, y, width=x[1] - x[0], color=_COLOURS[1])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.spines[["top", "right"]].set_visible(False)


def draw_guinier(
    figure: Figure, x: Array, y: Array, fitted: NDArray[np.bool_], line: Array, b: str
) -> None:
    """Draw amplitudes against 1/d², and the ``line`` through those that are ``fitted``."""
    axes = figure.subplots()
    axes.plot(x, y, "o-", color=_COLOURS[1], markersize=2, label="ln amplitude, FSC-weighted")
    if fitted.any():
        axes.plot(x[fitted], line, color=_COLOURS[4], label=b)
    axes.set(xlabel="1/d² (1/Å²)", ylabel="ln amplitude", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best")


def draw_gallery(
    figure: Figure, rows: Sequence[Sequence[Array]], labels: Sequence[Sequence[str]]
) -> None:
    """Draw grey pictures in rows, a label below each; a row may be shorter than the first."""
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, pictures, texts in zip(grid, rows, labels, strict=True):
        for axes, picture, text in zip(line, pictures, texts, strict=False):
            low, high = contrast_limits(picture)
            axes.imshow(enlarge(picture, 150), cmap="gray", vmin=low, vmax=high)
            axes.text(0.5, -0.03, text, transform=axes.transAxes, ha="center", va="top")


def surface_sheet(
    volume: Array, level: float, resolution: Array | None
) -> tuple[Array, list[float], float]:
    """Return pictures of a surface seen from three sides, beside one another.

    Args:
        volume: ``(z, y, x)``, above ``level`` somewhere.
        level: density of the surface.
        resolution: Å, 0 where unknown; colours the surface.

    Returns:
        the pixels, ``(rows, columns, 3)``; the centre of each picture as a share of the width; and
        the pixels that a voxel takes.
    """
    region = []
    for number in range(3):
        at = np.flatnonzero((volume > level).any(axis=tuple({0, 1, 2} - {number})))
        region.append(slice(max(0, int(at[0]) - 2), int(at[-1]) + 3))
    density = np.pad(volume[tuple(region)], 1, constant_values=min(0.0, level))
    colours = None if resolution is None else np.pad(resolution[tuple(region)], 1)
    deep, high, wide = density.shape
    scale = (_PANEL_PX - 2 * _GAP_PX) / (2 * wide + high)
    pictures = []
    for axis, edges in (("z", (high, wide)), ("y", (deep, wide)), ("x", (deep, high))):
        rows, columns = (max(2, round(edge * scale)) for edge in edges)
        seen = seen_surface(looked_along(density, axis), level, (_FINER * rows, _FINER * columns))
        tint = np.broadcast_to(GREY, (len(seen.light), 3))
        if resolution is not None and colours is not None:
            values = seen.sampled(looked_along(colours, axis))
            low_high = Normalize(*colour_limits(resolution))
            tint = np.where(values[:, None] > 0, LOCAL(low_high(values))[:, :3], tint)
        pixels = seen.picture(tint, 1.0).reshape(rows, _FINER, columns, _FINER, 3)
        pictures.append(pixels.mean((1, 3)))
    return *_beside(pictures), scale


def _beside(pictures: Sequence[Array]) -> tuple[Array, list[float]]:
    """Return pictures in a row on white, and the centre of each as a share of the width."""
    height = max(len(one) for one in pictures)
    width = sum(one.shape[1] for one in pictures) + _GAP_PX * (len(pictures) - 1)
    sheet, left, centres = np.ones((height + _BAR_PX, width, 3)), 0, []
    for one in pictures:
        top = (height - len(one)) // 2
        sheet[top : top + len(one), left : left + one.shape[1]] = one
        centres.append((left + one.shape[1] / 2) / width)
        left += one.shape[1] + _GAP_PX
    return sheet, centres


def draw_surface(
    figure: Figure,
    sheet: Array,
    centres: Sequence[float],
    pixels_per_angstrom: float,
    limits: tuple[float, float] | None,
) -> None:
    """Draw a :func:`surface_sheet` with a scale bar and, between ``limits`` in Å, its colours."""
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="none")
    axes.set_axis_off()
    for centre, text in zip(centres, ("along z", "along y", "along x"), strict=True):
        axes.text(centre, -0.02, text, transform=axes.transAxes, ha="center", va="top")
    length = round_length(sheet.shape[1] / pixels_per_angstrom / 8)
    bottom = len(sheet) * 0.99
    axes.plot([0, length * pixels_per_angstrom], [bottom, bottom], color="black", linewidth=1.5)
    axes.annotate(f"{length:g} Å", (0, bottom), (0, 3), textcoords="offset points")
    if limits is not None:
        shades = ScalarMappable(Normalize(*limits), LOCAL)
        bar = figure.colorbar(shades, ax=axes, orientation="horizontal", shrink=0.6, aspect=30)
        bar.set_label("local resolution (Å)")


def round_length(angstrom_: float) -> float:
    """Return the largest of 1, 2 and 5, times a power of ten, up to a length.

    >>> round_length(37.0), round_length(0.3)
    (20.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(angstrom_))
    return max(one * power for one in (1, 2, 5) if one * power <= angstrom_ * (1 + 1e-9))
