"""File ``history.jsonl``: the numbers of a run, a row at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from vitreous.io.atomic import atomic_write_text


class HistoryFile:
    """History of a run, written a row at a time; NaN becomes null.

    Args:
        path: the file; it is begun anew.
        rows: to begin with, such as those of a run that is continued.
    """

    def __init__(self, path: Path, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.rows, self._path = list(rows), path
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        """Write the rows to begin with; a run without rows makes no file."""
        if self.rows or self._path.is_file():  # a kill must not leave a part of the rows
            atomic_write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row to the file."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self.rows.append(clean)
        self._write(clean)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._stream is None:
            self._stream = self._path.open("a", encoding="utf-8")
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run; lines that are none, as a kill cuts them, are left out."""
    rows: list[Any] = []
    if not path.is_file():
        return []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    rows = [row for row in rows if isinstance(row, dict)]
    return [row for row in rows if isinstance(row.get("seconds", 0.0), int | float)]
