"""What the stages of ``vitreous hetero`` have in common: clock, checkpoints, history, training."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from vitreous.core.errors import DivergedError
from vitreous.io.checkpoint import load_checkpoint, save_checkpoint
from vitreous.io.nested import flatten_state, not_finite, restore_state
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.methods.hetero.latent_model import Steps

ROWS = 200  # of the history, for each training
SAVE_SECONDS = 120.0


class RunState:
    """State, steps and clock of a run of several stages, as its checkpoints hold them.

    A checkpoint is all of a run's state: what it found in stages that have ended, and where the one
    at hand has come to.

    Args:
        folder: entered; if it goes on, so does the run.
        save_seconds: between checkpoints.

    Attributes:
        state: of the checkpoint that the run goes on from; empty where there is none.
        step: of all stages.
    """

    def __init__(self, folder: OutputFolder, *, save_seconds: float = SAVE_SECONDS) -> None:
        self._folder, self._save_seconds = folder, save_seconds
        self.state: dict[str, Any] = {}
        self.step, self._before = 0, 0.0
        found = load_checkpoint(folder.checkpoints) if folder.resuming else None
        if found is not None:
            self.state = restore_state(found.tensors, found.meta["tree"])
            self.step, self._before = found.step, float(found.meta["seconds"])
        elif folder.resuming:
            say("no checkpoint yet, starts from the beginning")
        self._started = self._saved = time.monotonic()

    def seconds(self) -> float:
        """Wall time of all stages, interruptions left out."""
        return self._before + time.monotonic() - self._started

    def begin_after(self, seconds: float) -> None:
        """Count from here on, after a stage that kept its own time."""
        self._before, self._started = seconds, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self._saved > self._save_seconds

    def save(self, state: Mapping[str, Any], *, last: bool = True, done: bool = False) -> None:
        """Write a checkpoint.

        Args:
            state: all of it.
            last: of its stage; others may be left out.
            done: the run's model is trained.

        Raises:
            DivergedError: the last state of a sorter is not finite.
        """
        tensors, tree = flatten_state(dict(state))
        # in a search infinities stand for candidates that are not there
        broken = not_finite({k: v for k, v in tensors.items() if k.startswith("sorter.")})
        self._saved = time.monotonic()
        if broken and not last:
            say(f"warning: {broken[0]} is not finite; nothing was saved")
            return
        if broken:
            raise DivergedError(
                f"{broken[0]} is not finite, so it was not saved; go on from the last checkpoint "
                "with other settings (--config), or start again with another --seed"
            )
        meta = {"tree": tree, "seconds": self.seconds(), "done": done}
        save_checkpoint(self._folder.checkpoints, self.step, tensors, meta)

    def leave(self, stop: StopSignals) -> None:
        """After saving: end the program.

        Raises:
            SystemExit: always.
        """
        say(f"stopped and saved; go on with --continue -o {self._folder.root}")
        stop.exit_if_requested()

    def history(self) -> HistoryFile:
        """``history.jsonl`` without the later steps, which a continued run writes again."""
        history = HistoryFile(self._folder.path("history.jsonl"), keep=self._folder.resuming)
        history.rows = [row for row in history.rows if 0 < int(row.get("step") or 0) <= self.step]
        return history


class Training:
    """A solver from its first step, or from where the journal left it, to its last.

    Args:
        sorter: to be trained, or another solver.
        journal: of the run; a ``sorter`` in its state is gone on from.
        about: the rest of the run's state, which goes into every checkpoint.
        stop: asked after every step.
        label: of the progress.
        columns: of every history row.
        quiet: show no progress.
    """

    def __init__(
        self,
        sorter: Steps,
        journal: RunState,
        about: Mapping[str, Any],
        stop: StopSignals,
        *,
        label: str = "training",
        columns: Mapping[str, Any] | None = None,
        quiet: bool,
    ) -> None:
        self._sorter, self._journal, self._about, self._stop = sorter, journal, about, stop
        self._label, self._columns, self._quiet = label, dict(columns or {}), quiet
        self._sums: dict[str, tuple[float, int]] = {}
        self._written = 0.0
        saved = journal.state.get("sorter")
        if saved is not None:
            sorter.load_state_dict(saved["state"])
            self._sums, self._written = dict(saved["sums"]), saved["written"]

    def run(self, history: HistoryFile) -> None:
        """Steps until the sorter is done; the last state is saved.

        Args:
            history: entered.

        Raises:
            DivergedError: the state is not finite; the last checkpoint is.
            SystemExit: stopped by a signal, after saving.
        """
        sorter, journal = self._sorter, self._journal
        if sorter.done:
            return
        with RunProgress(self._label, quiet=self._quiet) as bar:
            while not sorter.done:
                stats = sorter.step()
                journal.step += 1
                self._gather(stats)
                share = sorter.progress
                bar.update(share, stats)
                if share - self._written >= 1 / ROWS or sorter.done:
                    history.add(self._row(share))
                    self._written = share
                asked = self._stop.requested and not sorter.done
                if asked or (journal.due and not sorter.done):
                    journal.save(self.state(), last=asked)
                if asked:
                    journal.leave(self._stop)
        journal.save(self.state())

    def state(self) -> dict[str, Any]:
        """Of the run."""
        mine = {"state": self._sorter.state_dict(), "sums": self._sums, "written": self._written}
        return {**self._about, "sorter": mine}

    def _gather(self, stats: Mapping[str, float]) -> None:
        for name, value in stats.items():
            if math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value, count + 1)

    def _row(self, share: float) -> dict[str, Any]:
        """Means since the row before."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return {
            **self._columns,
            **means,
            "step": self._journal.step,
            "progress": round(share, 4),
            "seconds": round(self._journal.seconds(), 2),
        }
