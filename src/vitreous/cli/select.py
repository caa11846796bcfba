"""``vitreous select``: some of the particles of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.particles import AllowOutsideRoot, DataRoot, Passthrough
from vitreous.cli.options.tables import OverwriteFile, check_output, write_table
from vitreous.core.errors import InputError, UsageError
from vitreous.core.random import stream_seed
from vitreous.jobs.run.messages import say

_THEN = "Of these"


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A particle table or stack, as `vitreous convert` reads."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The table to write: .star (RELION 3.1) or .cs.")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep rows where a column compares so: == != < <= > >=, or `in A,B,C`. Columns as "
            "`vitreous info` lists them. Several conditions must all hold.",
            metavar="'COLUMN OP VALUE'",
        ),
    ] = None,
    class_: Annotated[
        list[int] | None,
        typer.Option("--class", help="Keep these classes (rlnClassNumber); may be repeated."),
    ] = None,
    half: Annotated[
        int | None, typer.Option(min=1, max=2, help="Keep one half set (rlnRandomSubset).")
    ] = None,
    optics_group: Annotated[
        str | None, typer.Option(help="Keep one optics group, by number or name.")
    ] = None,
    micrograph: Annotated[
        str | None,
        typer.Option(help="Keep micrographs whose name matches, with * and ?.", metavar="GLOB"),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Keep the rows listed in a text file, counted from 1.", metavar="FILE"),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many.", rich_help_panel=_THEN)
    ] = None,
    random: Annotated[
        int | None, typer.Option(min=1, help="Only so many, at random.", rich_help_panel=_THEN)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --random.", rich_help_panel=_THEN)] = 0,
    invert: Annotated[
        bool, typer.Option("--invert", help="Keep the rest instead.", rich_help_panel=_THEN)
    ] = False,
    passthrough: Passthrough = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    overwrite: OverwriteFile = False,
) -> None:
    """Write the particles that meet every condition, in their order, all columns kept.

    Images are not copied: the new table points at the same stacks.

    Example: `vitreous select particles.star good.star --where 'rlnDefocusU < 25000' --class 2`
    """
    if first is not None and random is not None:
        raise UsageError("--first and --random exclude each other; give one")
    more = passthrough or []
    inputs = [source, *more, *([rows] if rows is not None else [])]
    check_output(inputs, output, overwrite=overwrite)

    import numpy as np

    from vitreous.data import selection
    from vitreous.data.formats import read_particles_document, select_rows
    from vitreous.data.particle_table import ParticleTable

    conditions = [selection.Condition.parse(text) for text in where or []]
    if class_:
        conditions.append(selection.Condition("rlnClassNumber", "in", tuple(map(str, class_))))
    if half is not None:
        conditions.append(selection.Condition("rlnRandomSubset", "==", (str(half),)))
    document = read_particles_document(
        source, passthrough=more, data_root=data_root, allow_outside_root=allow_outside_root
    )
    table = ParticleTable(document, source)
    mask = np.ones(len(table), dtype=np.bool_)
    for condition in conditions:
        mask &= condition.mask(table)
    if optics_group is not None:
        mask &= selection.in_optics_group(table, optics_group)
    if micrograph is not None:
        mask &= selection.from_micrograph(table, micrograph)
    if rows is not None:
        mask &= selection.rows_from_file(rows, len(table))
    drawn = stream_seed(seed, "select")
    mask = selection.thinned(mask, first=first, random=random, seed=drawn)
    mask = ~mask if invert else mask
    kept = np.flatnonzero(mask)
    if not len(kept):
        raise InputError(f"{source}: none of {len(table)} particles is left; relax the conditions")
    write_table(select_rows(document, kept), source, output, data_root=data_root)
    say(f"kept {len(kept)} of {len(table)} particles in {output}")
