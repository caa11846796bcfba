"""Options that jobs on particles share: where the particles are, and how they are processed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vitreous.jobs.run.options import Options, RunOptions


class TableSourceOptions(Options):
    """How a particle table is read and its images are found."""

    TABLE: ClassVar[str]  # field with the table's path
    INPUTS = frozenset({"passthrough"})
    MACHINE = frozenset({"data_root"})
    passthrough: tuple[Path, ...] = Field(
        default=(),
        description="For a .cs file: a passthrough file with further fields of the same particles, "
        "matched by uid. May be given several times.",
    )
    data_root: Path | None = Field(
        default=None,
        description="Folder that the table's image names are relative to, wholly or from some part "
        "of the name on; by default the table's own, or the nearest above it where the images are.",
    )

    @model_validator(mode="before")
    @classmethod
    def _open_job_folder(cls, values: Any) -> Any:
        """Replace the folder of a cryoSPARC job by its particle file and passthrough files."""
        path = values.get(cls.TABLE) if isinstance(values, dict) else None
        if not isinstance(path, str | Path) or not Path(path).is_dir():
            return values
        from vitreous.io.cryosparc_jobs import particle_files

        file, passthrough = particle_files(path, values.get("passthrough") or ())
        return {**values, cls.TABLE: file, "passthrough": passthrough}


class ParticleFileOptions(TableSourceOptions):
    """Where particles are and how their files are read."""

    TABLE = "particles"
    INPUTS = frozenset({"particles"})
    particles: Path = Field(
        description="Particle table of RELION (.star, 3.0 to 5) or cryoSPARC (.cs, .csg, or a "
        "job's folder)."
    )
    pixel_size_angstrom: float | None = Field(
        default=None,
        ge=1e-3,
        le=1e5,
        description="Pixel size of the images in Å, instead of the files' own.",
    )


class MicroscopeOptions(Options):
    """Optics that micrographs have in common."""

    voltage_kv: float | None = Field(
        default=None, ge=1, description="Voltage in kV; the CTF file's or 300."
    )
    cs_mm: float | None = Field(
        default=None, ge=0, description="Spherical aberration in mm; the CTF file's or 2.7."
    )
    amplitude_contrast: float | None = Field(
        default=None,
        ge=0,
        le=0.999,
        description="Amplitude contrast, a fraction; the CTF file's or 0.1.",
    )


class ImagingOptions(Options):
    """How images are simulated: poses, shifts, envelope of the CTF, and pixels of noise patches."""

    EXCLUSIVE = frozenset({("b_factor_angstrom2", "envelope_nyquist")})
    poses: str = Field(
        default="uniform",
        description="How orientations are distributed: `uniform`, `gaussian:SIGMA` (Euler angles "
        "of variances SIGMA, 2 and 1 rad²) or `star:FILE` (drawn from its table).",
    )
    shift: str = Field(
        default="none",
        description="How far particles are off centre, in Å: `none`, `triangular:WIDTH` (full "
        "width), `pixels:WIDTH` (the same, whole pixels) or `gaussian:SIGMA`.",
    )
    envelope_nyquist: float | None = Field(
        default=None,
        ge=1e-6,
        le=1,
        description="Envelope of the CTF by its value at the Nyquist frequency of the images as "
        "stored, a fraction; replaces that of a table.",
    )
    b_factor_angstrom2: float | None = Field(
        default=None,
        ge=0,
        description="Envelope by its B factor in Å²: exp(-B k²/4); replaces that of a table.",
    )
    noise_pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of noise patches in Å, if not their own."
    )

    def b_factor(self, pixel_size_angstrom: float) -> float | None:
        """Return the B factor of the envelope in Å² for images as stored; None for none."""
        from vitreous.physics.ctf import b_factor_from_nyquist_value

        if self.envelope_nyquist is None:
            return self.b_factor_angstrom2
        return b_factor_from_nyquist_value(self.envelope_nyquist, pixel_size_angstrom)


class StackOpticsOptions(ParticleFileOptions, MicroscopeOptions):
    """Particles as a table, or as a stack whose CTF and micrographs further files give."""

    INPUTS = frozenset({"ctf_file", "particles_per_micrograph"})
    ctf_file: Path | None = Field(
        default=None, description="For a stack: CTFFIND4 results, a row for each micrograph."
    )
    particles_per_micrograph: Path | None = Field(
        default=None,
        description="For a stack: how many particles each micrograph has, a number a line, in the "
        "order of `ctf_file`.",
    )


class ContrastOptions(Options):
    """Whether protein is dark."""

    invert: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Protein is dark in the images, as in raw micrographs: `yes` (also without a "
        "value), `no`, or `auto`: a sample of the images tells, and the table where they do not.",
    )

    @field_validator("invert", mode="before")
    @classmethod
    def _of_bool(cls, value: Any) -> Any:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @property
    def dark(self) -> bool | None:
        """Whether protein is stated to be dark; None where the images are to tell."""
        return {"yes": True, "no": False}.get(self.invert)


class GreyValueOptions(ContrastOptions):
    """How grey values are treated."""

    normalise: bool = Field(
        default=True,
        description="Take off the background of every image (its mean outside the particle) and "
        "scale it to unit deviation.",
    )


class ProcessingOptions(GreyValueOptions):
    """How particle images are processed before a method sees them."""

    symmetry: str = Field(
        default="C1",
        description="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
        "RELION's axes, so a wrong one goes unnoticed. If unsure: C1.",
    )
    box_size: int | None = Field(
        default=None,
        ge=8,
        description="Crop to this many pixels in Fourier space (the field of view stays, the pixel "
        "grows). Smaller is faster; the resolution ends at twice the pixel. By default the "
        "particles' own box.",
    )
    mask_diameter_angstrom: float | None = Field(
        default=None,
        ge=1,
        description="Diameter in Å of the sphere that holds the molecule: its largest diameter and "
        "10 to 20 % more. By default the box, and the FSC's mask is then found from the maps.",
    )
    ignore_ctf: bool = Field(
        default=False, description="Take the images as free of CTF (already corrected)."
    )
    skip_bad: bool = Field(
        default=False,
        description="Look through all images first and leave out those that are constant or have "
        "NaN or infinite pixels, or a few far beyond all others.",
    )


class ParticleJobOptions(ProcessingOptions, ParticleFileOptions, RunOptions):
    """What every job that reconstructs from particles has."""
