"""The page of ``vitreous check``: findings, the curves behind them, and images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitreous.data.particles import Particles
from vitreous.doctor.ctf import FIRST_SHELL, CtfTest
from vitreous.doctor.examine import Diagnosis
from vitreous.doctor.poses import PoseTest
from vitreous.io.atomic import atomic_write_text
from vitreous.report import figures
from vitreous.report.figures import Array
from vitreous.report.html import PageData, ParticleRow, picture, render_page
from vitreous.report.plots import Plot, fsc_plot, line, numbers, titled

SHOWN = 8
MARKS = {"ok": "ok", "wrong": "WRONG", "unclear": "cannot tell", "note": "note"}


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
    box, pixel = diagnosis.statistics.box_size, diagnosis.corrected.pixel_size_angstrom
    cards = {
        "images": f"{len(images):,}",
        "box": f"{box} px",
        "pixel size": f"{pixel:.4g} Å",
        "wrong": str(len(diagnosis.faults)),
    }
    page = render_page(
        "check.html.j2",
        PageData("Particle check", verdict, subtitle=name, key_numbers=cards),
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
    layout = {"xaxis": titled("log-likelihood above no rings"), "yaxis": {"automargin": True}}
    caption = (
        "How much better each set of CTF parameters explains the images' power spectra than no "
        "CTF at all; the table's own in another colour."
    )
    return Plot("ctf", "Which CTF explains the rings", caption, [bars], layout)


def _spectra(test: CtfTest, width_angstrom: float) -> Plot:
    frequency = (np.arange(len(test.noise)) + FIRST_SHELL) / width_angstrom
    noise, signal = (
        [v if v > 1e-4 else float("nan") for v in values.tolist()]
        for values in (test.noise, test.signal)
    )
    data = [
        line("noise", frequency, noise, "--series1"),
        line("signal before the CTF", frequency, signal, "--series2"),
    ]
    layout = {
        "xaxis": titled("frequency (1/Å)", rangemode="tozero"),
        "yaxis": titled("power", type="log"),
    }
    caption = "Fitted to the power spectra; signal is all that follows the CTF, ice and carbon too."
    return Plot("spectra", "Signal and noise by frequency", caption, data, layout)


def _halves(test: PoseTest) -> Plot:
    width = test.box_size * test.pixel_size_angstrom
    curves = test.curves.items()
    plot = fsc_plot({name: (np.arange(len(c)) / width, c.numpy()) for name, c in curves})
    caption = (
        "Quick reconstructions of two half sets, with the table's poses and with the same poses "
        "dealt out at random. True poses correlate farthest."
    )
    return Plot("poses", "What half maps share", caption, plot.data, plot.layout)


def _profile(profile: Array, width_angstrom: float) -> Plot:
    radius = np.arange(len(profile)) * width_angstrom / (2 * len(profile))
    data = [line("variance", radius, profile, "--series1")]
    layout = {"xaxis": titled("radius (Å)"), "yaxis": titled("variance")}
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
