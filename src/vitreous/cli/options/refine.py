"""Options of the commands that find poses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
Rounds = Annotated[
    int,
    typer.Option(min=1, help="Most rounds; it ends earlier once settled.", rich_help_panel=_SOLVER),
]
Assignment = Annotated[
    Literal["soft", "hard"],
    typer.Option(
        help="`soft`: every particle enters with all its likely poses, by their probability; "
        "`hard`: with the best one.",
        rich_help_panel=_SOLVER,
    ),
]
Scale = Annotated[
    Literal["one", "micrograph", "image"],
    typer.Option(
        help="`micrograph` or `image` fits the contrast of every micrograph or particle, and "
        "weights particles by it; `one` takes it as equal.",
        rich_help_panel=_SOLVER,
    ),
]
RefineDefocus = Annotated[
    bool,
    typer.Option(
        "--refine-defocus",
        help="Refine the mean defocus of every micrograph, by up to 500 Å.",
        rich_help_panel=_SOLVER,
    ),
]
KeepAll = Annotated[
    bool,
    typer.Option(
        "--keep-all",
        help="Do not leave particles out of the maps that noise alone explains better.",
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


def settings(
    rounds: int, assignment: str, scale: str, refine_defocus: bool, keep_all: bool
) -> dict[str, Any]:
    """The options as :class:`~vitreous.methods.em.config.RefinementConfig` names them."""
    return {
        "rounds": rounds,
        "assignment": assignment,
        "scale": scale,
        "refine_defocus": refine_defocus,
        "reject": not keep_all,
    }
