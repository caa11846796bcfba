"""Plots of reports on maps: viewing directions, Guinier plot, histograms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from vitreous.core.symmetry import point_group
from vitreous.maps.postprocess import Postprocessed
from vitreous.maps.sharpening import Guinier
from vitreous.metrics.sampling import HALF_WIDTH_DEG, fibonacci_hemisphere, fourier_sampling
from vitreous.report.plots import Plot, line, numbers, titled

EMPTY = -600.0  # of a logarithm: the FSC is not above zero there
_DIRECTIONS = 800  # over the sphere
_MOST_VIEWS = 200_000  # that are looked at, symmetry copies included
_MOST_EMPTY = 0.02  # share of directions of Fourier space without image from which to warn
_FEWEST_SLICES = 8.0  # mean number of slices through a direction; with fewer, chance empties some


def view_plot(rotations: Tensor, symmetry: str) -> tuple[Plot, list[str]]:
    """Plot how densely particles are seen from each direction; warn of what no image measures.

    ``rotations (b, 3, 3)`` take volume to particle coordinates; a view is the particle's z axis.
    Those that ``symmetry`` makes of one count as well. The sphere is drawn in Hammer's equal-area
    projection, rot from -180 to 180 degrees to the right and tilt from 0 at the top.

    Returns:
        the plot, and the warnings.
    """
    matrices = point_group(symmetry).matrices.cpu()
    rotations = rotations[:: max(1, len(rotations) * len(matrices) // _MOST_VIEWS)].double().cpu()
    views = (rotations[:, 2] @ matrices).flatten(0, 1)
    sampling = fourier_sampling((rotations[:, None] @ matrices).flatten(0, 1))
    layout = {
        "xaxis": {"visible": False, "range": [-2.9, 2.9]},
        "yaxis": {"visible": False, "range": [-1.5, 1.5], "scaleanchor": "x"},
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 5, "r": 5, "t": 8, "b": 60},
    }
    caption = (
        "Views by direction, with symmetry copies, relative to uniform ones (1); grey: none. Rot "
        "runs from -180° to 180° to the right, tilt from 0° at the top. Sampling compensation "
        f"factor {sampling.scf:.2f} (1: uniform); {100 * sampling.empty:.1f} % of the directions "
        "of Fourier space are in no image."
    )
    slices = len(views) * math.sin(math.radians(HALF_WIDTH_DEG))
    missing = sampling.empty > _MOST_EMPTY and slices > _FEWEST_SLICES
    warning = (
        f"Views are missing: {100 * sampling.empty:.0f} % of the directions of Fourier space are "
        "in no image, so the map is smeared along them; see the viewing directions."
    )
    plot = Plot("views", "Viewing directions", caption, _sphere(views), layout)
    return plot, [warning] if missing else []


def _sphere(views: Tensor) -> list[dict[str, Any]]:
    """Return traces of the sphere's rim, its directions, and those that have views, coloured."""
    upper = fibonacci_hemisphere(_DIRECTIONS // 2)
    centres = torch.cat([upper, -upper])
    nearest = cKDTree(centres.numpy()).query(views.numpy())[1]
    density = np.bincount(nearest, minlength=len(centres)) * len(centres) / len(views)
    rot, seen = torch.atan2(centres[:, 1], centres[:, 0]), density > 0
    x, y = (one.numpy() for one in _hammer(rot, centres[:, 2].asin()))
    angles = torch.stack([rot.rad2deg(), centres[:, 2].acos().rad2deg()], -1).round().int()
    common = {"type": "scatter", "mode": "markers"}
    points = common | {
        "x": numbers(x[seen]),
        "y": numbers(y[seen]),
        "marker": {
            "size": 7,
            "color": numbers(density[seen].round(2)),
            "cmin": 0,
            "cmax": max(2.0, round(float(np.quantile(density, 0.99)), 1)),
            "colorscale": "Viridis",
            "showscale": True,
            "colorbar": {
                "title": {"text": "density of views, 1: uniform", "side": "top"},
                "orientation": "h",
                "thickness": 10,
                "len": 0.7,
                "y": -0.02,
                "yanchor": "top",
            },
        },
        "customdata": angles[seen].tolist(),
        "hovertemplate": "rot %{customdata[0]}°, tilt %{customdata[1]}°: "
        "%{marker.color:.3g}<extra></extra>",
    }
    marker = {"size": 4, "color": "--line"}
    none = common | {"x": numbers(x), "y": numbers(y), "marker": marker, "hoverinfo": "skip"}
    turn = np.linspace(0, 2 * math.pi, 121)
    rim = line("", 2 * math.sqrt(2) * np.cos(turn), math.sqrt(2) * np.sin(turn), "--line", 1)
    return [rim | {"hoverinfo": "skip"}, none, points]


def _hammer(longitude: Tensor, latitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return Hammer's equal-area projection of angles in radians."""
    scale = math.sqrt(2) / (1 + latitude.cos() * (longitude / 2).cos()).sqrt()
    return 2 * scale * latitude.cos() * (longitude / 2).sin(), scale * latitude.sin()


def sharpening_plots(post: Postprocessed) -> list[Plot]:
    """Return the Guinier plot and, where it is known, the histogram of the local resolution."""
    plots = [_guinier_plot(post.sharpened.guinier)]
    if post.local_resolution is not None:
        inside = post.local_resolution[post.mask > 0.5]
        caption = "Share of the mask at each local resolution."
        plots.append(histogram("local", "Local resolution", caption, inside, "Å", "mask"))
    return plots


def histogram(key: str, title: str, caption: str, values: Tensor, unit: str, whole: str) -> Plot:
    """Return bars with the share of ``whole`` (in words) at each value."""
    counts, edges = np.histogram(values.double().cpu().numpy(), bins=40)
    bars = {
        "type": "bar",
        "name": title,
        "x": numbers((edges[1:] + edges[:-1]) / 2),
        "y": numbers(counts / max(1, counts.sum()) * 100),
        "marker": {"color": "--series3"},
        "hovertemplate": f"%{{x:.4g}} {unit}: %{{y:.1f}} %<extra></extra>",
    }
    layout = {
        "xaxis": titled(f"{title.lower()} ({unit})" if unit else title.lower()),
        "yaxis": titled(f"share of the {whole}", ticksuffix=" %"),
        "bargap": 0.05,
        "showlegend": False,
    }
    return Plot(key, title, caption, [bars], layout)


def _guinier_plot(fit: Guinier) -> Plot:
    shown = (fit.log_amplitude > EMPTY) & (fit.inv_d2 > 0)
    x, y = fit.inv_d2[shown].numpy(), fit.log_amplitude[shown].numpy()
    marked = {"mode": "lines+markers", "marker": {"size": 4, "color": "--series1"}}
    data = [line("ln amplitude, FSC-weighted", x, y, "--series1", 1.5, **marked)]
    if bool(fit.fitted.any()) and fit.b_factor_angstrom2:
        fitted = fit.inv_d2[fit.fitted]
        fall = (fit.intercept + fit.b_factor_angstrom2 / 4 * fitted).numpy()
        name = f"B = {fit.b_factor_angstrom2:.0f} Å²"
        data.append(line(name, fitted.numpy(), fall, "--series2", 2.2))
    layout = {
        "xaxis": titled("1/d² (1/Å²)", rangemode="tozero"),
        "yaxis": titled("ln amplitude"),
    }
    caption = f"Fall of the amplitudes with resolution, before sharpening: {fit.note}."
    return Plot("guinier", "Guinier plot", caption, data, layout)
