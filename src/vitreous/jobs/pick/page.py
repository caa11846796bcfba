"""The page of ``vitreous pick``: scores, counts, and picks on micrographs."""

from __future__ import annotations

import numpy as np

from vitreous.data.micrographs import Picks
from vitreous.io.atomic import atomic_write_text
from vitreous.jobs.pick.search import Search
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.summary import page_head
from vitreous.methods.pick.threshold import ScoreThreshold
from vitreous.report import figures
from vitreous.report.figures import Array
from vitreous.report.html import Picture, ReportData, picture, render_report
from vitreous.report.plots import Plot, line, titled

_SHOWN, _BINS = 6, 80


def write_pick_page(
    folder: OutputFolder,
    search: Search,
    peaks: list[Picks],
    picks: list[Picks],
    limit: ScoreThreshold,
) -> None:
    """Write the page, whole or not at all.

    Args:
        folder: of the run.
        search: what was looked for.
        peaks: all peaks, by micrograph.
        picks: those taken as particles.
        limit: threshold of the scores.

    Raises:
        ResourceError: the disk is full.
    """
    count = sum(map(len, picks))
    verdict = f"{count:,} particles in {len(picks)} micrographs"
    data = ReportData(
        **page_head(folder, "Particles of micrographs", verdict),
        key_numbers={
            "particles": f"{count:,}",
            "by micrograph": f"{count / max(1, len(picks)):.0f}",
            "threshold": f"{limit.threshold:.3f}",
            "protein": "dark" if search.dark else "light",
        },
        pixel_size_angstrom=search.pixel_size_angstrom,
        more_title="Picks",
        more_plots=[_histogram(peaks, limit), _by_micrograph(search, picks)],
        more_pictures=_pictures(search, picks),
    )
    atomic_write_text(folder.path("report.html"), render_report(data))


def _histogram(peaks: list[Picks], limit: ScoreThreshold) -> Plot:
    counts, edges = np.histogram(np.concatenate([one.scores for one in peaks]), _BINS)
    line_at = {"type": "line", "x0": limit.threshold, "x1": limit.threshold, "y0": 0, "y1": 1}
    style = {"yref": "paper", "line": {"color": "--muted", "dash": "dash"}}
    layout = {
        "xaxis": titled("score"),
        "yaxis": titled("peaks", rangemode="tozero"),
        "shapes": [line_at | style],
    }
    curve = line("peaks", (edges[1:] + edges[:-1]) / 2, counts, "--series1")
    caption = "Peaks of the correlation by score; those right of the dashed line are particles."
    return Plot("scores", "Scores", caption, [curve], layout)


def _by_micrograph(search: Search, picks: list[Picks]) -> Plot:
    names = [search.files.names[one.number] for one in picks]
    medians = [float(np.median(one.scores)) if len(one) else float("nan") for one in picks]
    points = line("micrographs", list(map(len, picks)), medians, "--series1")
    points |= {"mode": "markers", "text": names, "hovertemplate": "%{text}<br>%{x}, %{y:.2f}"}
    layout = {
        "xaxis": titled("particles", rangemode="tozero"),
        "yaxis": titled("median score"),
        "hovermode": "closest",
    }
    caption = (
        "A micrograph that scores far below the others has drift, no particles or a wrong CTF."
    )
    return Plot("micrographs", "Micrographs", caption, [points], layout)


def _pictures(search: Search, picks: list[Picks]) -> list[Picture]:
    """Return pictures of micrographs with a ring around every particle."""
    places = np.unique(np.linspace(0, len(picks) - 1, min(_SHOWN, len(picks))).round().astype(int))
    pictures = []
    for one in (picks[place] for place in places.tolist()):
        image = search.coarse(one.number)[0].numpy()
        name = search.files.names[one.number].rpartition("/")[2]
        radius = search.options.diameter_angstrom / 2 / search.coarse_pixel_angstrom
        ringed = with_rings(image, (one.centres + 0.5) / search.factor - 0.5, radius)
        caption = f"{name}: {len(one)} particles"
        pictures.append(picture(ringed, None, f"Picks on {name}", caption))
    return pictures


def with_rings(image: Array, centres: Array, radius_px: float) -> Array:
    """Return an image ``(ny, nx)`` with white rings about centres ``(k, 2)`` (x, y).

    >>> with_rings(np.zeros((9, 9)), np.array([[4.0, 4.0]]), 3.0)[4].tolist()
    [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    low, high = figures.contrast_limits(image)
    ringed = np.clip(image, low, high)
    angle = np.linspace(0, 2 * np.pi, max(16, int(8 * radius_px)), endpoint=False)
    ring = radius_px * np.stack([np.cos(angle), np.sin(angle)], -1)
    x, y = np.round(centres[:, None] + ring).reshape(-1, 2).astype(int).T
    ny, nx = image.shape
    inside = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
    ringed[y[inside], x[inside]] = high
    return ringed
