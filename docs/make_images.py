"""Make the README's picture from the output of the demo, and those of other pages.

    make demo
    .venv/bin/python docs/make_images.py demo        # writes docs/images/demo.png
    .venv/bin/python docs/make_images.py --classes OUT docs/images/classes.png
    .venv/bin/python docs/make_images.py --project FOLDER docs/images/apoferritin_map.png
    .venv/bin/python docs/make_images.py --pages demo

Three rows: particle images; the map, aligned with the true one; the true map. Of the maps, the
three central slices and the three projections. OUT is that of `vitreous classify2d`; its class
averages are shown eight in a row. FOLDER holds the results of docs/howto/apoferritin.md: of its
micrographs and class averages NAME_picks.png and NAME_classes.png are made, of its map the given
NAME_map.png. `--pages` needs playwright and chromium: page_*.png are pages of the demo's `auto`,
of a mixture (made in demo/mixed and demo/sorted) and of a run that is watched (demo/watched);
figures.png is by `vitreous figure`.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vitreous.core.grid import radius_grid
from vitreous.data.backgrounds import Micrograph
from vitreous.io.mrc import MrcStack, read_mrc
from vitreous.io.star import read_star
from vitreous.jobs.pick.page import with_rings
from vitreous.maps.fsc import fsc
from vitreous.report.figures import (
    Array,
    central_slices,
    contrast_limits,
    enlarge,
    png_bytes,
    projections,
    to_gray,
)

COLUMNS = 6
PIXELS = 160
IN_A_ROW = 8
PRINTED_ANGSTROM = (20, 15, 12, 10, 8.6)  # where the FSC is printed
DESKTOP_PX, PHONE_PX = (1120, 1500), (390, 1500)  # of pages: width and height
MIXED = "phantom:3 --also phantom:4 --box 32 --apix 6 --n 1200 --snr-db 0 --seed 3"
SHORTER = """name => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replace(name, "");
}"""
COARSE, RING_PX = 3, 14.4  # pixels averaged in the picture of picks, radius of its rings


def particles(path: Path) -> Array:
    """Particles spread evenly over a stack, ``(COLUMNS, n, n)``, enlarged."""
    stack = MrcStack(path)
    rows = np.linspace(0, len(stack) - 1, COLUMNS).astype(int)
    return np.stack([enlarge(image, PIXELS) for image in stack.read(rows)])


def views(path: Path) -> Array:
    """Slices and projections of a map, ``(COLUMNS, n, n)``, enlarged."""
    volume = read_mrc(path)[0]
    planes = [*central_slices(volume).values(), *projections(volume).values()]
    return np.stack([enlarge(plane, PIXELS) for plane in planes])


def classes(path: Path) -> dict[str, Array]:
    """Class averages in rows, by the numbers of the classes."""
    images = [enlarge(image, PIXELS) for image in read_mrc(path)[0]]
    full = range(0, len(images) - len(images) % IN_A_ROW, IN_A_ROW)
    return {f"{k + 1}": np.stack(images[k : k + IN_A_ROW]) for k in full}


def save_particle_grid(path: Path, rows: Mapping[str, Array]) -> None:
    """Write a PNG with one labelled row of pictures ``(k, n, n)`` per entry."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(images) for images in rows.values())
    figure = Figure(figsize=(1.6 * columns, 1.7 * len(rows) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            low, high = contrast_limits(image)
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        row[0].set_ylabel(label, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def picks(folder: Path) -> Array:
    """First micrograph of a project with a ring around every pick, in coarse pixels."""
    table = read_star(folder / "PICKED" / "particles.star").blocks["particles"]
    name = table.text("rlnMicrographName")[0]
    mine = [one == name for one in table.text("rlnMicrographName")]
    centres = np.stack([table.numbers(f"rlnCoordinate{axis}")[mine] for axis in "XY"], -1)
    image = Micrograph(MrcStack(folder / name)).low_passed(COARSE)
    return with_rings(image, centres / COARSE, RING_PX)


def aspherical(volume: Array) -> Array:
    """Take the mean over each sphere about the centre off a map."""
    radius = radius_grid(len(volume), 3).numpy()
    shell = radius.round().astype(int)
    mean = np.bincount(shell.ravel(), volume.ravel()) / np.bincount(shell.ravel())
    return volume - np.interp(radius, np.arange(len(mean)), mean)


def save_map_figure(path: Path, folder: Path) -> None:
    """Write a PNG of slices and projections of map and model, and of Fourier shell correlations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = {"map": folder / "REFINED/map.mrc", "model": folder / "MODEL/truth.mrc"}
    figure = Figure(figsize=(1.5 * COLUMNS, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, COLUMNS, height_ratios=(1, 1, 1.6))
    for row, (label, file) in enumerate(files.items()):
        for column, image in enumerate(views(file)):
            axis = figure.add_subplot(grid[row, column], xticks=[], yticks=[])
            low, high = contrast_limits(image)
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_ylabel("" if column else label)
    axis = figure.add_subplot(grid[2, :])
    whole, model = (read_mrc(file)[0] for file in files.values())
    halves = [read_mrc(folder / f"REFINED/half{half}.mrc")[0] for half in (1, 2)]
    pixel = MrcStack(files["map"]).pixel_size_angstrom or 1.0
    pairs = {"half maps": halves, "map and model": [whole, model]}
    pairs["map and model, without their spherical means"] = [aspherical(whole), aspherical(model)]
    for label, pair in pairs.items():
        curve = fsc(*(torch.from_numpy(one.astype(np.float32)) for one in pair)).numpy()
        axis.plot(np.arange(len(curve)) / (len(whole) * pixel), curve, label=label)
        at = {one: float(curve[round(len(whole) * pixel / one)]) for one in PRINTED_ANGSTROM}
        print(f"{label}:", ", ".join(f"{value:.2f} at {one:g} Å" for one, value in at.items()))
    axis.axhline(0.143, color="grey", lw=0.8, ls="--")
    axis.set(xlabel="spatial frequency (1/Å)", ylabel="FSC", xlim=(0, 1 / 6), ylim=(-0.1, 1.05))
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def save_project(folder: Path, picture: Path) -> None:
    """Write the pictures of a project from micrographs to map."""
    name = picture.stem.removesuffix("_map")
    png = png_bytes(to_gray(picks(folder)))
    picture.with_name(f"{name}_picks.png").write_bytes(png)
    averages = classes(folder / "CLASSES" / "classes.mrcs")
    save_particle_grid(picture.with_name(f"{name}_classes.png"), averages)
    save_map_figure(picture, folder)


def vitreous(words: str) -> list[str]:
    """Return the command of the program in words."""
    return [sys.executable, "-m", "vitreous", *words.split()]


def save_small(path: Path, picture: bytes, colours: int = 128, method: int = 0) -> None:
    """Write a picture as a PNG of few colours; method 0 keeps areas, 1 rare colours."""
    from PIL import Image

    few = Image.open(io.BytesIO(picture)).convert("RGB").quantize(colours, method)
    few.save(path, optimize=True)


def save_pages(folder: Path, images: Path) -> None:
    """Write pictures of pages: of the demo's `auto`, of a mixture, of a run that is watched."""
    from playwright.sync_api import sync_playwright

    mixed = f"{folder}/mixed"
    if not Path(mixed).exists():
        subprocess.run(vitreous(f"simulate {MIXED} -o {mixed}"), check=True)
    if not (folder / "sorted").exists():
        call = vitreous(f"hetero run {mixed}/truth.star --seed 1 -o {folder}/sorted")
        subprocess.run(call, check=True)
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as program:
        browser = program.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        watched = vitreous(
            f"auto {folder}/simulated/particles.star --sym D2 --seed 1 --overwrite --watch "
            f"-o {folder}/watched"
        )
        with subprocess.Popen(watched, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            address = next(
                found[0] for line in run.stderr if (found := re.search(r"http://\S+", line))
            )
            page = browser.new_page(viewport={"width": DESKTOP_PX[0], "height": 1100})
            page.goto(address)
            page.wait_for_selector("text=Fourier shell correlation", timeout=1_000_000)
            page.wait_for_timeout(5000)
            page.evaluate(SHORTER, f"{folder.resolve().parent}/")
            save_small(images / "page_watch.png", page.screenshot())
            page.close()
            run.terminate()
        for name, report, (width, height) in (
            ("page_auto", "auto", DESKTOP_PX),
            ("page_auto_phone", "auto", PHONE_PX),
            ("page_hetero", "sorted", DESKTOP_PX),
        ):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((folder / report / "report.html").resolve().as_uri())
            page.wait_for_selector("#stage[data-milliseconds]")
            page.wait_for_timeout(1500)
            save_small(images / f"{name}.png", page.screenshot())
        browser.close()
    save_figures(folder, images)


def save_figures(folder: Path, images: Path) -> None:
    """Write figures of the demo, below one another."""
    from PIL import Image

    call = vitreous(f"figure {folder}/auto -o {folder}/figures --overwrite")
    subprocess.run(call, check=True)
    parts = [Image.open(folder / "figures" / f"{name}.png") for name in ("fsc", "views", "surface")]
    sheet = Image.new("RGB", (parts[0].width, sum(one.height for one in parts)), "white")
    top = 0
    for one in parts:
        sheet.paste(one, (0, top))
        top += one.height
    stream = io.BytesIO()
    sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4)).save(stream, "PNG")
    save_small(images / "figures.png", stream.getvalue(), 256, 1)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="output folder of vitreous demo or classify2d")
    parser.add_argument("--classes", action="store_true", help="it is that of classify2d")
    default = Path(__file__).parent / "images" / "demo.png"
    parser.add_argument("picture", type=Path, nargs="?", default=default, help=f"({default.name})")
    parser.add_argument("--project", action="store_true", help="it holds PICKED, CLASSES, REFINED")
    parser.add_argument("--pages", action="store_true", help="pictures of pages, see above")
    options = parser.parse_args()
    if options.pages:
        save_pages(options.demo, default.parent)
        return
    if options.project:
        save_project(options.demo, options.picture)
        return
    rows = (
        classes(options.demo / "classes.mrcs")
        if options.classes
        else {
            "particles": particles(options.demo / "simulated" / "particles.mrcs"),
            "map": views(options.demo / "aligned.mrc"),
            "truth": views(options.demo / "simulated" / "truth.mrc"),
        }
    )
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    save_particle_grid(options.picture, rows)


if __name__ == "__main__":
    main()
