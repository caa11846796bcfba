"""``vitreous pick``: particles of micrographs."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.pick.options import PickOptions


@options_command(
    PickOptions,
    {
        "micrographs": typer.Argument(metavar="MICROGRAPHS"),
        "templates": typer.Option("--templates", metavar="FILE"),
        "ctf_file": typer.Option("--ctf", metavar="FILE"),
        "micrograph_pixel_size_angstrom": "--apix",
        "avoid_bad_regions": "--clean",
    },
    panels={
        "What to look for": ("diameter_angstrom", "templates", "angle_step_degrees", "invert"),
        "What to keep": (
            *("threshold", "most", "distance_angstrom", "edge_angstrom"),
            *("avoid_bad_regions", "skip_bad"),
        ),
        "Micrographs and their CTF": (
            *("micrograph_pixel_size_angstrom", "ctf_file"),
            *("voltage_kv", "cs_mm", "amplitude_contrast"),
        ),
    },
)
def pick(options: PickOptions) -> object:
    """Find particles in micrographs, by diameter alone or by class averages.

    Micrographs are compared with a ball and a hollow shell of the particle's diameter, or with
    class averages at all rotations, by local normalised correlation; templates get the CTF of each
    micrograph where it is known. Writes particles.star (coordinates, scores and CTF of all
    particles), coordinates/NAME_autopick.star and autopick.star for RELION, and report.html.

    To go on: `vitreous prepare OUT/particles.star --micrographs MICROGRAPHS --window 160 --box 80
    -o PREPARED`

    Example: `vitreous pick MICROGRAPHS --diameter 130 --ctf micrographs_ctf.star -o OUT`
    """
    from vitreous.jobs.pick.run import pick

    return pick(options)
