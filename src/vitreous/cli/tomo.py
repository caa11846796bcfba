"""``vitreous tomo``: tilt series of single volumes, simulated and reconstructed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    number_or_auto,
    require_finite,
)
from vitreous.cli.options.particles import Apix

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Tomography: simulate and reconstruct single-axis tilt series, scanned fully or sparsely.",
)


class Scheme(StrEnum):
    """How tilts follow one another."""

    LINEAR = "linear"
    SAXTON = "saxton"


class Downsampling(StrEnum):
    """What is left out when the dose is reduced."""

    RANDOM = "random"
    TILT = "tilt"


class Method(StrEnum):
    """Ways from a tilt series to a map."""

    TV = "tv"
    WBP = "wbp"
    SIRT = "sirt"
    TWO_STEP = "two-step"


@app.command("simulate", no_args_is_help=True)
def simulate(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="What to image: a map (.mrc), or `phantom:SEED`, a piece of a cell made from a "
            "number.",
        ),
    ],
    output: Output,
    shape: Annotated[
        str,
        typer.Option(
            help="Voxels of a phantom along x, y (the tilt axis) and z (the thickness); 40 Å a "
            "voxel at 256x256x128, the same cell at other sizes.",
            metavar="XxYxZ",
        ),
    ] = "256x256x128",
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Voxel edge in Å, if not the map's own (phantom: 10240/X)."),
    ] = None,
    max_tilt: Annotated[
        float, typer.Option(min=0, max=89, help="Largest tilt in degrees, either way.")
    ] = 70.0,
    increment: Annotated[
        float,
        typer.Option(min=0.01, max=89, help="Step between tilts in degrees; saxton: at 0 degrees."),
    ] = 1.0,
    scheme: Annotated[
        Scheme,
        typer.Option(help="`linear`: equal steps; `saxton`: steps that fall with cos(tilt)."),
    ] = Scheme.LINEAR,
    dose: Annotated[
        float, typer.Option(min=1e-4, max=1, help="Share of all pixels that are scanned.")
    ] = 1.0,
    downsampling: Annotated[
        Downsampling,
        typer.Option(
            help="How the dose is reduced: `random` pixels of every image, or every so many a "
            "`tilt`, fully scanned."
        ),
    ] = Downsampling.RANDOM,
    snr: Annotated[
        float,
        typer.Option(min=1e-9, help="Signal over noise variance, over whole noiseless images."),
    ] = 100.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Simulate a tilt series, scanned fully or in part.

    The volume is tilted about y: voxel (x, z) is seen at x cos(tilt) + z sin(tilt). Writes
    tilts.mrc (0 where not scanned), tilts.tlt (angles), mask.mrc (1 where scanned) and truth.mrc
    (the density that was imaged: the input, seen through the simulation's basis functions).

    Example: `vitreous tomo simulate phantom:1 --dose 0.1 -o TILTS`
    """
    require_finite(context.params)
    from vitreous.jobs.tomography.simulate import SimulationRequest, parse_shape, simulate_tilts

    request = SimulationRequest(
        source=source,
        output=output,
        shape=parse_shape(shape),
        apix=apix,
        max_tilt=max_tilt,
        increment=increment,
        scheme=scheme.value,
        dose=dose,
        downsampling=downsampling.value,
        snr=snr,
        seed=seed,
        overwrite=overwrite,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    typer.echo(simulate_tilts(request))


@app.command("reconstruct", no_args_is_help=True)
def reconstruct(
    context: typer.Context,
    tilts: Annotated[
        Path,
        typer.Argument(
            metavar="TILTS",
            help="Aligned tilt series, an MRC stack with the tilt axis along y; NaN where not "
            "scanned.",
        ),
    ],
    angles: Annotated[
        Path,
        typer.Option(
            help="Tilt angles: .tlt or .rawtlt (one a line) or SerialEM's .mdoc.", metavar="FILE"
        ),
    ],
    output: Output,
    mask: Annotated[
        Path | None,
        typer.Option(help="Scan mask: an MRC stack like TILTS, 0 where not scanned."),
    ] = None,
    thickness: Annotated[
        int | None,
        typer.Option(min=1, max=8192, help="Voxels of the map along z; half of x by default."),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="`tv`: total variation, in one step from the scanned pixels; `two-step`: every "
            "image inpainted first; `sirt`: algebraic; `wbp`: weighted back-projection."
        ),
    ] = Method.TV,
    strength: Annotated[
        str,
        typer.Option(
            help="How strong total variation is: `auto`, by cross-validation between halves of the "
            "measurements on a few slices, or a number.",
            metavar="auto|NUMBER",
        ),
    ] = "auto",
    inpainting: Annotated[
        str,
        typer.Option(
            help="The same for the images of `two-step`.",
            metavar="auto|NUMBER",
        ),
    ] = "auto",
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Most iterations for each map; 60 by default, 30 with sirt."),
    ] = None,
    apix: Apix = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Reconstruct a volume from a tilt series, of which pixels may be missing.

    Writes half1.mrc and half2.mrc (from independent halves: random halves of the scanned pixels,
    every other tilt where images are fully scanned), map.mrc (from all measurements), fsc.csv
    (between the halves), history.jsonl, config.toml and report.html.

    Example: `vitreous tomo reconstruct TILTS/tilts.mrc --angles TILTS/tilts.tlt --mask
    TILTS/mask.mrc -o OUT`
    """
    require_finite(context.params)
    from vitreous.jobs.tomography.run import TomoRequest, reconstruct_tilts

    done = reconstruct_tilts(
        TomoRequest(
            tilts=tilts,
            angles=angles,
            mask=mask,
            output=output,
            thickness=thickness,
            method=method.value,
            strength=number_or_auto("--strength", strength),
            inpainting=number_or_auto("--inpainting", inpainting),
            iterations=iterations or (30 if method is Method.SIRT else 60),
            apix=apix,
            seed=seed,
            overwrite=overwrite,
            device=device,
            threads=threads,
            quiet=quiet,
        )
    )
    typer.secho(f"{done.verdict}.", bold=True)
    typer.echo(done.text)
