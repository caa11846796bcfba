"""A program of a slow job whose rounds the page shows: ``python watched_job.py OUT [continue]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from vitreous.jobs.run.job import Job
from vitreous.jobs.run.options import RunOptions

ROUNDS = 40


class SlowRounds:
    """A solver with the state and the statistics of a refinement; a round takes a while."""

    def __init__(self, seconds: float) -> None:
        self.round, self._seconds = 0, seconds

    @property
    def done(self) -> bool:
        return self.round >= ROUNDS

    @property
    def progress(self) -> float:
        return self.round / ROUNDS

    def step(self) -> dict[str, float]:
        time.sleep(self._seconds)
        self.round += 1
        return {"resolution_angstrom": 60 / self.round**0.5, "posterior": 0.9}

    def state_dict(self) -> dict[str, Any]:
        shells = torch.arange(17) / 17
        cube = torch.zeros(32, 32, 32)
        cube[10:20, 8 : 9 + self.round // 2, 12:22] = 1
        fsc = (1.2 - shells * (1 + 4 / self.round)).clamp(0, 1)
        return {"round": self.round, "fsc": fsc, "references": [cube, cube]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = state["round"]

    def result(self) -> int:
        return self.round


def run(folder: Path, seconds: float, *, resume: bool = False, watch: bool = True) -> None:
    """Run or continue the job, with the page."""
    options = RunOptions(output=folder, resume=resume, watch=watch, quiet=True)
    grid = {"box_size": 32, "pixel_size_angstrom": 4.0}
    with Job("refine", options, outputs=(), resolved=grid, save_seconds=0.0) as job:
        job.run(SlowRounds(seconds), "refinement", label="refinement", rows=None)
        job.path("report.html").write_text("<!DOCTYPE html><h1>the report</h1>")
        job.finish({"verdict": "12.0 Å at 0.143"})


if __name__ == "__main__":
    RESUME = len(sys.argv) > 2
    run(Path(sys.argv[1]), 0.5 if RESUME else 3.0, resume=RESUME)
