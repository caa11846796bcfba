"""The page of ``vitreous check``: findings, the curves behind them, and images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitreous.data.particles import Particles
from vitreous.doctor.ctf import FIRST_SHELL, CtfTest
from vitreous.doctor.examine import Diagnosis
from vitreous.doctor.poses import PoseTest
from vitreous.io.atomic import atomic_write_text
from vitreous.report import figures
from vitreous.report.figures import Array
from vitreous.report.html import ParticleRow, picture, render_page
from vitreous.report.plots import Plot, fsc_plot, numbers

SHOWN = 8
MARKS = {"ok": "ok", "wrong": "WRONG", "unclear": "cannot tell", "note": "note"}


@dataclass(frozen=True)
class _Head:
    title: str
    verdict: str
    subtitle: str
    key_numbers: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def write_check_page(
    path: Path, name: str, verdict: str, images: Particles, diagnosis: Diagnosis
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the ``.html`` file.
        name: name of the particle table.
        verdict: one line on the whole.
        images: images that were examined.
        diagnosis: result of the examination.

    Raises:
        ResourceError: the disk is full.
    """
    box = diagnosis.statistics.box_size
    pixel = diagnosis.corrected.pixel_size_angstrom
    cards = {
        "images": f"{len(images):,}",
        "box": f"{box} px",
        "pixel size": f"{pixel:.4g} Å",
        "wrong": str(len(diagnosis.faults)),
    }
    page = render_page(
        "check.html.j2",
        _Head("Particle check", verdict, name, cards),
        list(_plots(diagnosis, pixel * box)),
        findings=diagnosis.findings,
        marks=MARKS,
        rows=list(_rows(images, diagnosis)),
    )
    atomic_write_text(path, page)


def _plots(diagnosis: Diagnosis, width_angstrom: float) -> Iterator[Plot]:
    if diagnosis.ctf is not None:
        yield _likelihoods(diagnosis.ctf)
        yield _spectra(diagnosis.ctf, width_angstrom)
    if diagnosis.poses is not None:
        yield _halves(diagnosis.poses)
    if diagnosis.contrast is not None:
        yield _profile(diagnosis.contrast.profile.numpy(), width_angstrom)


def _likelihoods(test: CtfTest) -> Plot:
    order = sorted(range(len(test.totals)), key=lambda i: test.totals[i])
    labels = [test.hypotheses[i].claim for i in order]
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": "log-likelihood",
        "x": numbers([max(0.0, test.totals[i]) for i in order]),
        "y": labels,
        "marker": {"color": ["--series2" if i == 0 else "--series1" for i in order]},
        "hovertemplate": "%{x:.0f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "log-likelihood above no rings"}},
        "yaxis": {"automargin": True},
    }
    return Plot(
        "ctf",
        "Which CTF explains the rings",
        "How much better each set of CTF parameters explains the images' power spectra than no "
        "CTF at all; the table's own in another colour.",
        [bars],
        layout,
    )


def _spectra(test: CtfTest, width_angstrom: float) -> Plot:
    frequency = (np.arange(len(test.noise)) + FIRST_SHELL) / width_angstrom
    curves = (
        ("noise", test.noise, "--series1"),
        ("signal before the CTF", test.signal, "--series2"),
    )
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": numbers(frequency),
            "y": numbers([v if v > 1e-4 else float("nan") for v in values.tolist()]),
            "line": {"color": colour, "width": 2},
        }
        for name, values, colour in curves
    ]
    layout = {
        "xaxis": {"title": {"text": "frequency (1/Å)"}, "rangemode": "tozero"},
        "yaxis": {"type": "log", "title": {"text": "power"}},
    }
    caption = "Fitted to the power spectra; signal is all that follows the CTF, ice and carbon too."
    return Plot("spectra", "Signal and noise by frequency", caption, data, layout)


def _halves(test: PoseTest) -> Plot:
    width = test.box_size * test.pixel_size_angstrom
    curves = {
        label: (np.arange(len(curve)) / width, curve.numpy())
        for label, curve in test.curves.items()
    }
    plot = fsc_plot(curves)
    caption = (
        "Quick reconstructions of two half sets, with the table's poses and with the same poses "
        "dealt out at random. True poses correlate farthest."
    )
    return Plot("poses", "What half maps share", caption, plot.data, plot.layout)


def _profile(profile: Array, width_angstrom: float) -> Plot:
    radius = np.arange(len(profile)) * width_angstrom / (2 * len(profile))
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "variance",
            "x": numbers(radius),
            "y": numbers(profile),
            "line": {"color": "--series1", "width": 2},
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "radius (Å)"}},
        "yaxis": {"title": {"text": "variance"}},
    }
    caption = (
        "Variance over all images, relative to the surroundings: the particle and its fringes."
    )
    return Plot("profile", "Where the particles are", caption, data, layout)


def _rows(images: Particles, diagnosis: Diagnosis) -> Iterator[ParticleRow]:
    odd = diagnosis.suspects
    if diagnosis.contrast is not None:
        average = figures.enlarge(diagnosis.contrast.average.numpy(), 160)
        shown = [picture(average, None, "average of all images")]
        yield ParticleRow("average", "of all images, after the sign of the CTF", shown)
    kinds = (
        ("first images", "as they are in the file", tuple(range(min(SHOWN, len(images))))),
        ("outliers", "far brighter or stronger than the rest", odd.outlying),
        ("clipped", "at their extremes", odd.clipped),
        ("copies", "of other images", odd.repeated),
    )
    for label, note, places in kinds:
        if places:
            read = images.read(list(places[:SHOWN])).nan_to_num(0.0, 0.0, 0.0).numpy()
            shown = [
                picture(figures.enlarge(image, 160), None, f"{label}, image {place + 1}")
                for image, place in zip(read, places, strict=False)
            ]
            yield ParticleRow(label, note, shown)
