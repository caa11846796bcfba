"""``vitreous postprocess``: half maps to a sharpened map, its resolution, here and on the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import (
    Output,
    Overwrite,
    Seed,
    Threads,
    number_or_auto,
    require_finite,
)
from vitreous.jobs.run.device import use_device


def command(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="HALF1.mrc", help="Unfiltered half map 1.")],
    second: Annotated[
        Path, typer.Argument(metavar="HALF2.mrc", help="Unfiltered half map 2, in the same frame.")
    ],
    output: Output,
    sym: Annotated[
        str,
        typer.Option(
            help="Average both half maps over this point group first, about RELION's axes (C4, D2, "
            "T, O, I ...). Not needed where they were made with it."
        ),
    ] = "C1",
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Soft mask, 0 to 1, on the same grid; one is made from the maps by default.",
            metavar="MASK.mrc",
        ),
    ] = None,
    b_factor: Annotated[
        str,
        typer.Option(
            help="Å²; negative sharpens. `auto` fits it to the fall of the amplitudes beyond 10 Å, "
            "and applies none where the resolution is worse.",
            metavar="auto|NUMBER",
        ),
    ] = "auto",
    local: Annotated[
        bool,
        typer.Option(
            "--local-resolution/--no-local-resolution",
            help="Resolution at every place, and the map filtered by it.",
        ),
    ] = True,
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size in Å, instead of the files' own."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Mask, FSC, sharpening and local resolution of two half maps.

    Writes the mask, the sharpened map, the local resolution in Å, the map filtered by it, the FSC
    with and without mask, and a report. The half maps must be independent, unfiltered and in one
    frame.

    Example: `vitreous postprocess OUT/half1.mrc OUT/half2.mrc -o POST`
    """
    require_finite(context.params)
    wanted = number_or_auto("--b-factor", b_factor, signed=True)
    use_device("cpu", threads)

    from vitreous.jobs.postprocess import run as postprocess_run

    request = postprocess_run.Request(
        first=first,
        second=second,
        output=output,
        symmetry=sym,
        mask=mask,
        b_factor_angstrom2=wanted,
        local=local,
        apix=apix,
        seed=seed,
        overwrite=overwrite,
        threads=threads,
    )
    typer.echo(postprocess_run.run(request))
