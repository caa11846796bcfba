"""Options of ``auto`` and ``refine``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from vitreous.jobs.inputs.options import ParticleJobOptions

ROUNDS = (  # fields of the rounds
    "rounds",
    "assignment",
    "scale",
    "refine_defocus",
    "refine_aberrations",
    "prior",
    "keep_all",
)


class PoseOptions(ParticleJobOptions):
    """How poses are searched and refined."""

    particles: Path = Field(
        description="Particle table of RELION (.star) or cryoSPARC (.cs). Poses in it are not "
        "used: every pose is searched among all rotations."
    )
    shift_range_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="How far particles may be off centre in Å; by default 8 % of the box.",
    )
    rounds: int = Field(
        default=20,
        ge=1,
        description="Most rounds of pose search and reconstruction; refinement ends earlier once "
        "the FSC between the half maps no longer grows.",
    )
    assignment: Literal["soft", "hard"] = Field(
        default="soft",
        description="`soft`: every particle enters with all its likely poses, by their "
        "probability; `hard`: with the best one.",
    )
    scale: Literal["one", "micrograph", "image"] = Field(
        default="one",
        description="Contrast of the images: `one` for all of them; `micrograph` or `image`: fit "
        "it to every micrograph or particle, and weight particles by it.",
    )
    refine_defocus: Literal["no", "micrograph", "particle"] = Field(
        default="no",
        description="Refine the mean defocus of every `micrograph` (also without a value), by up "
        "to 500 Å, or that of every `particle` too, drawn towards its micrograph's.",
    )
    refine_aberrations: bool = Field(
        default=False,
        description="Refine beam tilt, trefoil, tetrafoil and the other phases up to the fourth "
        "order of every optics group.",
    )
    prior: Literal["wiener", "tv"] = Field(
        default="wiener",
        description="Regularisation of the maps in every round: `wiener`: by the FSC between the "
        "half maps; `tv`: total variation, with the strength by which each half map fits the other "
        "half set best, in rounds where it fits better than `wiener`. `tv` brings out more of "
        "small or noisy sets and takes longer.",
    )
    keep_all: bool = Field(
        default=False,
        description="Use all particles for the maps. Otherwise those that noise explains better "
        "than the map are left out and listed in rejected.star.",
    )

    @field_validator("refine_defocus", mode="before")
    @classmethod
    def _of_bool(cls, value: Any) -> Any:
        return {True: "micrograph", False: "no"}[value] if isinstance(value, bool) else value

    def settings(self) -> dict[str, Any]:
        """Return the fields of a refinement's configuration that do not depend on the data."""
        return {
            "symmetry": self.symmetry,
            "rounds": self.rounds,
            "assignment": self.assignment,
            "scale": self.scale,
            "prior": self.prior,
            "refine_defocus": self.refine_defocus,
            "refine_aberrations": self.refine_aberrations,
            "reject": not self.keep_all,
            "seed": self.seed,
            "diameter_angstrom": self.mask_diameter_angstrom,
        }


class AutoOptions(PoseOptions):
    """Options of ``auto``: particles to a refined map without a start."""

    images: int = Field(
        default=1000,
        ge=4,
        description="Particles of each half set that the initial model is made from; every further "
        "try takes twice as many. More help where the signal is weak, and take longer.",
    )
    starts: int = Field(
        default=2,
        ge=1,
        description="Runs per half set and try, of the same particles from different random "
        "density; the one that fits them best goes on.",
    )
    tries: int = Field(
        default=3,
        ge=1,
        description="Most tries. A try makes an initial model from each half set; if the two "
        "differ, the next one follows, with other random density and twice as many particles. With "
        "a symmetry of at least 12 rotations, all but the first try start at finer shells.",
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
        description="Resolution in Å to which the map is good; nothing finer of it is used. Both "
        "half sets start from the map, so a finer value makes them share more, and up to there "
        "their FSC means nothing.",
    )
