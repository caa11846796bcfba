"""Pages in Chromium: surfaces turn, levels change them, nothing fails, nothing is asked for."""

import math
import shutil

import numpy as np
import pytest

from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.jobs.tables.options import SelectOptions
from vitreous.jobs.tables.run import select
from vitreous.report import mixed
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


COUNT, CENTRES = 300, np.array([[-5.0, 0.0], [0.0, 4.0], [6.0, 0.0]])


@pytest.fixture
def mixed_page(opened, tmp_path, monkeypatch):
    """Make and open a page of 300 particles in three heaps, 60 of which are drawn."""
    monkeypatch.setattr(mixed, "MAX_SHOWN", 60)
    label = np.arange(COUNT) % 3 + 1
    rng = np.random.default_rng(0)
    table = {
        "rlnImageName": [f"{i + 1:06d}@/data/my stack.mrcs" for i in range(COUNT)],
        "rlnOpticsGroup": ["1"] * COUNT,
        "rlnClassNumber": [str(k) for k in label],
        "rlnDefocusU": [f"{v:.6f}" for v in rng.uniform(1e4, 2e4, COUNT)],
    }
    optics = {
        "rlnOpticsGroup": ["1"],
        "rlnImagePixelSize": ["2.0"],
        "rlnImageSize": ["32"],
    }
    document = StarDocument({"optics": StarBlock(optics), "particles": StarBlock(table)})
    write_star(tmp_path / "particles.star", document)
    heaps = CENTRES[label - 1] + rng.uniform(-0.9, 0.9, (COUNT, 2))

    def open_page(width=1200, **content):
        data = {"plane": heaps, "label": label, "particles": COUNT, "table": document}
        mixed.write_mixed_report(
            tmp_path / "report.html", MixedReport("mixed", "Three.", **data | content)
        )
        page = opened(tmp_path / "report.html", width)
        page.wait_for_selector("#selection[data-ready]", state="attached")
        return page

    return open_page


def draw(page, points, key=None):
    """Drag the mouse through points of the embedding."""
    pixels_of = """([x, y]) => {
      const plot = document.getElementById("plot-embedding"), box = plot.getBoundingClientRect();
      const { xaxis, yaxis } = plot._fullLayout;
      return [box.x + xaxis._offset + xaxis.l2p(x), box.y + yaxis._offset + yaxis.l2p(y)];
    }"""
    page.locator("#plot-embedding").scroll_into_view_if_needed()
    places = [page.evaluate(pixels_of, [float(v) for v in point]) for point in points]
    if key:
        page.keyboard.down(key)
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()
    if key:
        page.keyboard.up(key)


def settles(page, read, expected):
    """Wait until the page shows it: a drag is taken in after the mouse button is released."""
    for _ in range(100):
        if read() == expected:
            return
        page.wait_for_timeout(100)
    assert read() == expected


def ring(k):
    angles = [2 * math.pi * i / 12 for i in range(12)]
    return [CENTRES[k] + 2 * np.array([math.cos(a), math.sin(a)]) for a in angles]


def rows_saved(page, folder):
    """Save the selection, select its rows of the table; return numbers of images, and the file."""
    with page.expect_download() as download:
        page.get_by_role("button", name="save as STAR").click()
    assert download.value.suggested_filename == "selection.star"
    file = folder / "saved" / "selection.star"
    download.value.save_as(file)
    output = folder / "selected.star"
    select(
        SelectOptions(source=folder / "particles.star", images=file, output=output, overwrite=True)
    )
    names = read_star(output).blocks["particles"].columns["rlnImageName"]
    return [int(name.partition("@")[0]) for name in names], read_star(file)


def test_lasso_box_and_click_select_and_the_selection_is_saved(mixed_page, tmp_path):
    clusters = [ClusterSummary(f"class {k}", 100) for k in (1, 2, 3)]
    page = mixed_page(clusters=clusters)
    chosen, shares = page.locator("#selection .chosen"), page.locator("[id^=share-]")
    assert page.get_by_role("button", name="save as STAR").is_disabled()
    draw(page, ring(1))
    settles(page, chosen.inner_text, "100 of 300 particles are selected (33.3 %).")
    assert shares.all_inner_texts() == ["", "100 (100.0 %)", ""]
    trace = "document.getElementById('plot-embedding').data[0]"
    drawn = page.evaluate(f"{trace}.selectedpoints.map((i) => {trace}.customdata[i])")
    assert 10 < len(drawn) < 30
    assert {row % 3 for row in drawn} == {2}
    numbers, file = rows_saved(page, tmp_path)
    assert numbers == list(range(2, COUNT + 1, 3))
    saved, table = (
        one.blocks["particles"] for one in (file, read_star(tmp_path / "particles.star"))
    )
    assert saved.columns["rlnDefocusU"] == table.columns["rlnDefocusU"][1::3]
    draw(page, ring(0), "Shift")
    settles(page, shares.all_inner_texts, ["100 (50.0 %)", "100 (50.0 %)", ""])
    draw(page, ring(1), "Alt")
    settles(page, shares.all_inner_texts, ["100 (100.0 %)", "", ""])
    page.get_by_role("button", name="box").click()
    draw(page, [CENTRES[2] - 1, CENTRES[2] + (0, 1)])
    settles(page, lambda: 20 < int(chosen.inner_text().split()[0]) < 80, True)
    page.get_by_role("button", name="class 3").click()
    page.get_by_role("button", name="class 1").click()
    assert rows_saved(page, tmp_path)[0] == [i for i in range(1, COUNT + 1) if i % 3 != 2]
    page.get_by_role("button", name="clear").click()
    assert chosen.inner_text() == "No particle is selected."
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_class_averages_are_picked_by_click(mixed_page, tmp_path):
    images = np.random.default_rng(1).normal(size=(3, 16, 16))
    page = mixed_page(width=390, plane=None, images=images, sizes=[100, 100, 100])
    for k in (3, 2):
        page.locator(f"[data-class='{k}']").click()
    assert page.locator("[aria-pressed=true]").count() == 2
    assert page.locator("#share-3").inner_text() == "100 (50.0 %)"
    page.locator("[data-class='3']").click()
    assert rows_saved(page, tmp_path)[0] == list(range(2, COUNT + 1, 3))
    boxes = {k: page.locator(f"[data-class='{k}']").bounding_box() for k in (1, 2)}
    assert boxes[2]["x"] < boxes[1]["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_slider_moves_the_surface_along_a_class(mixed_page):
    path = tuple(lumps(k) for k in (1, 2))
    clusters = [ClusterSummary("class 1", 200, path=path), ClusterSummary("class 2", 100, lumps(3))]
    page = mixed_page(clusters=clusters, pixel_size_angstrom=5.0)
    page.wait_for_selector("#stage[data-milliseconds]")
    page.wait_for_timeout(300)
    assert not page.get_by_label("along class 1").is_checked()
    along, seen = page.locator(".along"), []
    for place in ("0", "0.5", "1"):
        along.fill(place)
        seen.append((pixels(page), triangles(page)))
    assert page.get_by_label("along class 1").is_checked()
    assert page.locator(".place").inner_text() == "map 2.0 of 2"
    assert len({triangle for _, triangle in seen}) == 3
    page.get_by_role("button", name="play").click()
    page.wait_for_timeout(300)
    page.get_by_role("button", name="play").click()
    assert pixels(page) != seen[2][0]
