"""Options of ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vitreous.jobs.inputs.options import ContrastOptions, StackOpticsOptions
from vitreous.jobs.run.options import MachineOptions


class CheckOptions(ContrastOptions, StackOpticsOptions, MachineOptions):
    """Options of :func:`vitreous.jobs.check.run.check`."""

    CONTROL = frozenset({"output", "overwrite", "fix"})
    EXCLUSIVE = frozenset({("fix", "sample")})
    output: Path | None = Field(
        default=None,
        description="Folder to write the evidence to: report.html, findings.json. Without it "
        "results are only printed.",
    )
    fix: bool = Field(
        default=False,
        description="Write a corrected table beside the original: NAME_fixed.star. Images are not "
        "changed; bad ones are left out. Not with `sample`: the whole table is checked.",
    )
    sample: int | None = Field(
        default=None,
        ge=1,
        description="Examine so many images only, evenly spaced: a quick check of a large stack; "
        "not with `fix`. By default every image is read once.",
    )
    invert: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="What is said about contrast, to be tested: protein is dark (`yes`), white "
        "(`no`), or as the table says (`auto`), which is white but for some .cs files.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of half sets and random poses.")
    overwrite: bool = Field(
        default=False,
        description="Replace the evidence and the corrected table of an earlier check.",
    )
