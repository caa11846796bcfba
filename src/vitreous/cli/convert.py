"""``vitreous convert``: particle tables from one program's format to another's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import require_finite
from vitreous.cli.options.particles import AllowOutsideRoot, DataRoot, Passthrough
from vitreous.cli.options.tables import OverwriteFile, check_output, write_table
from vitreous.jobs.run.messages import say


def command(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="RELION .star (3.0 to 5), cryoSPARC .cs, a stack (.mrcs), or a .txt or .lst that "
            "names a stack a line.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The table to write: .star (RELION 3.1) or .cs.")
    ],
    passthrough: Passthrough = None,
    apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size of the images in Å, instead of the file's."),
    ] = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    overwrite: OverwriteFile = False,
) -> None:
    """Convert a particle table between RELION and cryoSPARC, by the suffixes of the files.

    Nothing is lost: columns, fields and blocks that the other format has no name for travel along
    and come back when the table is converted back. Image stacks are not copied; the new table finds
    them from where it lies.

    Example: `vitreous convert J24_particles.cs particles.star --passthrough J24_passthrough.cs`
    """
    require_finite(context.params)
    more = passthrough or []
    check_output([source, *more], output, overwrite=overwrite)

    from vitreous.data.formats import read_particles_document

    document = read_particles_document(
        source,
        passthrough=more,
        pixel_size_angstrom=apix,
        data_root=data_root,
        allow_outside_root=allow_outside_root,
    )
    write_table(document, source, output, data_root=data_root)
    say(f"{len(document.blocks['particles'])} particles in {output}")
