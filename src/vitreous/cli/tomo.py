"""``vitreous tomo``: tilt series of single volumes, simulated and reconstructed."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.suggestions import SuggestingCommand
from vitreous.jobs.tomography.options import TomoReconstructOptions, TomoSimulateOptions

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Tomography: simulate and reconstruct single-axis tilt series, scanned fully or sparsely.",
)


@app.command("simulate", no_args_is_help=True, cls=SuggestingCommand)
@options_command(
    TomoSimulateOptions,
    {
        "source": typer.Argument(metavar="INPUT"),
        "shape": typer.Option("--shape", metavar="XxYxZ"),
    },
)
def simulate(options: TomoSimulateOptions) -> object:
    """Simulate a tilt series, scanned fully or in part.

    The volume is tilted about y: voxel (x, z) is seen at x cos(tilt) + z sin(tilt). Writes
    tilts.mrc (0 where not scanned), tilts.tlt (angles), mask.mrc (1 where scanned) and truth.mrc
    (the density that was imaged: the input, seen through the simulation's basis functions).

    Example: `vitreous tomo simulate phantom:1 --dose 0.1 -o TILTS`
    """
    from vitreous.jobs.tomography.simulate import simulate_tilts

    return simulate_tilts(options)


@app.command("reconstruct", no_args_is_help=True, cls=SuggestingCommand)
@options_command(
    TomoReconstructOptions,
    {
        "tilts": typer.Argument(metavar="TILTS"),
        "angles": typer.Option("--angles", metavar="FILE"),
        "strength": typer.Option("--strength", metavar="auto|NUMBER"),
        "inpainting": typer.Option("--inpainting", metavar="auto|NUMBER"),
    },
)
def reconstruct(options: TomoReconstructOptions) -> object:
    """Reconstruct a volume from a tilt series, of which pixels may be missing.

    Writes half1.mrc and half2.mrc (from independent halves: random halves of the scanned pixels,
    every other tilt where images are fully scanned), map.mrc (from all measurements), fsc.csv
    (between the halves), history.jsonl, config.toml and report.html. Stop it with Ctrl-C and go on
    with --continue: the result is the same, bit for bit.

    Example: `vitreous tomo reconstruct TILTS/tilts.mrc --angles TILTS/tilts.tlt --mask
    TILTS/mask.mrc -o OUT`
    """
    from vitreous.jobs.tomography.run import reconstruct_tilts

    return reconstruct_tilts(options)
