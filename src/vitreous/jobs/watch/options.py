"""Options of ``watch``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vitreous.jobs.run.options import Options


class WatchOptions(Options):
    """Options of :func:`vitreous.jobs.watch.run.watch`."""

    folders: tuple[Path, ...] = Field(
        min_length=1, description="Output folders of runs; they need not exist yet."
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port to listen on, of this machine only; 0 takes a free one.",
    )
    idle_seconds: float = Field(
        default=300,
        gt=0,
        description="End this many seconds after the page was last asked for, once no run goes on.",
    )
