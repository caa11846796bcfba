"""``vitreous postprocess``: half maps to a sharpened map, its resolution, here and on the whole."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import HALF_MAPS
from vitreous.jobs.postprocess.options import PostprocessOptions


@options_command(
    PostprocessOptions,
    {
        **HALF_MAPS,
        "mask": typer.Option("--mask", metavar="MASK.mrc"),
        "b_factor_angstrom2": typer.Option("--b-factor", metavar="auto|NUMBER"),
    },
)
def postprocess(options: PostprocessOptions) -> object:
    """Mask, FSC, sharpening and local resolution of two half maps.

    Writes the mask, the sharpened map, the local resolution in Å, the map filtered by it, the FSC
    with and without mask, and a report. The half maps must be independent, unfiltered and in one
    frame.

    Example: `vitreous postprocess OUT/half1.mrc OUT/half2.mrc -o POST`
    """
    from vitreous.jobs.postprocess.run import postprocess_files

    return postprocess_files(options)
