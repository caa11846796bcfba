"""``vitreous postprocess``: half maps to a sharpened map, its resolution, here and on the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import HALF_MAPS
from vitreous.jobs.postprocess.options import PostprocessOptions

if TYPE_CHECKING:
    from vitreous.jobs.postprocess.run import PostprocessResult

app = typer.Typer(add_completion=False)


@app.command(no_args_is_help=True)
@options_command(
    PostprocessOptions,
    {
        **HALF_MAPS,
        "mask": typer.Option("--mask", metavar="MASK.mrc"),
        "b_factor_angstrom2": typer.Option("--b-factor", metavar="auto|NUMBER"),
    },
)
def postprocess(options: PostprocessOptions) -> PostprocessResult:
    """Mask, FSC, sharpening and local resolution of two half maps.

    Writes the mask, the sharpened map, the local resolution in Å, the map filtered by it, the FSC
    with and without mask, and a report. The half maps must be independent, unfiltered and in one
    frame.

    Example: `vitreous postprocess OUT/half1.mrc OUT/half2.mrc -o POST`
    """
    from vitreous.jobs.postprocess.run import postprocess_files

    return postprocess_files(options)
