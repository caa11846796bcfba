"""What the commands share: options, device and threads, signals, seeded random streams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.core.errors import UsageError

if TYPE_CHECKING:
    pass


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


def refuse_options(context: typer.Context, names: Iterable[str], method: str) -> None:
    """Refuse options given on the command line that the chosen method would ignore.

    Raises:
        UsageError: naming the option.
    """
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--continue" if name == "resume" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no meaning for --method {method}; leave it out")


def number_or_auto(option: str, text: str, *, signed: bool = False) -> float | None:
    """The number of an option that is ``auto`` or a number from 0 on; None stands for ``auto``.

    Args:
        option: its name, for the message.
        text: what was given.
        signed: negative numbers will do as well.

    Raises:
        UsageError: neither.

    >>> number_or_auto("--strength", "auto"), number_or_auto("--strength", "12.5")
    (None, 12.5)
    """
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and (signed or number >= 0)):
        raise UsageError(f"{option} {text}: give auto or a number{'' if signed else ' from 0 on'}")
    return number
