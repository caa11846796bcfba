"""``history.jsonl``: the numbers of a run, row by row, as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class HistoryFile:
    """``history.jsonl``, a row appended as it comes; NaN becomes null.

    Args:
        path: the file; begun anew, as the halves repeat their rows when they go on.
        keep: keep the earlier run's rows about both halves.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path
        if keep:
            self.rows = [row for row in read_rows(path) if "half" not in row]
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        """Write what was kept; a run without rows makes no file."""
        if self.rows or self._path.is_file():
            self._stream = self._path.open("w", encoding="utf-8")
        for row in self.rows:
            self._write(row)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        if self._stream is not None:
            self._stream.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self.rows.append(clean)
        self._write(clean)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._stream is None:
            self._stream = self._path.open("w", encoding="utf-8")
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run; a line that a kill cut is left out."""
    rows: list[Any] = []
    if not path.is_file():
        return []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]
