"""Options of ``convert`` and ``select``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import TableSourceOptions
from vitreous.jobs.run.options import Options


class TableOptions(TableSourceOptions):
    """A particle table to read and one to write."""

    TABLE = "source"
    source: Path = Field(
        description="RELION .star (3.0 to 5), cryoSPARC .cs, .csg or a job's folder, a stack "
        "(.mrcs), or a .txt or .lst that names a stack a line."
    )
    output: Path = Field(description="The table to write: .star (RELION 3.1) or .cs.")
    overwrite: bool = Field(default=False, description="Replace the output file if it exists.")
    link: bool = Field(
        default=False,
        description="For RELION, with a .star output: make links NAME.mrcs, in a folder OUT_stacks "
        "beside it, to stacks elsewhere or of another suffix (cryoSPARC's end in .mrc), and name "
        "micrographs after the stacks where the table names none.",
    )

    @model_validator(mode="after")
    def _links_go_with_star(self) -> Self:
        if self.link and self.output.suffix.lower() != ".star":
            raise UsageError("`link` makes links for RELION: give an output that ends in .star")
        return self


class ConvertOptions(TableOptions):
    """Options of :func:`vitreous.jobs.tables.run.convert`."""

    pixel_size_angstrom: float | None = Field(
        default=None, ge=1e-3, description="Pixel size of the images in Å, instead of the file's."
    )


class SelectOptions(TableOptions):
    """Options of :func:`vitreous.jobs.tables.run.select`."""

    EXCLUSIVE = frozenset({("first", "random")})
    where: tuple[str, ...] = Field(
        default=(),
        description="Keep rows where a column compares so: == != < <= > >=, or `in A,B,C`. Columns "
        "as `vitreous info` lists them, with or without rln. Several conditions must all hold.",
    )
    classes: tuple[int, ...] = Field(
        default=(), description="Keep this class (rlnClassNumber); may be given several times."
    )
    half_set: int | None = Field(
        default=None, ge=1, le=2, description="Keep one half set (rlnRandomSubset)."
    )
    optics_group: str | None = Field(
        default=None, description="Keep one optics group, by number or name."
    )
    micrograph: str | None = Field(
        default=None, description="Keep micrographs whose name matches, with * and ?."
    )
    rows: Path | None = Field(
        default=None, description="Keep the rows listed in a text file, counted from 1."
    )
    images: Path | None = Field(
        default=None,
        description="Keep the rows whose images another table names, for example one saved from "
        "report.html.",
    )
    unique: bool = Field(
        default=False,
        description="Keep one of each copies: images of one name, or of equal pixels.",
    )
    min_distance_angstrom: float | None = Field(
        default=None,
        gt=0,
        description="Keep particles that lie at least this far, in Å, from those kept before them "
        "on their micrograph.",
    )
    first: int | None = Field(default=None, ge=1, description="Only the first so many.")
    random: int | None = Field(default=None, ge=1, description="Only so many, at random.")
    seed: int = Field(default=0, ge=0, description="Seed of `random`.")
    invert: bool = Field(default=False, description="Keep the others instead.")


class JoinOptions(Options):
    """Options of :func:`vitreous.jobs.tables.run.join`."""

    sources: tuple[Path, ...] = Field(
        min_length=2,
        description="Two or more tables, of any format that is read. A .cs file without its "
        "passthrough files: give the folder of its job, or its .csg.",
    )
    output: Path = Field(description="The table to write: .star (RELION 3.1) or .cs.")
    overwrite: bool = Field(default=False, description="Replace the output file if it exists.")
    data_root: Path | None = Field(
        default=None, description="Folder that the tables' image names are relative to."
    )
