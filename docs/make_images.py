"""Make the README's picture from the output of the demo, and that of class averages.

    make demo
    .venv/bin/python docs/make_images.py demo        # writes docs/images/demo.png
    .venv/bin/python docs/make_images.py --classes OUT docs/images/classes.png

Three rows: particle images; the map, aligned with the true one; the true map. Of the maps, the
three central slices and the three projections. OUT is that of `vitreous classify2d`; its class
averages are shown eight in a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitreous.io.mrc import MrcStack, read_mrc
from vitreous.report.figures import Array, central_slices, contrast_limits, enlarge, projections

COLUMNS = 6
PIXELS = 160
IN_A_ROW = 8


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


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="output folder of vitreous demo or classify2d")
    parser.add_argument("--classes", action="store_true", help="it is that of classify2d")
    default = Path(__file__).parent / "images" / "demo.png"
    parser.add_argument("picture", type=Path, nargs="?", default=default, help=f"({default.name})")
    options = parser.parse_args()
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
