"""Plots of reports on maps: viewing directions, Guinier plot, histograms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from vitreous.core.resolution import angstrom
from vitreous.core.symmetry import point_group
from vitreous.maps.directional_fsc import CONE_DEG, fsc_by_direction
from vitreous.maps.fsc import CUTOFF, fsc_resolution
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.postprocess import Postprocessed
from vitreous.maps.sharpening import Guinier
from vitreous.metrics.sampling import (
    HALF_WIDTH_DEG,
    FourierSampling,
    fibonacci_hemisphere,
    fourier_sampling,
)
from vitreous.report.figures import Array
from vitreous.report.plots import Plot, fsc_plot, line, numbers, titled

EMPTY = -600.0  # of a logarithm: the FSC is not above zero there
_DIRECTIONS = 800  # over the sphere
_MOST_VIEWS = 200_000  # that are looked at, symmetry copies included
_MOST_EMPTY = 0.02  # share of directions of Fourier space without image from which to warn
_FEWEST_SLICES = 8.0  # mean number of slices through a direction; with fewer, chance empties some


@dataclass(frozen=True)
class ViewDensity:
    """How densely particles are seen from each direction, by :func:`view_density`.

    Args:
        directions: ``(k, 3)`` unit vectors, evenly over the sphere.
        density: ``(k,)`` views nearest to each, 1 on average.
        views: number of views, symmetry copies included.
        sampling: of Fourier space.
    """

    directions: Tensor
    density: Array
    views: int
    sampling: FourierSampling

    @property
    def highest(self) -> float:
        """End of the scale of colours."""
        return max(2.0, round(float(np.quantile(self.density, 0.99)), 1))

    @property
    def note(self) -> str:
        """Sampling compensation factor and empty directions in one sentence."""
        return (
            f"Sampling compensation factor {self.sampling.scf:.2f} (1: uniform); "
            f"{100 * self.sampling.empty:.1f} % of the directions of Fourier space are in no image."
        )

    def angles_deg(self) -> tuple[Tensor, Tensor]:
        """Return rot and tilt of the directions in degrees."""
        x, y, z = self.directions.mT
        return torch.atan2(y, x).rad2deg(), z.acos().rad2deg()

    def picture(self, rows: int) -> Array:
        """Return the densities in Hammer's projection, ``(rows, 2 rows)``, NaN off the sphere."""
        y = math.sqrt(2) * (1 - (torch.arange(rows) + 0.5) / rows * 2)[:, None]
        x = 2 * math.sqrt(2) * ((torch.arange(2 * rows) + 0.5) / rows - 1)
        squared = (1 - (x / 4).square() - (y / 2).square()).clamp(min=0.5)
        on_sphere = x.square() / 8 + y.square() / 2 <= 1
        rot = 2 * torch.atan2(squared.sqrt() * x, 2 * (2 * squared - 1))
        height = (squared.sqrt() * y).clamp(-1, 1)
        flat = (1 - height.square()).sqrt()
        points = torch.stack([flat * rot.cos(), flat * rot.sin(), height], -1)
        nearest = cKDTree(self.directions.numpy()).query(points.numpy())[1]
        return np.where(on_sphere, self.density[nearest], np.nan)


def view_density(rotations: Tensor, symmetry: str) -> ViewDensity:
    """Count views by direction.

    ``rotations (b, 3, 3)`` take volume to particle coordinates; a view is the particle's z axis.
    Those that ``symmetry`` makes of one count as well.
    """
    matrices = point_group(symmetry).matrices.cpu()
    rotations = rotations[:: max(1, len(rotations) * len(matrices) // _MOST_VIEWS)].double().cpu()
    views = (rotations[:, 2] @ matrices).flatten(0, 1)
    sampling = fourier_sampling((rotations[:, None] @ matrices).flatten(0, 1))
    upper = fibonacci_hemisphere(_DIRECTIONS // 2)
    directions = torch.cat([upper, -upper])
    nearest = cKDTree(directions.numpy()).query(views.numpy())[1]
    density = np.bincount(nearest, minlength=len(directions)) * len(directions) / len(views)
    return ViewDensity(directions, density, len(views), sampling)


def view_plot(rotations: Tensor, symmetry: str) -> tuple[Plot, list[str]]:
    """Plot the :func:`view_density`; warn of what no image measures.

    The sphere is drawn in Hammer's equal-area projection, rot from -180 to 180 degrees to the right
    and tilt from 0 at the top.

    Returns:
        the plot, and the warnings.
    """
    seen = view_density(rotations, symmetry)
    layout = {
        "xaxis": {"visible": False, "range": [-2.9, 2.9]},
        "yaxis": {"visible": False, "range": [-1.5, 1.5], "scaleanchor": "x"},
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 5, "r": 5, "t": 8, "b": 60},
    }
    caption = (
        "Views by direction, with symmetry copies, relative to uniform ones (1); grey: none. Rot "
        f"runs from -180° to 180° to the right, tilt from 0° at the top. {seen.note}"
    )
    empty = seen.sampling.empty
    slices = seen.views * math.sin(math.radians(HALF_WIDTH_DEG))
    missing = empty > _MOST_EMPTY and slices > _FEWEST_SLICES
    warning = (
        f"Views are missing: {100 * empty:.0f} % of the directions of Fourier space are "
        "in no image, so the map is smeared along them; see the viewing directions."
    )
    plot = Plot("views", "Viewing directions", caption, _sphere(seen), layout)
    return plot, [warning] if missing else []


def _sphere(seen: ViewDensity) -> list[dict[str, Any]]:
    """Return traces of the sphere's rim, its directions, and those that have views, coloured."""
    density, (rot, tilt) = seen.density, seen.angles_deg()
    filled = density > 0
    x, y = (one.numpy() for one in hammer(rot.deg2rad(), math.pi / 2 - tilt.deg2rad()))
    angles = torch.stack([rot, tilt], -1).round().int()
    common = {"type": "scatter", "mode": "markers"}
    points = common | {
        "x": numbers(x[filled]),
        "y": numbers(y[filled]),
        "marker": {
            "size": 7,
            "color": numbers(density[filled].round(2)),
            "cmin": 0,
            "cmax": seen.highest,
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
        "customdata": angles[filled].tolist(),
        "hovertemplate": "rot %{customdata[0]}°, tilt %{customdata[1]}°: "
        "%{marker.color:.3g}<extra></extra>",
    }
    marker = {"size": 4, "color": "--line"}
    none = common | {"x": numbers(x), "y": numbers(y), "marker": marker, "hoverinfo": "skip"}
    turn = np.linspace(0, 2 * math.pi, 121)
    rim = line("", 2 * math.sqrt(2) * np.cos(turn), math.sqrt(2) * np.sin(turn), "--line", 1)
    return [rim | {"hoverinfo": "skip"}, none, points]


def hammer(longitude: Tensor, latitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return Hammer's equal-area projection of angles in radians."""
    scale = math.sqrt(2) / (1 + latitude.cos() * (longitude / 2).cos()).sqrt()
    return 2 * scale * latitude.cos() * (longitude / 2).sin(), scale * latitude.sin()


def directional_plot(halves: Halves, mask: Tensor, pixel_size_angstrom: float) -> Plot:
    """Plot the spread over directions of the FSC between masked half maps."""
    n = len(mask)
    directions, curves = fsc_by_direction(halves.half1 * mask, halves.half2 * mask)
    at = [fsc_resolution(curve, CUTOFF, n, pixel_size_angstrom) for curve in curves]
    order = sorted(range(len(at)), key=at.__getitem__)
    best, worst = (order[round(share * (len(at) - 1))] for share in (0.05, 0.95))
    frequency = np.arange(n // 2 + 1) / (n * pixel_size_angstrom)
    spread = {
        "median of the directions": curves.quantile(0.5, dim=0),
        "95 % are below": curves.quantile(0.95, dim=0),
        "95 % are above": curves.quantile(0.05, dim=0),
    }
    axis = ", ".join(f"{v:.2f}" for v in directions[order[-1]].tolist())
    caption = (
        f"FSC between half maps within the mask, in cones of {CONE_DEG:.0f}° about {len(at)} "
        f"directions: 90 % of them reach 0.143 between {angstrom(at[best])} and "
        f"{angstrom(at[worst])}; the worst is along x, y, z {axis}. Not corrected for the mask."
    )
    plot = fsc_plot({name: (frequency, curve.numpy()) for name, curve in spread.items()})
    return replace(plot, key="directions", title="FSC by direction", caption=caption)


def sharpening_plots(post: Postprocessed) -> list[Plot]:
    """Return the Guinier plot and, where it is known, the histogram of the local resolution."""
    plots = [_guinier_plot(post.sharpened.guinier)]
    if post.local_resolution is not None:
        plots.append(local_histogram(post.local_resolution, post.mask))
    return plots


def local_histogram(resolution: Tensor, mask: Tensor) -> Plot:
    """Return the histogram of local resolutions, Å, within a mask."""
    caption = "Share of the mask at each local resolution."
    return histogram("local", "Local resolution", caption, resolution[mask > 0.5], "Å", "mask")


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
