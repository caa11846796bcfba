"""Options of ``simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import ImagingOptions, MicroscopeOptions
from vitreous.jobs.run.options import ComputeOptions


class SimulateOptions(MicroscopeOptions, ImagingOptions, ComputeOptions):
    """Options of :func:`vitreous.jobs.simulate.run.simulate`."""

    INPUTS = frozenset({"ctf_file", "noise", "noise_micrographs"})
    EXCLUSIVE = frozenset({("snr", "snr_db")})
    source: str = Field(
        description="What to image: an atomic model (.cif, .pdb, gzipped or not), a map (.mrc), or "
        "`phantom:SEED`, a protein-like molecule made from a number."
    )
    symmetry: str = Field(
        default="C1",
        description="Point group of a phantom (C1, C4, D2, T, O, I1 ...). A model or map must "
        "already have it about RELION's axes, and is averaged over it.",
    )
    input_pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of an input map in Å, if not its own."
    )
    resolution_angstrom: float | None = Field(
        default=None,
        ge=0.1,
        description="Resolution of the imaged density in Å; Nyquist by default.",
    )
    also: tuple[str, ...] = Field(
        default=(),
        description="Another molecule to mix in, given as the first; may be given several times. "
        "All have equal shares of the particles.",
    )
    hinge_degrees: float | None = Field(
        default=None,
        ge=0.1,
        le=180,
        description="Make a molecule that bends: the outermost domain of a phantom turns by up to "
        "this many degrees, in `states` steps.",
    )
    states: int = Field(default=10, ge=2, le=99, description="Number of states of `hinge_degrees`.")
    box_size: int = Field(
        default=64, ge=8, le=4096, description="Box size of the images in pixels."
    )
    pixel_size_angstrom: float = Field(
        default=4.0, ge=0.1, description="Pixel size of the images in Å."
    )
    n_particles: int = Field(default=10000, ge=1, description="Number of particles.")
    ctf_file: Path | None = Field(
        default=None,
        description="CTFFIND4 results, a row for each micrograph; particles are spread over them.",
    )
    defocus: str = Field(
        default="10000:25000",
        description="Without `ctf_file`: range of defocus in Å, underfocus positive.",
    )
    n_micrographs: int | None = Field(
        default=None, ge=1, description="Use only the first so many micrographs."
    )
    snr_db: float | None = Field(
        default=None,
        description="Signal over noise power in dB, over whole images after the CTF; by default 0.",
    )
    snr: float | None = Field(default=None, ge=1e-9, description="The same as a ratio.")
    noise: Path | None = Field(
        default=None,
        description="Real background patches, no smaller than the images in Å; without them the "
        "noise is white.",
    )
    noise_micrographs: Path | None = Field(
        default=None,
        description="How many patches each micrograph has, a number a line, in the order of "
        "`ctf_file`. Without it patches are dealt out in turn.",
    )

    ice_micrographs: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="Ice of different thickness: relative standard deviation of the micrographs' "
        "contrast, log-normal around 1.",
    )
    ice_particles: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="The same of particles, around the contrast of their micrograph.",
    )
    defocus_spread_angstrom: float = Field(
        default=0.0,
        ge=0,
        le=5000,
        description="Height in the ice: largest distance in Å of a particle's defocus from that of "
        "its micrograph, the only one in particles.star.",
    )
    beam_tilt_mrad: str = Field(
        default="0:0",
        description="Beam tilt in mrad along x and y. The table that a user would have does not "
        "state it.",
    )
    junk: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="Share of images that are junk, in three equal parts: backgrounds, "
        "contaminations of ice, and particles overlapped by another.",
    )
    micelle: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Put a belt of detergent around the molecule's middle, about the z axis, of "
        "this density relative to protein (about 0.3).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        phantom = self.source.startswith("phantom:")
        alone = phantom and not self.also and self.symmetry.upper() == "C1"
        if self.hinge_degrees is not None and not alone:
            raise UsageError(
                "`hinge_degrees` bends a phantom without symmetry, alone: give phantom:SEED, and "
                "neither `also` nor `symmetry`"
            )
        if self.micelle is not None and self.symmetry[:1].upper() not in "CD":
            raise UsageError(
                f"`micelle` {self.micelle:g}: a belt has the symmetry of C or D groups, not "
                f"{self.symmetry}"
            )
        return self
