"""Self-contained HTML report of a reconstruction, without other files or network requests.

Everything is inline (pictures as data URIs, the surfaces' maps and plotly.js once and compressed),
every string is escaped, and a Content-Security-Policy in the page forbids the browser to fetch
anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vitreous import __version__
from vitreous.core.resolution import angstrom
from vitreous.io.atomic import atomic_write_text
from vitreous.report import figures
from vitreous.report.figures import Array
from vitreous.report.plots import Plot, fsc_plot, history_plots
from vitreous.report.surface import Surface, packed, shaded_picture, surface_data

MAX_PARTICLES = 8
MONTAGE_SECTIONS = 24
MONTAGE_COLUMNS = 8


@dataclass(frozen=True)
class Resolution:
    """Row of the resolution table: compared maps, and their resolutions in Å."""

    label: str
    at_0143_angstrom: float
    at_05_angstrom: float


@dataclass(frozen=True)
class PageData:
    """Content that every page has; values that are empty or None are left out.

    Args:
        title: name of the run.
        verdict: the result and its reliability in one sentence.
        subtitle: line under the title (input, date).
        warnings: shown under the verdict.
        key_numbers: label to value, the cards at the top ("particles per half": "5,000").
        settings: option to value, printed as a table.
    """

    title: str
    verdict: str
    _: KW_ONLY
    subtitle: str = ""
    warnings: Sequence[str] = ()
    key_numbers: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData(PageData):
    """Content of the page on a map.

    Args:
        pixel_size_angstrom: pixel size in Å of ``volume`` and of the particle images.
        volume: final map ``(z, y, x)``.
        surfaces: maps shown as surfaces; ``volume`` alone where there are none.
        fsc_curves: label to (frequency in 1/Å, correlation).
        resolutions: rows of the resolution table.
        history: rows as in ``history.jsonl``: ``step``, ``half`` and any keys of
            :data:`vitreous.report.plots.HISTORY_PLOTS`.
        more_title: heading of a section for plots and pictures of one command.
        more_plots, more_pictures: plots and pictures of that section.
        clean_projections, ctf_projections, simulated_images, real_images: ``(k, n, n)``, the rows
            of CryoGAN's figure 3; each column of the first three shows one pose.
    """

    pixel_size_angstrom: float
    volume: Array | None = None
    surfaces: Sequence[Surface] = ()
    fsc_curves: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    resolutions: Sequence[Resolution] = ()
    history: Sequence[Mapping[str, Any]] = ()
    more_title: str = ""
    more_plots: Sequence[Plot] = ()
    more_pictures: Sequence[Picture] = ()
    clean_projections: Array | None = None
    ctf_projections: Array | None = None
    simulated_images: Array | None = None
    real_images: Array | None = None


@dataclass(frozen=True)
class Picture:
    """Image of the page: data URI, alternative text, caption."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class ParticleRow:
    """Labelled row of particle pictures."""

    label: str
    note: str
    pictures: list[Picture]


def write_report(path: Path, data: ReportData) -> None:
    """Write the page atomically.

    Args:
        path: the ``.html`` file.
        data: content of the page.

    Raises:
        ResourceError: the disk is full.
        ValueError: ``volume`` is not ``(z, y, x)``, or images are not ``(k, n, n)``.
    """
    atomic_write_text(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the page as text; see :func:`write_report`.

    >>> "<h1>Run 1</h1>" in render_report(ReportData("Run 1", "Nothing yet.", 2.0))
    True
    """
    volume = data.volume
    surfaces = data.surfaces or ([] if volume is None else [Surface("map", volume)])
    return render_page(
        "report.html.j2",
        data,
        list(_plots(data)),
        surface_view(surfaces, data.pixel_size_angstrom),
        slices=[] if volume is None else _map_pictures(volume, data.pixel_size_angstrom),
        sections=None if volume is None else _section_montage(volume, data.pixel_size_angstrom),
        box="" if volume is None else _box(volume.shape),
        particle_rows=_particle_rows(data),
        history=history_plots(data.history),
    )


def render_page(
    template: str,
    data: PageData,
    plots: Sequence[Plot],
    surfaces: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """Render a page with title, verdict, warnings and cards at the top, and interactive plots.

    Args:
        template: template that extends ``page.html.j2``.
        data: content of the page.
        plots: plots of the template.
        surfaces: from :func:`surface_view`.
        values: further values of the template; it escapes strings.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    traces = [{"key": plot.key, "data": plot.data, "layout": plot.layout} for plot in plots]
    environment = Environment(
        loader=PackageLoader("vitreous.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["angstrom"] = angstrom
    environment.filters["json"] = _script_json
    environment.filters["program"] = _program
    text: str = environment.get_template(template).render(
        data=data,
        version=__version__,
        plots=plots,
        traces=traces,
        plotly_js=packed(_report_file("vendor/plotly-basic.min.js")) if plots else "",
        surfaces=surfaces,
        **{"selection": None} | values,
    )
    return text


def surface_view(surfaces: Sequence[Surface], pixel_size_angstrom: float) -> dict[str, Any] | None:
    """Return what the template shows of surfaces; None without any density.

    Raises:
        ValueError: a map is not ``(z, y, x)``.
    """
    layers = surface_data(surfaces, pixel_size_angstrom)
    if not layers:
        return None
    first = next((one for one in layers if one["shown"]), layers[0])
    volume = next(one.volume for one in surfaces if one.name == first["name"])
    still = figures.enlarge(shaded_picture(volume).astype(float), 384)
    caption = (
        f"Surface of the {first['name']} along z at {first['level']:.2f} σ above the mean; it "
        "turns in a browser with JavaScript and WebGL"
    )
    return {
        "layers": layers,
        "still": picture(still, (0.0, 255.0), caption, caption),
        "level": first["level"],
        "highest": round(max(one["top"] for one in layers), 1),
    }


def _report_file(name: str) -> bytes:
    return resources.files("vitreous.report").joinpath(name).read_bytes()


def _plots(data: ReportData) -> Iterator[Plot]:
    if data.fsc_curves:
        yield fsc_plot(data.fsc_curves)
    yield from data.more_plots
    yield from history_plots(data.history)


def _script_json(value: Any) -> Any:
    """Encode JSON so that it cannot end the script element that contains it."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _program(name: str) -> Any:
    """Return a program beside the templates; text that would end its script element is escaped."""
    from markupsafe import Markup

    code = _report_file(f"templates/{name}").decode()
    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def picture(
    image: Array, limits: tuple[float, float] | None, alt: str, caption: str = ""
) -> Picture:
    """Encode an image ``(y, x)`` as an inline PNG with grey ``limits``, or its own."""
    png = figures.png_bytes(figures.to_gray(image, limits))
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return Picture(uri, alt, caption)


def _box(shape: tuple[int, ...]) -> str:
    """Format the edges x, y, z; equal edges as one number.

    >>> _box((64, 64, 64)), _box((32, 64, 64))
    ('64', '64 x 64 x 32')
    """
    return str(shape[0]) if len(set(shape)) == 1 else " x ".join(map(str, reversed(shape)))


def _map_pictures(volume: Array, pixel_size_angstrom: float) -> list[Picture]:
    if volume.ndim != 3:
        raise ValueError(f"volume must be (z, y, x), got {volume.shape}")
    limits = figures.contrast_limits(volume, 0.1)
    edge = f"{volume.shape[2] * pixel_size_angstrom:.0f} Å wide"
    views = [
        (plane, limits, f"Central slice of the map in the {name} plane, {edge}", f"slice {name}")
        for name, plane in figures.central_slices(volume).items()
    ]
    for name, plane in figures.projections(volume).items():
        own = figures.contrast_limits(plane, 0.0)
        views.append((plane, own, f"Projection of the map {name}, {edge}", f"projection {name}"))
    return [
        picture(figures.enlarge(plane, 384), grey, alt, caption)
        for plane, grey, alt, caption in views
    ]


def _section_montage(volume: Array, pixel_size_angstrom: float) -> Picture:
    n = volume.shape[0]
    indices = figures.z_section_indices(n, MONTAGE_SECTIONS)
    sheet = figures.montage(
        np.stack([figures.enlarge(volume[i], 128) for i in indices]), MONTAGE_COLUMNS, gap_px=3
    )
    first, last = ((i - n // 2) * pixel_size_angstrom for i in (indices[0], indices[-1]))
    caption = f"{len(indices)} sections normal to z, from {first:+.0f} Å to {last:+.0f} Å"
    return picture(sheet, figures.contrast_limits(volume, 0.1), caption + " of the centre", caption)


def _particle_rows(data: ReportData) -> list[ParticleRow]:
    candidates = (
        ("projection", "of the map, no CTF, no noise", data.clean_projections),
        ("with CTF", "the same, after shift and CTF", data.ctf_projections),
        ("simulated", "the same, with noise: input of the critic", data.simulated_images),
        ("real", "particles of the data set (not the same views)", data.real_images),
    )
    rows = []
    for label, note, images in candidates:
        if images is None or not len(images):
            continue
        if images.ndim != 3:
            raise ValueError(f"{label} images must be (k, n, n), got {images.shape}")
        pictures = [
            picture(figures.enlarge(image, 160), None, f"{label} image {i + 1}")
            for i, image in enumerate(images[:MAX_PARTICLES])
        ]
        rows.append(ParticleRow(label, note, pictures))
    return rows
