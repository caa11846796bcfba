"""What the commands share: options, device and threads, signals, seeded random streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitreous.core.errors import UsageError

Device = Annotated[
    str,
    typer.Option(
        help="Where to compute: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.",
        rich_help_panel="Machine",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0, help="CPU threads; 0 takes what the machine offers.", rich_help_panel="Machine"
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, help="Every random number follows from it; recorded in config.toml.", metavar="INT"
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder to write; made if it does not exist.", metavar="FOLDER"
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what an earlier run of this command left there."),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress; results and errors only.", rich_help_panel="Machine"
    ),
]


def require_finite(parameters: Mapping[str, Any]) -> None:
    """Refuse NaN and infinity, which pass the bounds of an option.

    Raises:
        UsageError: naming the option.
    """
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')}: {value} is not finite; give a number")
