"""Options of ``figure``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vitreous.jobs.run.options import Options


class FigureOptions(Options):
    """Options of :func:`vitreous.jobs.figure.run.figure`."""

    CONTROL = frozenset({"folder", "output", "overwrite"})
    folder: Path = Field(
        description="Output folder of a finished run of `vitreous auto`, `refine`, `abinit`, "
        "`reconstruct`, `postprocess`, `hetero run` or `classify2d`."
    )
    output: Path | None = Field(
        default=None, description="Folder to write; by default `figures` in that of the run."
    )
    level: float | None = Field(
        default=None,
        description="Density of the surface, in the grey values of the map; by default as in "
        "report.html.",
    )
    not_solved: bool = Field(
        default=False,
        description="Draw the results of a run that is NOT SOLVED as well; each figure says so.",
    )
    overwrite: bool = Field(
        default=False, description="Replace what an earlier run of this command left in the folder."
    )
