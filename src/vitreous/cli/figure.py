"""``vitreous figure``: figures for papers from the output folder of a run."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.figure.options import FigureOptions


@options_command(FigureOptions, {"folder": typer.Argument(metavar="OUT")})
def figure(options: FigureOptions) -> object:
    """Draw figures for papers from a run's folder, and write a script for ChimeraX.

    Each figure is one column wide (89 mm, 7 pt), as PDF and PNG, with its numbers as CSV beside it:
    FSC curves, viewing directions, the surface coloured by local resolution, slices, histogram of
    the local resolution, Guinier plot, classes. What the folder has no data for is left out, and
    said. `chimerax.cxc` opens the maps in ChimeraX, the surface coloured likewise. Of a run that is
    NOT SOLVED nothing is drawn unless asked for.

    Example: `vitreous figure OUT`
    """
    from vitreous.jobs.figure.run import figure

    return figure(options)
