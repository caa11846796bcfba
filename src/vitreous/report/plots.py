"""Interactive plots of the report as plotly JSON.

Colours are names of CSS variables of the page (``--half1`` ...). The page's script resolves them,
so that the plots follow a light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.report.figures import Array

CURVE_COLOURS = ("--series1", "--series2", "--series3", "--series4", "--series5")
_DASHES = ("solid", "solid", "dash", "dot", "dashdot")  # so that curves on others stay visible
MAX_POINTS = 1500
_ROUND_ANGSTROM = (
    *(5000, 2000, 1000, 500, 300, 200, 150, 100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5),
    *(4.5, 4, 3.5, 3, 2.7, 2.5, 2.2, 2, 1.8, 1.5),
)


@dataclass(frozen=True)
class Plot:
    """Interactive plot: HTML id, title, caption, and plotly's ``data`` and ``layout``."""

    key: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Series:
    """Curve of a history plot: key in ``history``, label, and dash pattern."""

    key: str
    label: str
    dash: str = "solid"


# Key, title, caption, axis type, unit and curves of each history plot.
HISTORY_PLOTS: tuple[tuple[str, str, str, str, str, tuple[Series, ...]], ...] = (
    (
        "wasserstein",
        "Loss",
        "Critic's estimate of the Wasserstein distance between real and simulated images, and the "
        "critic's loss, at every recorded step.",
        "linear",
        "",
        (
            Series("wasserstein", "Wasserstein estimate"),
            Series("loss", "loss", "dot"),
            Series("gradient_penalty", "gradient penalty", "dash"),
        ),
    ),
    (
        "residuals",
        "Residuals",
        "Violation of the constraints and gradient of the objective, both relative, for the half "
        "maps and the map of all particles; both fall to zero at convergence.",
        "log",
        "",
        (Series("primal", "constraints"), Series("dual", "gradient", "dot")),
    ),
    (
        "scale",
        "Learned scales",
        "Learned amplitudes of signal and noise of the simulator; normalised images determine only "
        "their ratio.",
        "log",
        "",
        (Series("signal", "signal"), Series("noise", "noise", "dot")),
    ),
    (
        "snr",
        "Signal-to-noise ratio",
        "Learned ratio of signal to noise power.",
        "linear",
        " dB",
        (Series("snr_db", "SNR"),),
    ),
    (
        "resolution",
        "Resolution during the run",
        "Resolution where the Fourier shell correlation of the two half maps falls below 0.143 and "
        "0.5.",
        "linear",
        " Å",
        (
            Series("resolution_angstrom", "at 0.143"),
            Series("resolution_0.5_angstrom", "at 0.5", "dot"),
        ),
    ),
)


def line(
    name: str,
    x: Array | Sequence[float],
    y: Array | Sequence[float],
    colour: str,
    width: float = 2,
    **more: Any,
) -> dict[str, Any]:
    """Return plotly's trace of a curve in a colour of the page; ``more`` are further keys of it."""
    curve = {"type": "scatter", "mode": "lines", "name": name, "x": numbers(x), "y": numbers(y)}
    return curve | {"line": {"color": colour, "width": width}} | more


def titled(text: str, **more: Any) -> dict[str, Any]:
    """Return plotly's settings of an axis with a title; ``more`` are further ones."""
    return {"title": {"text": text}, **more}


def fsc_plot(curves: Mapping[str, tuple[Array, Array]]) -> Plot:
    """Plot Fourier shell correlations against spatial frequency, with both thresholds.

    Args:
        curves: label to (frequency in 1/Å, correlation), of equal lengths.

    >>> plot = fsc_plot({"halves": (np.array([0.0, 0.05]), np.array([1.0, 0.2]))})
    >>> plot.data[0]["customdata"], [shape["y0"] for shape in plot.layout["shapes"]]
    (['∞', '20.0'], [0.143, 0.5])
    """
    data: list[dict[str, Any]] = []
    highest = 0.0
    for i, (label, (frequency, correlation)) in enumerate(curves.items()):
        f = np.asarray(frequency, dtype=float)
        highest = max(highest, float(f.max(initial=0.0)))
        shown = {
            "customdata": [f"{1 / v:.1f}" if v > 0 else "∞" for v in f],
            "hovertemplate": "%{customdata} Å<br>FSC %{y:.3f}",
        }
        colour = CURVE_COLOURS[i % len(CURVE_COLOURS)]
        curve = line(_text(label), f, correlation, colour, 3.4 if i == 0 else 2.0, **shown)
        curve["line"]["dash"] = _DASHES[i % len(_DASHES)]
        data.append(curve)
    ticks = resolution_ticks(highest)
    layout = {
        "xaxis": titled(
            "resolution (Å)",
            tickvals=[1.0 / t for t in ticks],
            ticktext=[f"{t:g}" for t in ticks],
            range=[0.0, highest or 1.0],
        ),
        "yaxis": titled("FSC", range=[-0.1, 1.04], zeroline=True),
        "shapes": [_threshold(0.143), _threshold(0.5)],
        "annotations": [_threshold_label(0.143), _threshold_label(0.5)],
    }
    caption = (
        "Fourier shell correlation; the axis is linear in spatial frequency. The resolution is "
        "where a curve first falls below 0.143 (two half maps) or 0.5 (a map against the truth)."
    )
    return Plot("fsc", "Fourier shell correlation", caption, data, layout)


def history_plots(history: Iterable[Mapping[str, Any]]) -> list[Plot]:
    """Plot the quantities of a history over steps, one line per half and quantity.

    Args:
        history: rows with ``step`` and any of the keys in :data:`HISTORY_PLOTS`; ``half`` is 1 or
            2, or absent for both.

    >>> rows = [{"half": 1, "step": 0, "snr_db": -3.0}, {"half": 1, "step": 9, "snr_db": 0.0}]
    >>> [(plot.key, plot.data[0]["x"]) for plot in history_plots(rows)]
    [('snr', [0.0, 9.0])]
    """
    rows = list(history)
    plots = []
    for key, title, caption, scale, suffix, series in HISTORY_PLOTS:
        data = [trace for one in series for trace in history_traces(rows, one, suffix)]
        if not data:
            continue
        layout = {
            "xaxis": titled("step", rangemode="tozero"),
            "yaxis": {"type": scale, "ticksuffix": suffix},
        }
        plots.append(Plot(key, title, caption, data, layout))
    return plots


def resolution_ticks(highest_inv_angstrom: float) -> list[float]:
    """Return round resolutions in Å whose frequencies spread over ``0 .. highest`` in 1/Å.

    >>> resolution_ticks(0.1)
    [100, 50, 30, 20, 15, 12, 10]
    """
    ticks: list[float] = []
    for value in _ROUND_ANGSTROM:
        frequency = 1.0 / value
        if frequency > highest_inv_angstrom * 1.0001:
            break
        if frequency - (1.0 / ticks[-1] if ticks else 0.0) >= 0.09 * highest_inv_angstrom:
            ticks.append(value)
    return ticks


def numbers(values: Array | Sequence[float]) -> list[float | None]:
    """Round to six significant digits; values that are not finite become None, as JSON has no NaN.

    >>> numbers([1.0, float("nan"), 0.123456789])
    [1.0, None, 0.123457]
    """
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]


def history_traces(
    rows: Iterable[Mapping[str, Any]], series: Series, suffix: str = ""
) -> list[dict[str, Any]]:
    """Return a curve over steps for each half that has the quantity, with at most 1,500 points."""
    by_half: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if isinstance(row.get(series.key), (int, float)) and row.get("step") is not None:
            point = (float(row["step"]), float(row[series.key]))
            by_half.setdefault(int(row.get("half") or 0), []).append(point)
    traces = []
    for half, points in sorted(by_half.items()):
        kept = points[:: max(1, -(-len(points) // MAX_POINTS))]
        name = f"{series.label}, half {half}" if half else series.label
        colour = ("--series3", "--series1", "--series2")[half % 3]
        trace = line(name, [x for x, _ in kept], [y for _, y in kept], colour, 1.8)
        trace["line"]["dash"] = series.dash
        trace["mode"] = "lines" if len(kept) > 1 else "markers"
        traces.append(trace | {"hovertemplate": "step %{x:,}<br>%{y:.4g}" + suffix})
    return traces


def _threshold(level: float) -> dict[str, Any]:
    ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}
    return {"type": "line", **ends, "line": {"color": "--muted", "width": 1, "dash": "dash"}}


def _threshold_label(level: float) -> dict[str, Any]:
    place = {"xref": "paper", "x": 0, "y": level, "xanchor": "left", "yanchor": "bottom"}
    font = {"color": "--muted", "size": 11}
    return {**place, "text": f"{level:g}", "showarrow": False, "font": font}


def _text(label: str) -> str:
    """Escape a label, since plotly interprets some HTML tags."""
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
