"""``vitreous symmetry``: which point group do two half maps obey, and where are its axes?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.cli.options.common import Overwrite, Seed, Threads, require_finite
from vitreous.jobs.run.device import use_device

if TYPE_CHECKING:
    from torch import Tensor

    from vitreous.jobs.run.folder import OutputFolder
    from vitreous.maps.symmetry_search import SymmetrySearch

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "symmetry.csv")
_HEADS = (
    "group",
    "holds",
    "agreement",
    "worst",
    "chance",
    "Å",
    "rot",
    "tilt",
    "psi",
    "x",
    "y",
    "z",
)


def command(
    context: typer.Context,
    first: Annotated[
        Path, typer.Argument(metavar="HALF1.mrc", help="Half map 1, made without symmetry (C1).")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="HALF2.mrc", help="Half map 2, in the same frame.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the table and, where a group was found, half maps and their mean with "
            "its axes where RELION has them.",
            metavar="FOLDER",
        ),
    ] = None,
    box: Annotated[
        int,
        typer.Option(min=16, max=96, help="Working box; larger maps are Fourier-cropped to it."),
    ] = 40,
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size in Å, instead of the files' own."),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Find the point group of a map that was reconstructed without one.

    Tries Cn and Dn of n = 2 to 8 and 12, T, O and I, anywhere in the map, and says how well half
    map 1 agrees with half map 2 rotated about the axes that were found: 1 is as well as with it
    unrotated, which only a true symmetry reaches. Prints each candidate with the rotation (rot,
    tilt, psi in degrees) and shift (x, y, z in Å) that bring its axes to RELION's.

    Example: `vitreous symmetry OUT/half1.mrc OUT/half2.mrc -o STANDARD`
    """
    require_finite(context.params)
    use_device("cpu", threads)
    from vitreous.cli.fsc import table
    from vitreous.core.random import generator
    from vitreous.data.maps import read_pair
    from vitreous.jobs.run.folder import OutputFolder
    from vitreous.maps.symmetry_search import find_symmetry

    half1, half2, pixel = read_pair(first, second, apix)

    def search() -> SymmetrySearch:
        found = find_symmetry(
            half1,
            half2,
            pixel_size_angstrom=pixel,
            generator=generator(seed, "symmetry"),
            box_size=box,
        )
        if found.candidates:
            typer.echo(table(candidates_csv(found)))
        typer.echo(found.verdict[0].upper() + found.verdict[1:] + ".")
        return found

    if output is None:
        search()
        return
    options = {"box": box, "apix": apix, "seed": seed}
    inputs = {"half1": first, "half2": second}
    with OutputFolder(
        output, "symmetry", options, inputs=inputs, outputs=FILES, overwrite=overwrite
    ) as folder:
        found = search()
        _write(folder, found, (half1, half2), pixel)


def candidates_csv(found: SymmetrySearch) -> str:
    """The candidates as CSV text, those that hold first."""
    from vitreous.core.rotation import matrix_to_euler

    lines = [",".join(_HEADS)]
    for one in found.candidates:
        angles = [f"{value:.1f}" for value in matrix_to_euler(one.rotation).tolist()]
        shift = [f"{value:.1f}" for value in one.shift_angstrom.tolist()]
        shares = [f"{value:.2f}" for value in (one.agreement, one.weakest, one.chance)]
        holds = "yes" if one.holds else "no"
        lines.append(
            ",".join([one.name, holds, *shares, f"{one.resolution_angstrom:.1f}", *angles, *shift])
        )
    return "\n".join(lines) + "\n"


def _write(
    folder: OutputFolder, found: SymmetrySearch, halves: tuple[Tensor, Tensor], pixel: float
) -> None:
    from vitreous.io.atomic import atomic_write_text
    from vitreous.io.mrc import write_mrc
    from vitreous.maps.symmetry_search import to_standard

    atomic_write_text(folder.path("symmetry.csv"), candidates_csv(found))
    if found.best is not None:
        first, second = (to_standard(half, found.best, pixel) for half in halves)
        maps = {"half1.mrc": first, "half2.mrc": second, "map.mrc": 0.5 * (first + second)}
        for name, volume in maps.items():
            write_mrc(folder.path(name), volume.numpy(), pixel)
        typer.echo(f"half maps and map in {found.group}'s standard axes: {folder.root}")
    folder.config["run"] |= {"group": found.group, "verdict": found.verdict}
    folder.finish()
