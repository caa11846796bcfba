"""``vitreous convert``: particle tables from one program's format to another's."""

from __future__ import annotations

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import TABLES
from vitreous.jobs.tables.options import ConvertOptions


@options_command(ConvertOptions, TABLES)
def convert(options: ConvertOptions) -> object:
    """Convert a particle table between RELION and cryoSPARC, by the suffixes of the files.

    Nothing is lost: columns, fields and blocks that the other format has no name for are kept and
    come back when the table is converted back. Image stacks are not copied; the new table finds
    them from where it lies.

    Example: `vitreous convert J24_particles.cs particles.star --passthrough J24_passthrough.cs`
    """
    from vitreous.jobs.tables.run import convert

    return convert(options)
