"""Options of ``vitreous tomo``."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.run.options import ComputeOptions, RunOptions


class TomoReconstructOptions(RunOptions):
    """Options of :func:`vitreous.jobs.tomography.run.reconstruct_tilts`."""

    INPUTS = frozenset({"tilts", "angles", "mask"})
    tilts: Path = Field(
        description="Aligned tilt series, an MRC stack with the tilt axis along y; NaN where not "
        "scanned."
    )
    angles: Path = Field(
        description="Tilt angles: .tlt or .rawtlt (one a line) or SerialEM's .mdoc."
    )
    mask: Path | None = Field(
        None, description="Scan mask: an MRC stack like the tilt series, 0 where not scanned."
    )
    thickness: int | None = Field(
        None, ge=1, le=8192, description="Voxels of the map along z; half of x by default."
    )
    method: Literal["tv", "wbp", "sirt", "two-step"] = Field(
        "tv",
        description="`tv`: total variation, in one step from the scanned pixels; `two-step`: every "
        "image inpainted first; `sirt`: algebraic; `wbp`: weighted back-projection.",
    )
    strength: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Weight of total variation: `auto`, by cross-validation between halves of the "
        "measurements on a few slices, or a number.",
    )
    inpainting: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="Weight of total variation for the images of `two-step`."
    )
    iterations: int | None = Field(
        None, ge=1, description="Most iterations for each map; 60 by default, 30 with `sirt`."
    )
    pixel_size_angstrom: float | None = Field(
        None, ge=1e-3, description="Pixel size of the images in Å, instead of the file's own."
    )


class TomoSimulateOptions(ComputeOptions):
    """Options of :func:`vitreous.jobs.tomography.simulate.simulate_tilts`."""

    source: str = Field(
        description="Map to image (.mrc), or `phantom:SEED`, a piece of a cell made from a number."
    )
    shape: str = Field(
        "256x256x128",
        description="Voxels of a phantom along x, y (the tilt axis) and z (the thickness); 40 Å a "
        "voxel at 256x256x128, the same cell at other sizes.",
    )
    pixel_size_angstrom: float | None = Field(
        None, ge=1e-3, description="Voxel edge in Å, if not the map's own (phantom: 10240/X)."
    )
    max_tilt_degrees: float = Field(
        70.0, ge=0, le=89, description="Largest tilt in degrees, either way."
    )
    increment_degrees: float = Field(
        1.0, ge=0.01, le=89, description="Step between tilts in degrees; saxton: at 0 degrees."
    )
    scheme: Literal["linear", "saxton"] = Field(
        "linear", description="`linear`: equal steps; `saxton`: steps that fall with cos(tilt)."
    )
    dose: float = Field(1.0, ge=1e-4, le=1, description="Share of all pixels that are scanned.")
    downsampling: Literal["random", "tilt"] = Field(
        "random",
        description="How the dose is reduced: `random` pixels of every image, or every so many a "
        "`tilt`, fully scanned.",
    )
    snr: float = Field(
        100.0, ge=1e-9, description="Signal over noise variance, over whole noiseless images."
    )

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """The shape of a phantom as (z, y, x).

        Raises:
            UsageError: not three whole numbers from 8 to 8192.
        """
        parts = self.shape.lower().split("x")
        if len(parts) != 3 or not all(p.isdecimal() and 8 <= int(p) <= 8192 for p in parts):
            raise UsageError(
                f"`shape` {self.shape}: give three edges from 8 to 8192, as in 256x256x128"
            )
        x, y, z = map(int, parts)
        return z, y, x

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.shape_zyx
        return self
