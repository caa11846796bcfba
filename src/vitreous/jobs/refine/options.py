"""Options of ``auto`` and ``refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vitreous.jobs.inputs.options import ParticleJobOptions

ROUNDS = ("rounds", "assignment", "scale", "refine_defocus", "keep_all")  # fields of the rounds


class PoseOptions(ParticleJobOptions):
    """How poses are searched and refined."""

    particles: Path = Field(
        description="Particle table of RELION (.star) or cryoSPARC (.cs); poses in it are not used."
    )
    shift_range_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="How far particles may be off centre in Å; by default 8 % of the box.",
    )
    rounds: int = Field(default=20, ge=1, description="Most rounds; it ends earlier once settled.")
    assignment: Literal["soft", "hard"] = Field(
        default="soft",
        description="`soft`: every particle enters with all its likely poses, by their "
        "probability; `hard`: with the best one.",
    )
    scale: Literal["one", "micrograph", "image"] = Field(
        default="one",
        description="`micrograph` or `image` fits the contrast of every micrograph or particle "
        "and weights particles by it; `one` takes it as equal.",
    )
    refine_defocus: bool = Field(
        default=False, description="Refine the mean defocus of every micrograph, by up to 500 Å."
    )
    keep_all: bool = Field(
        default=False,
        description="Do not leave particles out of the maps that noise alone explains better.",
    )

    def settings(self) -> dict[str, Any]:
        """Return the fields of a refinement's configuration that do not depend on the data."""
        return {
            "symmetry": self.symmetry,
            "rounds": self.rounds,
            "assignment": self.assignment,
            "scale": self.scale,
            "refine_defocus": self.refine_defocus,
            "reject": not self.keep_all,
            "seed": self.seed,
            "diameter_angstrom": self.mask_diameter_angstrom,
        }


class AutoOptions(PoseOptions):
    """Options of ``auto``: particles to a refined map without a start."""

    images: int = Field(
        default=1000,
        ge=4,
        description="Particles of each half set in the first try for an initial model; every "
        "further try takes twice as many.",
    )
    starts: int = Field(
        default=2,
        ge=1,
        description="Random starts of each half set; the best one goes on.",
    )
    tries: int = Field(
        default=3,
        ge=1,
        description="Most tries until both half sets come to the same initial model.",
    )
    only_start: bool = Field(
        default=False, description="End with the initial model; refine neither poses nor map."
    )


class RefineOptions(PoseOptions):
    """Options of ``refine``: particles and a rough map to a refined map."""

    INPUTS = frozenset({"start_map"})
    start_map: Path = Field(
        description="Map to start from (.mrc), of any pixel size and grey scale. With `symmetry` "
        "its axes must be RELION's."
    )
    start_resolution_angstrom: float = Field(
        default=40.0,
        ge=1,
        description="Resolution in Å to which the map is good; nothing finer of it is used. Lower "
        "is bolder: both halves start from it, and share what it holds.",
    )
