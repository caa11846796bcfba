"""Options of the commands that find poses."""

from __future__ import annotations

from typing import Annotated

import typer

Sym = Annotated[
    str,
    typer.Option(
        help="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
        "RELION's axes. If unsure: C1."
    ),
]
