"""Options of ``prepare`` and ``backgrounds``, and those that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vitreous.jobs.inputs.options import ParticleFileOptions
from vitreous.jobs.run.options import Options, OutputOptions


class ImageOptions(Options):
    """Size and grey values of the images to write."""

    CONTROL = frozenset({"resume"})
    box_size: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="Resample to this many pixels per edge by cropping the spectrum. The field of "
        "view stays, the pixel size becomes edge / box. A box larger than the image pads the "
        "spectrum with zeros: more pixels, no more information.",
    )
    target_pixel_size_angstrom: float | None = Field(
        default=None,
        ge=0.01,
        description="Resample to this pixel size in Å: to the nearest even box, after trimming up "
        "to 4 % of the edge where that meets it better. With `box_size`: to the window that gives "
        "both.",
    )
    window: int | None = Field(
        default=None,
        ge=8,
        description="First cut out the central part: its edge in pixels of the input. Of a table "
        "of picks: edge of the particles in pixels of the micrographs.",
    )
    normalise: Literal["ring", "signal", "none"] = Field(
        default="ring",
        description="`ring`: mean 0, standard deviation 1 outside the background circle, as RELION "
        "does. `signal`: mean 0 outside, mean 1 inside; only for images whose contrast exceeds "
        "their noise, see docs/prepare.md. `none`: grey values stay.",
    )
    mask_diameter_angstrom: float | None = Field(
        default=None,
        ge=1,
        description="Diameter of the background circle in Å; by default 75 % of the edge.",
    )
    ramp: bool = Field(
        default=False,
        description="Subtract the plane that fits the background best (RELION's extraction does).",
    )
    invert: bool = Field(
        default=False,
        description="Multiply by -1: for input with dark protein, such as raw micrographs.",
    )
    float16: bool = Field(
        default=False,
        description="Write half precision (MRC mode 12): half the size, relative error 5e-4.",
    )
    resume: bool = Field(
        default=False,
        description="Go on with the run in the folder; give the same options.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Pieces processed at a time; 0 takes the cores, at most 8. Each takes 80 MB.",
    )


class PrepareOptions(ImageOptions, ParticleFileOptions, OutputOptions):
    """Options of :func:`vitreous.jobs.prepare.run.prepare`."""

    micrographs: Path | None = Field(
        default=None,
        description="Cut the particles from the micrographs (.mrc) in this folder, at the table's "
        "rlnCoordinateX/Y, `window` pixels wide; for picks, which have no images, and to extract "
        "again. `pixel_size_angstrom` is then that of the micrographs.",
    )
    phase_flip: bool = Field(
        default=False,
        description="Multiply each spectrum by the sign of its CTF, and record it in the table "
        "(rlnCtfDataArePhaseFlipped). For other programs: `vitreous abinit` refuses them.",
    )
    first_rows: int | None = Field(
        default=None,
        ge=1,
        description="Only the first so many rows of the table, for a quick trial.",
    )
    skip_bad: bool = Field(
        default=False,
        description="Leave out images with NaN or infinite pixels, or a few far beyond all others, "
        "instead of stopping. Constant images are left out in any case.",
    )


class BackgroundsOptions(ImageOptions, ParticleFileOptions, OutputOptions):
    """Options of :func:`vitreous.jobs.prepare.backgrounds.backgrounds`."""

    micrographs: Path = Field(
        description="Folder of the micrographs (.mrc, motion-corrected). The table's names are "
        "looked for below it as they are, then by their last part."
    )
    coordinates: Path | None = Field(
        default=None,
        description="Folder of picks, beside the table's rlnCoordinateX/Y or instead of them: "
        "NAME.box (EMAN), NAME.star or NAME_autopick.star for a micrograph NAME.mrc, in its "
        "pixels.",
    )
    micrograph_pixel_size_angstrom: float | None = Field(
        default=None,
        ge=1e-3,
        description="Pixel size of the micrographs in Å, if not what the table or the files say.",
    )
    particle_diameter_angstrom: float | None = Field(
        default=None,
        ge=1,
        description="Diameter in Å of the disc around every particle that no window may touch; "
        "75 % of the particles' box by default.",
    )
    skip_missing: bool = Field(
        default=False, description="Leave out micrographs that are not in the folder."
    )
    skip_bad: bool = Field(
        default=False, description="Leave out damaged micrographs instead of stopping."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the choice of windows.")
