"""``vitreous info``: what a file is and whether it can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A map, stack, STAR or .cs table, CTFFIND4 result or atomic model."
        ),
    ],
) -> None:
    """Say what a file is: kind, sizes, pixel size, statistics.

    Reads MRC maps and stacks (.mrc, .mrcs, .map, .st), STAR tables (.star), cryoSPARC tables (.cs),
    CTFFIND4 text (.txt) and atomic models (.cif, .pdb, gzipped or not). A damaged file is refused
    with its fault named.

    Example: `vitreous info SIM/particles.star`
    """
    from vitreous.data.describe import describe

    for label, value in describe(file):
        typer.echo(f"{label:<14}{value}")
