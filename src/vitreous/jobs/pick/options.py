"""Options of ``pick``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vitreous.jobs.inputs.options import ContrastOptions, MicroscopeOptions
from vitreous.jobs.run.options import OutputOptions


class PickOptions(ContrastOptions, MicroscopeOptions, OutputOptions):
    """Options of :func:`vitreous.jobs.pick.run.pick`."""

    INPUTS = frozenset({"templates", "ctf_file"})
    micrographs: Path = Field(
        description="Folder of motion-corrected micrographs (.mrc), one of them, or a STAR file of "
        "micrographs."
    )
    diameter_angstrom: float = Field(
        ge=1, le=1e4, description="Diameter of the particle in Å; within 10 % will do."
    )
    templates: Path | None = Field(
        default=None,
        description="Class averages, protein white: a stack (.mrcs), or a STAR file that names "
        "them. By default a ball and a hollow shell of `diameter_angstrom`.",
    )
    angle_step_degrees: float = Field(
        default=15, ge=1, le=360, description="Step of the rotations of `templates` in degrees."
    )
    ctf_file: Path | None = Field(
        default=None,
        description="CTF of the micrographs: RELION's micrographs STAR file, CTFFIND4 results with "
        "names, or a table with a header line (micrograph, defocus_u_A, defocus_v_A, angle_deg). "
        "By default that of a STAR file of micrographs. Without it low frequencies alone count.",
    )
    micrograph_pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of the micrographs in Å, if not their own."
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least score of a particle, a correlation. By default where the scores of "
        "particles and of noise part.",
    )
    most: int | None = Field(
        default=None, ge=1, description="At most so many particles of a micrograph, the best."
    )
    distance_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="Least distance of two particles in Å; by default 60 % of the diameter.",
    )
    edge_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="Least distance of a particle from the edge of the micrograph in Å; by default "
        "half the diameter.",
    )
    avoid_bad_regions: bool = Field(
        default=True,
        description="Leave out ice crystals, carbon edges and padding: outliers of the local mean "
        "and variance.",
    )
    skip_bad: bool = Field(
        default=False, description="Leave out damaged micrographs instead of stopping."
    )
