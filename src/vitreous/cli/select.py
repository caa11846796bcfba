"""``vitreous select``: some of the particles of a table."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import TABLES
from vitreous.jobs.tables.options import SelectOptions


@options_command(
    SelectOptions,
    {
        **TABLES,
        "where": typer.Option("--where", metavar="'COLUMN OP VALUE'"),
        "classes": typer.Option("--class", metavar="INT"),
        "half_set": "--half",
        "micrograph": typer.Option("--micrograph", metavar="GLOB"),
        "rows": typer.Option("--rows", metavar="FILE"),
        "images": typer.Option("--images", metavar="TABLE"),
    },
    panels={
        "Conditions": (
            *("where", "classes", "half_set", "optics_group", "micrograph", "rows", "images"),
        ),
        "Of these": ("unique", "min_distance_angstrom", "first", "random", "seed", "invert"),
    },
)
def select(options: SelectOptions) -> object:
    """Write the particles that meet every condition, in their order, all columns kept.

    Images are not copied: the new table points at the same stacks.

    `--unique` leaves out copies of an image, `--min-distance 80` particles that were picked twice.

    `--images selection.star` takes what was selected in `report.html` of `hetero` or `classify2d`.

    Example: `vitreous select particles.star good.star --where 'rlnDefocusU < 25000' --class 2`
    """
    from vitreous.jobs.tables.run import select

    return select(options)
