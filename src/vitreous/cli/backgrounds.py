"""``vitreous backgrounds``: real noise, cut from micrographs where there is no particle."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import IMAGE_FLAGS, IMAGE_PANELS
from vitreous.jobs.prepare.options import BackgroundsOptions


@options_command(
    BackgroundsOptions,
    {
        **IMAGE_FLAGS,
        "micrographs": typer.Option("--micrographs", metavar="FOLDER"),
        "coordinates": typer.Option("--coordinates", metavar="FOLDER"),
        "micrograph_pixel_size_angstrom": "--micrograph-apix",
    },
    panels={
        "Micrographs": (
            "micrographs",
            "coordinates",
            "micrograph_pixel_size_angstrom",
            "particle_diameter_angstrom",
            "skip_missing",
            "skip_bad",
        ),
        **IMAGE_PANELS,
    },
)
def backgrounds(options: BackgroundsOptions) -> object:
    """Cut background windows from micrographs: real noise for `vitreous abinit`.

    Of each micrograph as many windows are cut as it has particles. They touch no particle, hold
    only the usual noise, and overlap only where there is no other room. They have the particles'
    field of view and are then treated as `vitreous prepare` treats particles: give the same options
    to both. Writes backgrounds.mrcs and backgrounds.star, which pairs each window with its
    micrograph.

    Example: `vitreous backgrounds Extract/job012/particles.star --micrographs . --box 128 -o Noise`
    """
    from vitreous.jobs.prepare.backgrounds import backgrounds

    return backgrounds(options)
