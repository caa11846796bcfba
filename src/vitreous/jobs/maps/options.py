"""Options of jobs on maps: ``align``, ``resample``, ``fsc`` and ``symmetry``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.run.options import Options, ThreadOptions


class MapFileOptions(Options):
    """How map files are read."""

    pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size in Å, instead of the files' own."
    )


class HalfMapOptions(MapFileOptions):
    """Two half maps."""

    INPUTS = frozenset({"half1", "half2"})
    half1: Path = Field(description="Unfiltered half map 1.")
    half2: Path = Field(description="Unfiltered half map 2, in the same frame.")


class NewMapOptions(Options):
    """The file of a map that a job writes."""

    CONTROL = frozenset({"overwrite"})
    overwrite: bool = Field(default=False, description="Replace the file if it exists.")

    def check_output(self, output: Path) -> None:
        """Refuse a file that exists and must not be replaced.

        Raises:
            UsageError: it exists.
        """
        if output.exists() and not (self.overwrite and output.is_file()):
            raise UsageError(f"{output}: exists; give `overwrite`, or write to another file")


class AlignOptions(NewMapOptions, MapFileOptions, ThreadOptions):
    """Options of :func:`vitreous.jobs.maps.align.align`."""

    moving: Path = Field(description="The map to move.")
    reference: Path = Field(description="The map to move it onto.")
    output: Path = Field(description="File of the moved map.")
    symmetry: str = Field(
        default="C1",
        description="Point group of both maps about RELION's axes (C1, C4, D2, T, O, I1 ...): only "
        "the rotations that it leaves free are searched.",
    )
    mirror: bool = Field(
        default=True,
        description="Try the other hand as well. Ab initio maps have an arbitrary one.",
    )
    device: str = Field(
        default="auto",
        description="Where to compute: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.",
    )

    @model_validator(mode="after")
    def _another_file(self) -> Self:
        if self.output.resolve() in (self.moving.resolve(), self.reference.resolve()):
            raise UsageError(f"`output` {self.output}: is one of the inputs; choose another name")
        return self


class ResampleOptions(NewMapOptions, MapFileOptions):
    """Options of :func:`vitreous.jobs.maps.resample.resample`."""

    source: Path = Field(description="The map to resample.")
    output: Path = Field(description="File of the resampled map.")
    target_pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of the new map in Å."
    )
    box_size: int | None = Field(default=None, ge=2, le=4096, description="Box of the new map.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.target_pixel_size_angstrom is None and self.box_size is None:
            raise UsageError("give `target_pixel_size_angstrom`, `box_size`, or both")
        if self.output.resolve() == self.source.resolve():
            raise UsageError(f"`output` {self.output}: is the input; choose another name")
        return self


class FscOptions(MapFileOptions):
    """Options of :func:`vitreous.jobs.maps.fsc.compare`."""

    EXCLUSIVE = frozenset({("mask", "auto_mask")})
    first: Path = Field(description="A map, usually a half map.")
    second: Path = Field(description="The map to compare it with.")
    mask: Path | None = Field(
        default=None,
        description="Soft mask, 0 to 1, on the same grid. The curve is then corrected for the "
        "correlation that the mask itself adds, by phase randomisation (Chen et al. 2013).",
    )
    auto_mask: bool = Field(
        default=False, description="As `mask`, with a mask made from the two maps."
    )
    output: Path | None = Field(default=None, description="Write the curve here as CSV.")
    seed: int = Field(default=0, ge=0, description="Seed of the random phases of a masked curve.")


class SymmetryOptions(HalfMapOptions, ThreadOptions):
    """Options of :func:`vitreous.jobs.maps.symmetry.find`."""

    CONTROL = frozenset({"output", "overwrite"})
    half1: Path = Field(
        description="Half map 1, made without symmetry (C1): imposed symmetry would be found again."
    )
    output: Path | None = Field(
        default=None,
        description="Folder for the table and, where a group was found, the half maps and their "
        "mean with its axes where RELION has them.",
    )
    box_size: int = Field(
        default=40, ge=16, le=96, description="Working box; larger maps are Fourier-cropped to it."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the search's random rotations.")
    overwrite: bool = Field(
        default=False, description="Replace what an earlier run of this command left in the folder."
    )
