"""``vitreous fsc``: Fourier shell correlation of two maps."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.maps.options import FscOptions


@options_command(
    FscOptions,
    {
        "first": typer.Argument(metavar="A.mrc"),
        "second": typer.Argument(metavar="B.mrc"),
        "mask": typer.Option("--mask", metavar="MASK.mrc"),
        "output": typer.Option("--output", "-o", metavar="FILE.csv"),
    },
)
def fsc(options: FscOptions) -> object:
    """Compare two maps by Fourier shell correlation.

    Prints the curve and where it first falls below 0.5 and 0.143, interpolated between shells. Use
    0.143 between independent half maps, 0.5 against a known map. The maps must already be aligned
    (`vitreous align`).

    Example: `vitreous fsc OUT/half1.mrc OUT/half2.mrc --auto-mask -o fsc.csv`
    """
    from vitreous.jobs.maps.fsc import compare

    return compare(options)
