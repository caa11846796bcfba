"""Options of ``postprocess``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vitreous.jobs.maps.options import HalfMapOptions
from vitreous.jobs.run.options import FolderOptions, ThreadOptions


class PostprocessOptions(HalfMapOptions, FolderOptions, ThreadOptions):
    """Options of :func:`vitreous.jobs.postprocess.run.postprocess_files`."""

    INPUTS = frozenset({"mask"})
    symmetry: str = Field(
        default="C1",
        description="Average both half maps over this point group first, about RELION's axes (C4, "
        "D2, T, O, I ...). Not needed where they were made with it.",
    )
    mask: Path | None = Field(
        default=None,
        description="Soft mask, 0 to 1, on the same grid; by default one is made from the maps.",
    )
    b_factor_angstrom2: float | Literal["auto"] = Field(
        default="auto",
        description="B factor in Å²; negative sharpens. `auto` fits it to the fall of the "
        "amplitudes beyond 10 Å, and applies none where the resolution is worse.",
    )
    local_resolution: bool = Field(
        default=True,
        description="Estimate the resolution at every voxel, and filter the map by it.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the random phases of the corrected FSC."
    )
