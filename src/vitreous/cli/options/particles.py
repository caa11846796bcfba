"""Options of every command that reads particles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_OPTICS = "Optics of a stack without table"

Invert = Annotated[
    bool, typer.Option("--invert", help="Protein is dark in the images (raw micrographs).")
]
Apix = Annotated[
    float | None,
    typer.Option(min=1e-3, help="Pixel size of the images in Å, instead of the files' own."),
]
Passthrough = Annotated[
    list[Path] | None,
    typer.Option(
        help="For a .cs file: a passthrough file with further fields of the same particles, "
        "matched by uid. May be given several times.",
        metavar="FILE.cs",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images with NaN or infinite pixels.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder that the table's image names are relative to; by default the table's own, or "
        "the nearest above it where the images are."
    ),
]
AllowOutsideRoot = Annotated[
    bool,
    typer.Option(
        "--allow-outside-root",
        help="Trust image names that are absolute or lead out of that folder.",
    ),
]
Permissive = Annotated[
    bool,
    typer.Option(
        "--permissive",
        help="Read MRC files whose MAP id or machine stamp is wrong, with a warning.",
    ),
]
CtfFile = Annotated[
    Path | None,
    typer.Option(
        help="CTFFIND4 results, a row for each micrograph.",
        metavar="FILE.txt",
        rich_help_panel=_OPTICS,
    ),
]
Kv = Annotated[
    float | None,
    typer.Option(min=1, help="Voltage in kV; the CTF file's or 300.", rich_help_panel=_OPTICS),
]
Cs = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Spherical aberration in mm; the CTF file's or 2.7.",
        rich_help_panel=_OPTICS,
    ),
]
Q0 = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.999,
        help="Amplitude contrast, a fraction; the CTF file's or 0.1.",
        rich_help_panel=_OPTICS,
    ),
]
