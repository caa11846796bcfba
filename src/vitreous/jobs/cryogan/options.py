"""Options of ``abinit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vitreous.jobs.inputs.options import GreyValueOptions, ImagingOptions, StackOpticsOptions
from vitreous.jobs.run.options import RunOptions

if TYPE_CHECKING:
    from vitreous.data.noise_files import NoiseFiles


class CryoGanOptions(GreyValueOptions, StackOpticsOptions, ImagingOptions, RunOptions):
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
    skip_bad: bool = Field(
        default=False,
        description="Leave out images with NaN or infinite pixels, or a few far beyond all others.",
    )
    noise: str = Field(
        default="white",
        description="`white`, or background patches: a STAR table or a stack (.mrcs) with its "
        "table beside it, paired with particles by micrograph name. A stack without table serves "
        "all micrographs.",
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

    def noise_files(self, *, invert: bool = False) -> NoiseFiles:
        """Return where the noise comes from; ``invert``: protein is dark in its micrographs."""
        from vitreous.data.noise_files import NoiseFiles

        return NoiseFiles(
            None if self.noise == "white" else Path(self.noise),
            apix=self.noise_pixel_size_angstrom,
            counts=self.particles_per_micrograph if self.ctf_file is not None else None,
            invert=invert,
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
