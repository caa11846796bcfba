"""What the commands that write particle tables share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitreous.core.errors import InputError, UsageError
from vitreous.jobs.run.messages import say

if TYPE_CHECKING:
    from vitreous.io.star import StarDocument

OverwriteFile = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output file if it exists.")
]


def check_output(inputs: Sequence[Path], output: Path, *, overwrite: bool) -> None:
    """Refuse to write what cannot be written or must not be replaced.

    Raises:
        InputError: an input is missing.
        UsageError: unknown suffix, the output is an input, or exists.
    """
    from vitreous.data.formats import require_table_suffix

    require_table_suffix(output)
    for path in inputs:
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
        if output.exists() and output.samefile(path):
            raise UsageError(f"{output}: is also an input; write to another file")
    if output.exists() and not (overwrite and output.is_file()):
        raise UsageError(f"{output}: exists; --overwrite it, or write to another file")


def write_table(
    document: StarDocument, source: Path, output: Path, *, data_root: Path | None
) -> None:
    """Write a particle table so that its images are found from where it will lie.

    Raises:
        InputError: it cannot be written.
        ResourceError: disk full.
    """
    from vitreous.data.formats import relocated, write_particles_document

    folder = output.absolute().parent
    moved, missing = relocated(document, source, folder, data_root=data_root)
    write_particles_document(output, moved, source=source)
    if missing:
        say(
            f"warning: {missing} image stack(s) were not found from {source}; their names are "
            "kept as they are"
        )
