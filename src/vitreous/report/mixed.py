"""Report on mixed particles and 2D classes: embedding, clusters, their maps, maps along them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.io.atomic import atomic_write_text
from vitreous.io.star import StarDocument
from vitreous.report import figures
from vitreous.report.figures import Array
from vitreous.report.html import PageData, ParticleRow, Picture, picture, render_page, surface_view
from vitreous.report.plots import CURVE_COLOURS, Plot, Series, history_traces, numbers, titled
from vitreous.report.selection import selection_data
from vitreous.report.surface import Surface

MAX_SHOWN = 10_000  # points of the scatter plot
MAX_CURVES = 12
MAX_SURFACES = 12  # classes, the largest first; the first four are drawn when the page opens
MAX_PATHS = 4  # of the largest classes, for the slider along a class
_WIDTH = 160
_NO_CURVES = ("step", "pass", "progress", "seconds", "half", "iteration", "epoch", "box")


@dataclass(frozen=True)
class ClusterSummary:
    """A cluster in the report."""

    name: str  # such as ``class 1``
    size: int  # particles
    volume: Array | None = None  # its map ``(z, y, x)``, None without
    resolution: str = ""  # in words, empty where it is not known
    # maps ``(k, z, y, x)`` along its first principal component, may be empty
    path: Sequence[Array] = ()
    share: float | None = None  # of the cluster's variance along that component


@dataclass(frozen=True)
class MixedReport(PageData):
    """Content of the report; empty parts are left out."""

    plane: Array | None = None  # ``(n, 2)``, the embedding
    axes: tuple[str, str] = ("", "")  # their names
    label: NDArray[np.integer] | None = None  # ``(n,)`` class from 1 on, 0 for noise
    # name to ``(n,)`` numbers that the embedding can be coloured by
    columns: Mapping[str, Array] = field(default_factory=dict)
    clusters: Sequence[ClusterSummary] = ()  # in the order of their numbers
    particles: int = 0  # their number
    # ``particles.star``; with it and ``label`` particles can be selected in the page
    table: StarDocument | None = None
    pixel_size_angstrom: float = 1.0  # of the clusters' maps
    history: Sequence[Mapping[str, Any]] = ()  # rows of ``history.jsonl``
    images: Array | None = None  # ``(k, n, n)``, class averages
    sizes: Sequence[int] = ()  # particles of each class


def write_mixed_report(path: Path, data: MixedReport) -> None:
    """Write the report, whole or not at all.

    Raises:
        ResourceError: the disk is full.
        ValueError: columns of another length than the embedding.
    """
    atomic_write_text(path, render_mixed_report(data))


def render_mixed_report(data: MixedReport) -> str:
    """Return the report as text; see :func:`write_mixed_report`."""
    curves, embedding = stat_plots(data.history), None
    if data.plane is not None:
        embedding = embedding_plot(data.plane, data.label, data.columns, data.axes)
    selection = None
    if data.table is not None and data.label is not None:
        selection = selection_data(data.table, data.label, data.plane)
    maps = [_map_row(one) for one in data.clusters if one.volume is not None]
    return render_page(
        "mixed.html.j2",
        data,
        curves if embedding is None else [*curves, embedding],
        surface_view(_surfaces(data), data.pixel_size_angstrom),
        selection=selection,
        in_none=0 if data.label is None else int((data.label == 0).sum()),
        embedding=embedding,
        curves=curves,
        images=_class_images(data),
        maps=maps,
        projections={row.label: row.pictures[3] for row in maps},  # along z
        paths=[_path_row(one) for one in data.clusters if len(one.path)],
    )


def embedding_plot(
    plane: Array,
    label: NDArray[np.integer] | None,
    columns: Mapping[str, Array],
    axes: tuple[str, str] = ("", ""),
) -> Plot:
    """Plot an embedding ``(n, 2)``, with a menu that chooses the colours.

    ``label (n,)`` is the class from 1 on, 0 for noise; ``columns`` are further numbers ``(n,)`` by
    name, and ``axes`` the names of the axes. At most 10,000 points are shown, evenly spaced in the
    table.

    Raises:
        ValueError: columns of another length.

    >>> plot = embedding_plot(np.zeros((3, 2)), np.array([1, 1, 0]), {"defocus": np.arange(3.0)})
    >>> [button["label"] for button in plot.layout["updatemenus"][0]["buttons"]]
    ['class', 'defocus']
    """
    count = len(plane)
    wrong = {name: len(column) for name, column in columns.items() if len(column) != count}
    if wrong or (label is not None and len(label) != count):
        raise ValueError(f"{count} points, but columns {wrong or 'of labels'} of another length")
    rows = np.unique(np.linspace(0, count - 1, min(count, MAX_SHOWN)).round().astype(int))
    colours = {name: _coloured(np.asarray(column)[rows], name) for name, column in columns.items()}
    if label is not None:
        colours = {"class": _classes(np.asarray(label)[rows]), **colours}
    marker = {"size": 4 if len(rows) > 1000 else 6, "opacity": 0.75}
    first = next(iter(colours.values()), {"color": "--series1"})
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": "particles",
        "x": numbers(plane[rows, 0]),
        "y": numbers(plane[rows, 1]),
        "marker": {**marker, **first},
        "customdata": (rows + 1).tolist(),
        "unselected": {"marker": {"opacity": 0.06}},
        "hovertemplate": "particle %{customdata}<br>%{marker.color:.5g}<extra></extra>",
    }
    layout = {
        "xaxis": titled(axes[0], zeroline=False),
        "yaxis": titled(axes[1], zeroline=False),
        "hovermode": "closest",
        "showlegend": False,
        "margin": {"l": 55, "r": 12, "t": 40, "b": 45},
        "updatemenus": [_colour_menu(colours)] if len(colours) > 1 else [],
    }
    subset = f" {len(rows):,} of {count:,} are shown." if len(rows) < count else ""
    caption = (
        "Every point is a particle; the model sees neighbouring ones alike. The menu chooses what "
        f"colours them.{subset}"
    )
    return Plot("embedding", "Embedding", caption, [points], layout)


def _colour_menu(colours: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the menu that chooses the colours of an embedding."""
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{f"marker.{key}": [value] for key, value in choice.items()}],
        }
        for name, choice in colours.items()
    ]
    return {
        "buttons": buttons,
        "active": 0,
        "x": 0,
        "xanchor": "left",
        "y": 1.01,
        "yanchor": "bottom",
        "bgcolor": "--card",
        "bordercolor": "--line",
        "font": {"color": "--text"},
    }


def _classes(label: NDArray[np.integer]) -> dict[str, Any]:
    """Return the colours of classes; noise is pale."""
    highest = max(1, int(label.max(initial=1)))
    colours = ["--line", *(CURVE_COLOURS[k % len(CURVE_COLOURS)] for k in range(highest))]
    steps = [
        [edge, colour]
        for k, colour in enumerate(colours)
        for edge in (k / len(colours), (k + 1) / len(colours))
    ]
    ticks = list(range(highest + 1)) if highest <= 20 else []
    return {
        "color": [int(v) for v in label],
        "cmin": -0.5,
        "cmax": highest + 0.5,
        "colorscale": steps,
        "showscale": True,
        "colorbar": titled(
            "class", tickvals=ticks, ticktext=["none" if k == 0 else str(k) for k in ticks]
        ),
    }


def _coloured(values: Array, name: str) -> dict[str, Any]:
    low, high = figures.contrast_limits(values.astype(float), 1.0)
    return {
        "color": numbers(values),
        "cmin": low,
        "cmax": high,
        "colorscale": "Viridis",
        "showscale": True,
        "colorbar": titled(name),
    }


_MEANING = {  # of statistics in the history; K stands for the number of a component
    "information_K": (
        "component K",
        "Information of an image about its coordinate along component K, relative to the spread of "
        "the particles: above 1 there is variation, below there is little or none.",
    ),
    "band_angstrom": ("finest detail compared, Å", "Images are compared up to this resolution."),
    "agreeing_angstrom": (
        "halves agree up to, Å",
        "Resolution to which the half averages of all classes agree; they were aligned to the same "
        "class averages. The next round compares little beyond it.",
    ),
    "posterior": (
        "certainty",
        "Mean probability of a particle's best class, rotation and shift among the best few "
        "candidates.",
    ),
    "log_likelihood_ratio": (
        "log-likelihood ratio",
        "How much better class images explain the particles than noise alone does, in units of the "
        "noise's power.",
    ),
    "smallest_class": (
        "smallest class",
        "Its particles in the round; the last rounds use all particles, the others a subset.",
    ),
    "contrast_spread": ("spread of contrasts", "Standard deviation of the images' contrasts."),
    "wasserstein": (
        "Wasserstein distance",
        "How well the critic separates real images from simulated ones; it falls as they become "
        "similar.",
    ),
    "kl": ("divergence of latents", "Of the encoder's latents from the prior; 0: no information."),
    "latent_loss": (
        "latent loss",
        "Negative log-likelihood of the latents of simulated images under the encoder; 0.5: no "
        "information.",
    ),
}


def meaning(name: str) -> tuple[str, str]:
    """Return title and caption of a statistic in the history.

    >>> meaning("information_2")[0], meaning("signal")
    ('component 2', ('signal', 'signal, mean since the row before'))
    """
    start, _, last = name.rpartition("_")
    key, number = (f"{start}_K", last) if last.isdigit() else (name, "")
    if key in _MEANING:
        title, caption = (text.replace("K", number) if number else text for text in _MEANING[key])
        return title, caption
    title = name.replace("_", " ")
    return title, f"{title}, mean since the row before"


def stat_plots(history: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plot each statistic that a solver reported during training.

    >>> [plot.title for plot in stat_plots([{"step": 1, "kl": 0.5}, {"step": 2, "kl": 0.4}])]
    ['divergence of latents']
    """
    names = dict.fromkeys(name for row in history for name in row if name not in _NO_CURVES)
    plots = []
    for name in list(names)[:MAX_CURVES]:
        traces = history_traces(history, Series(name, name))
        if not traces:
            continue
        layout = {"xaxis": titled("step", rangemode="tozero"), "showlegend": False}
        title, caption = meaning(name)
        key = "stat-" + "".join(c if c.isalnum() else "-" for c in name)
        plots.append(Plot(key, title, caption, traces, layout))
    return plots


def _class_images(data: MixedReport) -> list[Picture]:
    """Return the class averages, each in a grey range of its own."""
    if data.images is None:
        return []
    return [
        picture(figures.enlarge(image, _WIDTH), None, f"class {k}", f"{k}: {size:,}")
        for k, (image, size) in enumerate(zip(data.images, data.sizes, strict=True), 1)
    ]


def _surfaces(data: MixedReport) -> list[Surface]:
    """Return the maps of the clusters as surfaces, and those along the largest."""
    maps = [(one.name, one.volume) for one in data.clusters if one.volume is not None]
    paths = [(f"along {one.name}", one.path) for one in data.clusters if len(one.path) > 1]
    alone = len(data.clusters) == 1
    return [
        Surface(name, volume, shown=i < 4) for i, (name, volume) in enumerate(maps[:MAX_SURFACES])
    ] + [
        Surface(name, path[len(path) // 2], shown=alone, path=path)
        for name, path in paths[:MAX_PATHS]
    ]


def _map_row(cluster: ClusterSummary) -> ParticleRow:
    """Return central slices, then projections, of a cluster's map."""
    volume = cluster.volume
    assert volume is not None
    limits = figures.contrast_limits(volume, 0.1)
    shown = [
        picture(figures.enlarge(plane, _WIDTH), range_shown, f"{cluster.name}, {kind} {name}")
        for kind, planes, range_shown in (
            ("slice", figures.central_slices(volume), limits),
            ("projection", figures.projections(volume), None),
        )
        for name, plane in planes.items()
    ]
    note = f"{cluster.size:,} particles" + (f", {cluster.resolution}" if cluster.resolution else "")
    return ParticleRow(cluster.name, note, shown)


def _path_row(cluster: ClusterSummary) -> ParticleRow:
    """Return projections along z of the maps along a cluster, in one grey range."""
    sums = [figures.projections(volume)["along z"] for volume in cluster.path]
    limits = figures.contrast_limits(np.stack(sums), 0.1)
    shown = [
        picture(figures.enlarge(plane, _WIDTH), limits, f"{cluster.name}, map {k} of the path")
        for k, plane in enumerate(sums, 1)
    ]
    note = "first principal component"
    if cluster.share is not None:
        note += f", {100 * cluster.share:.0f} % of the variance"
    return ParticleRow(cluster.name, note, shown)
