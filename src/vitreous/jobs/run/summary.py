"""Results of jobs, and what reports and the terminal show of every one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitreous.jobs.run.folder import OutputFolder, plain
from vitreous.jobs.run.messages import reworded, shown_warnings


@dataclass(frozen=True)
class JobResult:
    """Outcome of a job, to be extended by its numbers."""

    solved: bool | None  # whether the data agree on a structure; None where that is no question
    verdict: str  # one sentence
    text: str  # lines to print below it
    folder: Path  # where everything was written


def rows_of_text(values: Mapping[str, str]) -> str:
    """Return named values as lines for the terminal, below one another.

    >>> print(rows_of_text({"time": "3 s", "report": "OUT/report.html"}))
    time         3 s
    report       OUT/report.html
    """
    return "\n".join(f"{name:<12} {value}" for name, value in values.items())


def page_head(
    folder: OutputFolder, title: str, verdict: str, warnings: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the fields that every report has: title, verdict, warnings, settings.

    Args:
        folder: of the run.
        title: of the page.
        verdict: one sentence without full stop.
        warnings: sentences that the page shows prominently, before those shown on the terminal.
    """
    command, now = folder.config["run"]["command"], datetime.now(UTC)
    return {
        "title": title,
        "subtitle": f"vitreous {command}, {now.strftime('%Y-%m-%d %H:%M')} UTC",
        "verdict": reworded(f"{verdict[0].upper()}{verdict[1:]}."),
        "warnings": tuple(map(reworded, dict.fromkeys((*warnings, *shown_warnings())))),
        "settings": _settings_shown(folder.config["options"]),
    }


def _settings_shown(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options for a report as the command line names them, those of a table one by one."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        shown = reworded(f"`{name}`").strip("`")
        flat |= {f"{name}.{key}" if key else shown: str(plain(item)) for key, item in items}
    return flat
