"""What a job returns to its caller, and the summary lines of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vitreous.jobs.run.folder import plain


@dataclass(frozen=True)
class Done:
    """A finished run: one sentence, and the lines to print below it."""

    verdict: str
    text: str


def subtitle(command: str) -> str:
    """The line under the page's title."""
    return f"vitreous {command}, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC"


def settings_shown(options: Mapping[str, Any]) -> dict[str, str]:
    """Options for the page; those of the solver one by one."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(plain(item)) for key, item in value.items()}
        else:
            flat[name] = str(plain(value))
    return flat
