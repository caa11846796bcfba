"""``vitreous prepare``: particle images resampled and normalised, ready for a reconstruction."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import IMAGE_FLAGS, IMAGE_PANELS
from vitreous.jobs.prepare.options import PrepareOptions


@options_command(
    PrepareOptions,
    {
        **IMAGE_FLAGS,
        "first_rows": "--first",
        "micrographs": typer.Option("--micrographs", metavar="FOLDER"),
    },
    panels={**IMAGE_PANELS, "Grey values": (*IMAGE_PANELS["Grey values"], "phase_flip")},
)
def prepare(options: PrepareOptions) -> object:
    """Resample, normalise and invert particle images, into a new stack with its table.

    The order is: phase flip, window, Fourier crop, inversion, ramp, normalisation. Writes
    particles.mrcs and particles.star (all columns of the input, same order; image names, pixel size
    and image size updated; the old names in rlnImageOriginalName), and excluded.txt if images had
    to be left out. Memory stays below 1 GB whatever the size of the input, which is never changed.

    Stop it with Ctrl-C and go on with --continue: the result is the same, bit for bit.

    Of picks (`vitreous pick`) and of coordinates from elsewhere the images are cut from the
    micrographs: `vitreous prepare picks.star --micrographs FOLDER --window 160 --box 80 -o OUT`

    Example: `vitreous prepare Extract/job012/particles.star --box 128 -o Prepared`
    """
    from vitreous.jobs.prepare.run import prepare

    return prepare(options)
