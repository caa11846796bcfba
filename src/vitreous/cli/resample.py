"""``vitreous resample``: a map on another grid."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.maps.options import ResampleOptions


@options_command(
    ResampleOptions,
    {
        "source": typer.Argument(metavar="MAP.mrc"),
        "output": typer.Option("--output", "-o", metavar="RESAMPLED.mrc"),
        "target_pixel_size_angstrom": "--apix",
        "pixel_size_angstrom": "--input-apix",
    },
)
def resample(options: ResampleOptions) -> object:
    """Write a map with another pixel size, another box, or both, about the same centre.

    With one of the two the field of view stays and the other follows; with both it is cropped, or
    padded with zeros. The map's Fourier series is evaluated on the new grid: no interpolation.

    Example: `vitreous resample map.mrc -o coarse.mrc --apix 4 --box 64`
    """
    from vitreous.jobs.maps.resample import resample

    return resample(options)
