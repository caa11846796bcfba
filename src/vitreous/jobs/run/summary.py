"""Summary lines of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitreous.jobs.run.folder import plain


@dataclass(frozen=True)
class JobResult:
    """Outcome of a job, to be extended by its numbers."""

    solved: bool | None  # whether the data agree on a structure; None where that is no question
    verdict: str  # one sentence
    text: str  # lines to print below it
    folder: Path  # where everything was written


def subtitle(command: str) -> str:
    """Return the line under the title of a report."""
    return f"vitreous {command}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC"


def settings_shown(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options by name for a report; those of a nested table one by one."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{name}.{key}" if key else name: str(plain(item)) for key, item in items}
    return flat
