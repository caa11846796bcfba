"""Resample a map file to another pixel size or box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitreous.core.errors import InputError
from vitreous.data.maps import read_map, resample_map
from vitreous.io.mrc import write_mrc
from vitreous.jobs.maps.options import ResampleOptions


@dataclass(frozen=True)
class ResampleResult:
    """A map that was written."""

    path: Path
    box_size: int  # pixels
    pixel_size_angstrom: float
    text: str  # a line about it


def resample(options: ResampleOptions) -> ResampleResult:
    """Write a map on another grid of the same centre.

    Raises:
        UsageError: the output exists.
        InputError: a map that cannot be read, or a grid of less than 2 voxels.
        ResourceError: the disk is full.
    """
    options.check_output(options.output)
    volume, pixel = read_map(options.source, options.pixel_size_angstrom)
    n, new = len(volume), options.target_pixel_size_angstrom
    box = options.box_size or (round(n * pixel / new / 2) * 2 if new else n)
    if box < 2:
        raise InputError(
            f"{options.source}: {n * pixel:g} Å wide, less than two pixels of {new:g} Å"
        )
    new = new or n * pixel / box
    write_mrc(options.output, resample_map(volume, pixel, box, new).numpy(), new)
    text = f"{n} px at {pixel:.5g} Å -> {box} px at {new:.5g} Å: {options.output}"
    return ResampleResult(options.output, box, new, text)
