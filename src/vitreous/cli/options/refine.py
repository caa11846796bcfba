"""Options of the commands that find poses."""

from __future__ import annotations

from typing import Annotated

import typer

_SOLVER = "Solver"

Sym = Annotated[
    str,
    typer.Option(
        help="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
        "RELION's axes. If unsure: C1."
    ),
]
ShiftRange = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="How far particles may be off centre, in Å; 8 % of the box by default.",
        rich_help_panel=_SOLVER,
    ),
]
MaskDiameter = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Diameter in Å of the sphere that holds the molecule; the box by default, and the "
        "FSC's mask is then found from the maps.",
        rich_help_panel=_SOLVER,
    ),
]
Continue = Annotated[
    bool,
    typer.Option(
        "--continue",
        help="Go on with the run in the folder from its checkpoints; give the same options.",
    ),
]
