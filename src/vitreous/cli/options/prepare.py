"""Options that ``vitreous prepare`` and ``vitreous backgrounds`` share, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    pass

_SIZE, _PIXELS, _INPUT = "Size", "Grey values", "Input"

Box = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=4096,
        help="Resample to this many pixels per edge by cropping (or padding) the spectrum. The "
        "field of view stays, the pixel size becomes edge / box.",
        rich_help_panel=_SIZE,
    ),
]
Apix = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Resample to this pixel size in Å: to the nearest even box, after trimming up to 4 % "
        "of the edge where that meets it better. With --box: the window that gives both.",
        rich_help_panel=_SIZE,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="First cut out the central part: its edge in pixels of the input.",
        rich_help_panel=_SIZE,
    ),
]
Normalise = Annotated[
    Literal["ring", "signal", "none"],
    typer.Option(
        help="`ring`: mean 0, deviation 1 outside the background circle, as RELION does. "
        "`signal`: mean 0 outside, mean 1 inside; for images whose contrast exceeds their noise "
        "only, see docs/prepare.md. `none`: grey values stay.",
        rich_help_panel=_PIXELS,
    ),
]
MaskDiameter = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Diameter of the background circle in Å; 75 % of the edge by default.",
        rich_help_panel=_PIXELS,
    ),
]
Ramp = Annotated[
    bool,
    typer.Option(
        "--ramp",
        help="Subtract the plane that fits the background best (RELION's extraction does).",
        rich_help_panel=_PIXELS,
    ),
]
Invert = Annotated[
    bool,
    typer.Option(
        "--invert",
        help="Multiply by -1: for input with dark protein, such as raw micrographs.",
        rich_help_panel=_PIXELS,
    ),
]
Float16 = Annotated[
    bool,
    typer.Option(
        "--float16",
        help="Write half precision (MRC mode 12): half the size, relative error 5e-4.",
        rich_help_panel=_PIXELS,
    ),
]
InputApix = Annotated[
    float | None,
    typer.Option(
        min=1e-3,
        help="Pixel size of the particles in Å, if not what their table says.",
        rich_help_panel=_INPUT,
    ),
]
PieceThreads = Annotated[
    int,
    typer.Option(
        "--threads",
        min=0,
        help="Pieces worked on at a time; 0 takes the cores, at most 8. Some 50 to 80 MB each.",
        rich_help_panel="Machine",
    ),
]
Continue = Annotated[
    bool,
    typer.Option(
        "--continue",
        help="Go on with the run in the folder where it was; give the same options.",
    ),
]
