"""The training loop of ``vitreous hetero``: history, progress, checkpoints, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from vitreous.cli.common import StopSignals, say
from vitreous.cli.history import HistoryFile
from vitreous.cli.output import OutputFolder
from vitreous.cli.progress import RunProgress
from vitreous.core.errors import DivergedError
from vitreous.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vitreous.io.nested import flatten_state, not_finite, restore_state
from vitreous.solvers.sorter import Sorter

ROWS = 200  # of the history
SAVE_SECONDS = 120.0


class Training:
    """A sorter with its clock, history and checkpoints.

    Args:
        sorter: to be trained.
        folder: entered; if it goes on, so does the sorter.
        stop: asked after every step.
        quiet: show no progress.
        save_seconds: between checkpoints.
    """

    def __init__(
        self,
        sorter: Sorter,
        folder: OutputFolder,
        stop: StopSignals,
        *,
        quiet: bool,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self._sorter, self._folder, self._stop = sorter, folder, stop
        self._quiet, self._save_seconds = quiet, save_seconds
        self._before, self._step = 0.0, 0
        self._sums: dict[str, tuple[float, int]] = {}
        found = load_checkpoint(folder.checkpoints) if folder.resuming else None
        if found is not None:
            self._restore(found)
        elif folder.resuming:
            say("no checkpoint yet, starts from the beginning")
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Wall time, interruptions left out."""
        return self._before + time.monotonic() - self._started

    def run(self, history: HistoryFile) -> None:
        """Steps until the sorter is done; the last state is saved.

        Args:
            history: entered; rows later than the checkpoint have been left out of it.

        Raises:
            DivergedError: the state is not finite; the last checkpoint is.
            SystemExit: stopped by a signal, after saving.
        """
        sorter = self._sorter
        if sorter.done:
            return
        written, saved = sorter.progress, time.monotonic()
        with RunProgress("training", quiet=self._quiet) as bar:
            while not sorter.done:
                stats = sorter.step()
                self._step += 1
                self._gather(stats)
                share = sorter.progress
                bar.update(share, stats)
                if share - written >= 1 / ROWS or sorter.done:
                    history.add(self._row(share))
                    written = share
                asked = self._stop.requested and not sorter.done
                if asked or time.monotonic() - saved > self._save_seconds:
                    self._save(last=asked)
                    saved = time.monotonic()
                if asked:
                    say(f"stopped and saved; go on with --continue -o {self._folder.root}")
                    self._stop.exit_if_requested()
        self._save(last=True)

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    def _gather(self, stats: Mapping[str, float]) -> None:
        for name, value in stats.items():
            if math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value, count + 1)

    def _row(self, share: float) -> dict[str, float]:
        """Means since the row before."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return {
            **means,
            "step": self._step,
            "progress": round(share, 4),
            "seconds": round(self.seconds(), 2),
        }

    def _save(self, *, last: bool) -> None:
        tensors, tree = flatten_state(self._sorter.state_dict())
        broken = not_finite(tensors)
        if broken and not last:
            say(f"warning: {broken[0]} is not finite; nothing was saved")
            return
        if broken:
            raise DivergedError(
                f"{broken[0]} is not finite, so it was not saved; go on from the last checkpoint "
                "with other settings (--config), or start again with another --seed"
            )
        meta = {"tree": tree, "seconds": self.seconds(), "done": self._sorter.done}
        save_checkpoint(self._folder.checkpoints, self._step, tensors, meta)

    def _restore(self, found: Checkpoint) -> None:
        self._sorter.load_state_dict(restore_state(found.tensors, found.meta["tree"]))
        self._step, self._before = found.step, float(found.meta["seconds"])


def open_history(folder: OutputFolder, step: int) -> HistoryFile:
    """``history.jsonl`` without the later steps, which a continued run writes again."""
    history = HistoryFile(folder.path("history.jsonl"), keep=folder.resuming)
    history.rows = [
        row for row in history.rows if "round" in row or 0 < int(row.get("step") or 0) <= step
    ]
    return history
