"""``vitreous join``: several particle tables as one."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.tables.options import JoinOptions


@options_command(
    JoinOptions,
    {
        "sources": typer.Argument(metavar="TABLE..."),
        "output": typer.Option("--output", "-o", metavar="OUT"),
    },
)
def join(options: JoinOptions) -> object:
    """Write the particles of several tables as one table, whatever their optics.

    Equal optics groups become one; others keep their own pixel size, box, voltage and CTF. Images
    are not copied: commands that read the table bring them to one pixel size and box. Images that
    are in several tables are kept twice; `vitreous select --unique` leaves them out.

    Example: `vitreous join session1.star session2.star J24_particles.cs -o all.star`
    """
    from vitreous.jobs.tables.run import join

    return join(options)
