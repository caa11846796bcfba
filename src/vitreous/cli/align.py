"""``vitreous align``: put one map onto another."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.maps.options import AlignOptions


@options_command(
    AlignOptions,
    {
        "moving": typer.Argument(metavar="MOVING.mrc"),
        "reference": typer.Argument(metavar="REFERENCE.mrc"),
        "output": typer.Option("--output", "-o", metavar="ALIGNED.mrc"),
    },
)
def align(options: AlignOptions) -> object:
    """Align a map to another over rotation, shift and hand, from any start.

    Writes the moved map on the reference's grid, and prints the rotation (RELION's rot, tilt, psi
    in degrees), the shift in Å, the hand, the correlation and the resolution of the FSC.

    Example: `vitreous align OUT/map.mrc SIM/truth.mrc -o aligned.mrc`
    """
    from vitreous.jobs.maps.align import align

    return align(options)
