"""``vitreous align``: put one map onto another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import Device, Threads, require_finite
from vitreous.core.errors import UsageError
from vitreous.jobs.run.device import use_device


def command(
    context: typer.Context,
    moving: Annotated[Path, typer.Argument(metavar="MOVING.mrc", help="The map to move.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE.mrc", help="Where to move it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The moved map.", metavar="ALIGNED.mrc")
    ],
    sym: Annotated[
        str,
        typer.Option(
            help="Point group of both maps about RELION's axes (C1, C4, D2, T, O, I1 ...): only "
            "the rotations that it leaves free are searched.",
        ),
    ] = "C1",
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror/--no-mirror",
            help="Try the other hand as well. Ab initio maps have an arbitrary one.",
        ),
    ] = True,
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size in Å, instead of the files' own."),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Align a map to another over rotation, shift and hand, from any start.

    Writes the moved map on the reference's grid, and prints the rotation (RELION's rot, tilt, psi
    in degrees), the shift in Å, the hand, the correlation and the resolution of the FSC.

    Example: `vitreous align OUT/map.mrc SIM/truth.mrc -o aligned.mrc`
    """
    require_finite(context.params)
    place = use_device(device, threads)
    if output.resolve() in (moving.resolve(), reference.resolve()):
        raise UsageError(f"-o {output}: is one of the inputs; choose another name")

    from vitreous.core.rotation import matrix_to_euler
    from vitreous.data.maps import read_pair
    from vitreous.io.mrc import write_mrc
    from vitreous.maps.align import align_maps
    from vitreous.maps.fsc import fsc, fsc_resolution

    a, b, pixel = read_pair(moving, reference, apix)
    found = align_maps(
        a.to(place), b.to(place), pixel_size_angstrom=pixel, point_group=sym, allow_mirror=mirror
    )
    aligned = found.aligned.cpu()
    write_mrc(output, aligned.numpy(), pixel)
    rot, tilt, psi = matrix_to_euler(found.rotation.cpu()).tolist()
    x, y, z = found.shift_angstrom.tolist()
    curve = fsc(aligned, b)
    half, low = (fsc_resolution(curve, t, len(b), pixel) for t in (0.5, 0.143))
    typer.echo(f"rot, tilt, psi  {rot:.2f}  {tilt:.2f}  {psi:.2f} degrees")
    typer.echo(f"shift x, y, z   {x:.2f}  {y:.2f}  {z:.2f} Å")
    typer.echo(f"hand            {'mirrored' if found.mirrored else 'kept'}")
    typer.echo(f"correlation     {float(found.correlation):.4f}")
    typer.echo(f"FSC             {half:.2f} Å at 0.5, {low:.2f} Å at 0.143")
