"""Options of ``abinit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import StackOpticsOptions
from vitreous.jobs.run.options import RunOptions

if TYPE_CHECKING:
    from vitreous.data.noise_files import NoiseFiles


class CryoGanOptions(StackOpticsOptions, RunOptions):
    """Options of ``abinit``: particle images to two half maps, without poses or a start."""

    INPUTS = frozenset({"settings_file"})
    CONTROL = frozenset({"allow_config_change", "save_minutes"})
    particles: Path = Field(
        description="Particle table of RELION (.star, 3.0 to 5) or cryoSPARC (.cs). Or a stack "
        "(.mrcs) with `ctf_file` and `particles_per_micrograph`."
    )
    particles_per_micrograph: Path | None = Field(
        default=None,
        description="For a stack: how many particles each micrograph has, a number a line, in the "
        "order of `ctf_file`. Also pairs `noise` patches of a stack without table.",
    )
    symmetry: str = Field(
        default="C1",
        description="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
        "RELION's axes. If unsure: C1.",
    )
    box_size: int | None = Field(
        default=None,
        ge=8,
        description="Crop images to this many pixels in Fourier space (the field of view stays, "
        "the pixel grows); the particles' own box, at most 64, by default.",
    )
    invert: bool = Field(
        default=False, description="Protein is dark in the images (raw micrographs)."
    )
    skip_bad: bool = Field(
        default=False, description="Leave out images with NaN or infinite pixels."
    )
    envelope_nyquist: float | None = Field(
        default=None,
        ge=1e-6,
        le=1,
        description="Envelope of the CTF by its value at the Nyquist frequency of the images as "
        "stored, a fraction; replaces the table's.",
    )
    b_factor_angstrom2: float | None = Field(
        default=None,
        ge=0,
        description="Envelope by its B factor in Å²: exp(-B k²/4); replaces the table's.",
    )
    noise: str = Field(
        default="white",
        description="`white`, or background patches: a STAR table or a stack (.mrcs) with its "
        "table beside it, paired with particles by micrograph name. A stack without table serves "
        "all micrographs.",
    )
    noise_pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of the patches in Å, if not their own."
    )
    shift: str = Field(
        default="none",
        description="How far particles are off centre, in Å: `none`, `triangular:WIDTH` (full "
        "width), `pixels:WIDTH` (the same, whole pixels) or `gaussian:SIGMA`.",
    )
    poses: str = Field(
        default="uniform",
        description="How orientations are distributed: `uniform`, `gaussian:SIGMA` (Euler angles "
        "of variances SIGMA, 2 and 1 rad²) or `star:FILE` (drawn from its table).",
    )
    preset: Literal["default", "paper"] = Field(
        default="default",
        description="`default`: coarse to fine, fast. `paper`: the settings of the CryoGAN papers, "
        "for hours on a GPU.",
    )
    settings_file: Path | None = Field(
        default=None,
        description="TOML file of solver settings, on top of the preset; config.toml of a run "
        "lists them all, docs/cryogan.md explains them.",
    )
    effort: float = Field(
        default=1.0, ge=1e-3, description="Multiplies the iterations of every stage."
    )
    mask_diameter_angstrom: float | None = Field(
        default=None,
        ge=1,
        description="Diameter in Å of the sphere that holds the molecule; by default 90 % of the "
        "box, 95 % with `preset=paper`.",
    )
    learning_rate_volume: float | None = Field(
        default=None, ge=1e-9, description="Adam's step for the volume, instead of the preset's."
    )
    learning_rate_critic: float | None = Field(
        default=None, ge=1e-9, description="Adam's step for the critic, instead of the preset's."
    )
    allow_config_change: bool = Field(
        default=False,
        description="Let `resume` go on although options or data differ; the difference is "
        "recorded.",
    )
    save_minutes: float = Field(default=2.0, ge=0, description="Minutes between checkpoints.")

    @model_validator(mode="after")
    def _one_envelope(self) -> Self:
        if self.envelope_nyquist is not None and self.b_factor_angstrom2 is not None:
            raise UsageError(
                "`envelope_nyquist` and `b_factor_angstrom2` exclude each other; give one"
            )
        return self

    def noise_files(self) -> NoiseFiles:
        """Return where the noise comes from."""
        from vitreous.data.noise_files import NoiseFiles

        return NoiseFiles(
            None if self.noise == "white" else Path(self.noise),
            apix=self.noise_pixel_size_angstrom,
            counts=self.particles_per_micrograph if self.ctf_file is not None else None,
            invert=self.invert,
        )

    def inputs(self) -> dict[str, Path]:
        """Return the input files by role; of a stack the pixels are compared, not the file."""
        files, noise = super().inputs(), self.noise_files()
        if self.particles.suffix != ".star":
            del files["particles"]
        more = {
            "noise": noise.path,
            "noise table": noise.table if noise.table != noise.path else None,
            "poses": Path(self.poses[5:]) if self.poses.startswith("star:") else None,
        }
        return files | {role: path for role, path in more.items() if path is not None}

    def recorded(self) -> dict[str, Any]:
        """Return what determines the result; of the noise the file's name."""
        noise = self.noise if self.noise == "white" else Path(self.noise).name
        return super().recorded() | {"noise": noise}
