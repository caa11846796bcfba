"""``vitreous fsc``: Fourier shell correlation of two maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import require_finite
from vitreous.core.errors import InputError, UsageError
from vitreous.core.random import generator


def command(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="A.mrc", help="A map, usually a half map.")],
    second: Annotated[Path, typer.Argument(metavar="B.mrc", help="The map to compare it with.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Soft mask, 0 to 1, on the same grid. The curve is then corrected for what the "
            "mask itself correlates, by phase randomisation (Chen et al. 2013).",
            metavar="MASK.mrc",
        ),
    ] = None,
    auto_mask: Annotated[
        bool, typer.Option("--auto-mask", help="As --mask, with a mask made from the two maps.")
    ] = False,
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size in Å, instead of the files' own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the curve here as CSV.", metavar="FILE.csv"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the random phases of a masked curve.", metavar="INT"),
    ] = 0,
) -> None:
    """Compare two maps by Fourier shell correlation.

    Prints the curve and where it first falls below 0.5 and 0.143, interpolated between shells. Use
    0.143 between independent half maps, 0.5 against a known map. The maps must already be aligned
    (`vitreous align`).

    Example: `vitreous fsc OUT/half1.mrc OUT/half2.mrc --auto-mask -o fsc.csv`
    """
    require_finite(context.params)
    if mask is not None and auto_mask:
        raise UsageError("--mask and --auto-mask exclude each other; give one")
    import torch

    from vitreous.data.maps import fsc_csv, read_map, read_pair, write_fsc_csv
    from vitreous.maps import fsc as metric

    a, b, pixel = read_pair(first, second, apix)
    n = len(a)
    if mask is None and not auto_mask:
        curves = {"fsc": metric.fsc(a, b)}
    else:
        weight = metric.solvent_mask(0.5 * (a + b)) if mask is None else read_map(mask, pixel)[0]
        if weight.shape != a.shape:
            raise InputError(f"{mask}: box: {len(weight)} voxels, but the maps have {n}")
        result = metric.fsc_true(a, b, weight, generator(seed, "phases"))
        curves = {
            "corrected": result.corrected,
            "masked": result.masked,
            "unmasked": result.unmasked,
            "randomised": result.randomised,
        }
    typer.echo(table(fsc_csv(curves, n, pixel)))
    for name, curve in curves.items():
        if name == "randomised":
            continue
        values = [metric.fsc_resolution(torch.as_tensor(curve), t, n, pixel) for t in (0.5, 0.143)]
        typer.echo(f"{name:>10}: {values[0]:.2f} Å at 0.5, {values[1]:.2f} Å at 0.143")
    typer.echo(f"{'Nyquist':>10}: {2 * pixel:.2f} Å")
    if output is not None:
        write_fsc_csv(output, curves, n, pixel)


def table(text: str) -> str:
    """CSV text as aligned columns, with short heads.

    >>> print(table("shell,frequency_inv_angstrom,fsc\\n0,0.0,1.0\\n"))
    shell  1/Å  fsc
        0  0.0  1.0
    """
    heads = {"frequency_inv_angstrom": "1/Å", "resolution_angstrom": "Å"}
    rows = [line.split(",") for line in text.strip().splitlines()]
    rows[0] = [heads.get(cell, cell) for cell in rows[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths = [widths[0], *(width + 2 for width in widths[1:])]
    lines = ("".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)
