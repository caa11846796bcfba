"""Pages in Chromium: surfaces turn, levels change them, nothing fails, nothing is asked for."""

import shutil

import numpy as np
import pytest

from vitreous.report.html import ReportData, write_report
from vitreous.report.mixed import ClusterSummary, MixedReport, write_mixed_report
from vitreous.report.surface import Surface

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NO_WEBGL = "HTMLCanvasElement.prototype.getContext = () => null"


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Open a page of a width; it must neither complain nor ask for anything."""
    complaints, pages = [], []

    def open_page(path, width=1200, script=None):
        page = chromium.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith(("data:", path.as_uri()))
                else complaints.append(asked.url)
            ),
        )
        if script:
            page.add_init_script(script)
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def lumps(seed):
    """Three balls in a box."""
    rng, n = np.random.default_rng(seed), 48
    index = np.stack(np.indices((n, n, n)), -1)
    return sum(
        np.exp(-((index - n / 2 - rng.uniform(-9, 9, 3)) ** 2).sum(-1) / 60) for _ in range(3)
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    resolution = np.broadcast_to(np.linspace(4, 8, 48), (48, 48, 48))
    surfaces = [Surface("map", lumps(0), resolution), Surface("half map 1", lumps(1), shown=False)]
    curve = (np.arange(25) / 240, np.linspace(1, 0, 25))
    history = [{"step": step, "snr_db": -step} for step in range(3)]
    data = ReportData("run", "Fine.", pixel_size_angstrom=5.0, surfaces=surfaces, history=history)
    write_report(path, ReportData(**vars(data) | {"fsc_curves": {"halves": curve}}))
    return path


def triangles(page):
    return int(page.locator("#stage").get_attribute("data-triangles"))


def pixels(page):
    page.wait_for_timeout(300)
    return page.locator("#stage").screenshot()


def test_the_surface_turns_zooms_and_follows_the_level(opened, report):
    page = opened(report)
    page.wait_for_selector("#stage[data-milliseconds]")
    seen = [pixels(page)]
    box = page.locator("#stage").bounding_box()
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] + 90, centre[1] + 40)
    page.mouse.up()
    seen.append(pixels(page))
    page.mouse.wheel(0, -300)
    seen.append(pixels(page))
    page.locator("canvas").press("ArrowLeft")
    seen.append(pixels(page))
    before = triangles(page)
    page.locator(".level").fill("5")
    seen.append(pixels(page))
    assert len(set(seen)) == len(seen)
    assert 0 < triangles(page) < before
    assert page.locator(".value").text_content().startswith("5.00 σ above the mean")
    page.locator(".reset").click()
    assert pixels(page) == seen[0]


def test_layers_stand_side_by_side_and_colours_have_numbers(opened, report):
    page = opened(report)
    page.wait_for_selector("#stage[data-milliseconds]")
    assert page.locator(".ticks").inner_text().split("\n")[0] == "4.2 Å"
    alone = triangles(page)
    page.get_by_label("half map 1").check()
    page.wait_for_timeout(300)
    assert triangles(page) > alone
    assert page.locator(".labels").inner_text().split("\n") == ["map", "half map 1"]
    page.get_by_label("map", exact=True).uncheck()
    page.wait_for_timeout(300)
    assert not page.locator(".bar").is_visible()


def test_without_webgl_a_picture_stands_in(opened, report):
    page = opened(report, script=NO_WEBGL)
    page.wait_for_selector("#plot-snr .scatterlayer")
    assert page.locator("#stage img").is_visible()
    assert not page.locator(".controls").is_visible()


def test_plots_are_drawn_and_nothing_is_wider_than_a_phone(opened, report):
    page = opened(report, width=390)
    page.wait_for_selector("#stage[data-milliseconds]")
    page.wait_for_selector("#plot-snr .scatterlayer")
    assert page.locator(".js-plotly-plot .scatterlayer").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_classes_of_mixed_particles_stand_side_by_side(opened, tmp_path):
    path = tmp_path / "report.html"
    clusters = [ClusterSummary(f"class {k}", 50, lumps(k)) for k in (1, 2, 3)]
    data = MixedReport(
        "mixed",
        "Three.",
        plane=np.random.default_rng(0).normal(size=(150, 2)),
        label=np.arange(150) % 3 + 1,
        clusters=clusters,
        particles=150,
    )
    write_mixed_report(path, data)
    page = opened(path)
    page.wait_for_selector("#stage[data-milliseconds]")
    page.wait_for_selector("#plot-embedding .scatterlayer")
    assert page.locator(".labels span").count() == 3
    seen = pixels(page)
    page.get_by_label("class 2").uncheck()
    assert pixels(page) != seen
