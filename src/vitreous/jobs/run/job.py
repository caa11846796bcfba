"""The lifecycle of every command that reconstructs: folder, checkpoints, signals, history."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from vitreous.core.errors import InputError
from vitreous.jobs.run.checkpoints import SAVE_SECONDS, RunCheckpoints
from vitreous.jobs.run.folder import PROGRESS, OutputFolder
from vitreous.jobs.run.history import HistoryFile, read_rows
from vitreous.jobs.run.messages import command_to_continue, say
from vitreous.jobs.run.options import RunOptions
from vitreous.jobs.run.progress import RunProgress, describe, duration
from vitreous.jobs.run.signals import StopSignals
from vitreous.optim.loop import Solver, Stats

ROWS = 200  # most rows of the history for each stage
HISTORY = "history.jsonl"
_PROGRESS_SECONDS = 2.0  # between two writes of the file that tells how far the run is
Result = TypeVar("Result")


class Job:
    """A run of one or more stages that can be stopped at any time and continued bit for bit.

    Use it as a context manager::

        with Job("refine", options, outputs=FILES, resolved={"images_sha256": digest}) as job:
            if "initial_model" not in job.state:
                search = InitialModelSearch(...)
                job.keep("initial_model", dict(vars(job.run(search, "initial model"))))
            refinement = Refinement(...)
            result = job.run(refinement, "refinement", share=(0.3, 1))
            write_maps(job.folder, result)
            job.finish({"verdict": "..."})

    A checkpoint is one nested state: the results of the stages that ended (:meth:`keep`), and the
    state of the present solver. It is saved every ``save_seconds``, after every step of a slow
    solver, at the end of a stage, and on SIGINT, SIGTERM and SIGUSR1, which end the program after
    the step. A continued run restores it; rows of the history that are later than it are dropped,
    as the run writes them again. An error leaves the last checkpoint as it is. An
    :class:`InputError` before the first checkpoint leaves no trace of the run.

    Args:
        command: name of the command, recorded and shown.
        options: what was asked for.
        outputs: names of the files that the job writes, which ``overwrite`` removes first.
        resolved: values that follow from options and data (a hash of the images, the box size);
            a continued run must have the same.
        machine: further values that do not determine the result, such as the device used.
        save_seconds: time between two checkpoints.
        in_parts: other processes run the solvers and keep checkpoints of their own, in folders
            below that of the checkpoints. They send the rows of a half set again when continued.

    Attributes:
        command: name of the command.
        folder: the output folder.
        state: results of the stages that ended, by name.
        history: the file ``history.jsonl`` and its rows.
        step: number of steps that the history counts.

    Raises (on entering):
        UsageError, InputError, ResourceError: see :class:`OutputFolder`.
    """

    def __init__(
        self,
        command: str,
        options: RunOptions,
        *,
        outputs: Iterable[str],
        resolved: Mapping[str, Any] | None = None,
        machine: Mapping[str, Any] | None = None,
        save_seconds: float = SAVE_SECONDS,
        in_parts: bool = False,
    ) -> None:
        self._in_parts = in_parts
        self.command, self._quiet, self._save_seconds = command, options.quiet, save_seconds
        machine = {"threads": torch.get_num_threads(), **(machine or {})}
        self.folder = OutputFolder.of(
            command, options, (*outputs, HISTORY), resolved=resolved, machine=machine
        )
        self.state: dict[str, Any] = {}
        self.step = 0
        self._stack = ExitStack()
        self._stop = StopSignals("saves after this step; once more to stop at once")
        self._stage: dict[str, Any] | None = None
        self._bar: RunProgress | None = None
        self._watch, self._told_at = options.watch, -math.inf
        self._label, self._share = command, (0.0, 1.0)

    def __enter__(self) -> Self:
        """Open or continue the folder, restore the last checkpoint, and watch for signals."""
        with self._stack as stack:
            stack.enter_context(self._stop)
            stack.enter_context(self.folder)
            if self.folder.was_finished:
                root = self.folder.root
                say(f"{root}: the run was finished already; its results are written once more")
            self.checkpoints = RunCheckpoints(
                self.folder.checkpoints,
                resume=self.folder.resuming and not self._in_parts,
                save_seconds=self._save_seconds,
            )
            state = self.checkpoints.state
            self.state, self._stage = dict(state.get("kept", {})), state.get("stage")
            self.step = int(state.get("step", 0))
            rows = read_rows(self.folder.path(HISTORY)) if self.folder.resuming else []
            latest = self.checkpoints.seconds_before + 0.01  # rows' times are rounded
            kept = rows[: int(state.get("rows", 0))]
            kept = [row for row in kept if row.get("seconds", 0.0) <= latest]
            if self._in_parts:
                kept = [row for row in rows if "half" not in row]
            self.history = stack.enter_context(HistoryFile(self.folder.path(HISTORY), kept))
            if self._watch:
                from vitreous.jobs.watch.beside import watch_beside

                watch_beside(self.folder.root)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Close everything; remove what a run wrote whose input was rejected at its start."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        if isinstance(error, InputError) and not self._has_checkpoint:
            self.folder.discard()
        self._stack.__exit__(kind, error, trace)
        refusal = self.checkpoints.refusal(error)
        if refusal is not None:
            raise refusal from error

    @property
    def _has_checkpoint(self) -> bool:
        parts = self.folder.checkpoints.glob("*/step_*.json") if self._in_parts else ()
        return self.folder.resuming or self.checkpoints.saved or any(parts)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal came."""
        return self._stop.requested

    def path(self, *parts: str) -> Path:
        """Return a path inside the output folder; its parent is made."""
        return self.folder.path(*parts)

    def seconds(self) -> float:
        """Return the wall time of the run, interruptions left out."""
        return self.checkpoints.seconds()

    def keep(self, name: str, value: Any) -> None:
        """Store the result of a stage in the checkpoint; the state of its solver is dropped.

        Args:
            name: key in :attr:`state`.
            value: nested dictionaries, lists and tuples of tensors, numbers and texts.
        """
        self.state[name] = value
        self._stage = None
        self._save(last=True, allow_infinite=True, checked="kept")

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row to the history, with the time of the run."""
        self.history.add({**row, "seconds": round(self.seconds(), 2)})

    def report_progress(
        self, share: float, stats: Mapping[str, Any] | None = None, *, label: str | None = None
    ) -> None:
        """Show progress, and leave the program if a signal came; call it inside long steps.

        Args:
            share: of the present stage that is done, 0 to 1.
            stats: numbers to show.
            label: what is being done; outside of :meth:`run` only, where it begins a new bar.

        Raises:
            SystemExit: stopped by a signal; the run can be continued from its last checkpoint.
        """
        if label is not None:
            self._label, self._share = label, (0.0, 1.0)
        self.show_progress(share, stats)
        if self._stop.requested:
            age = duration(self.checkpoints.seconds_unsaved())
            saved = f"continue from the last checkpoint, {age} old"
            if not self._has_checkpoint:
                saved = "begin anew, as nothing was to be saved yet"
            say(f"{self._stop.name}: stopped; {self._again(saved)}")
            raise SystemExit(self._stop.exit_code)

    def run(
        self,
        solver: Solver[Result],
        stage: str,
        *,
        label: str | None = None,
        columns: Mapping[str, Any] | None = None,
        share: tuple[float, float] = (0.0, 1.0),
        rows: int | None = ROWS,
        numbered: bool = True,
        allow_infinite: bool = False,
    ) -> Result:
        """Step a solver to its end, from the checkpoint if that is of this stage.

        Args:
            solver: made anew, with the same arguments whenever the run is continued.
            stage: its name in checkpoints; different for every solver of a job.
            label: of the progress; the command by default.
            columns: of every row of the history.
            share: of the bar that the stage takes, begin and end.
            rows: most rows of the history; each holds means over the steps since the row before.
                None for a row after every step.
            numbered: count the steps in the rows' ``step``, over which the report draws curves.
            allow_infinite: infinities are no sign of divergence in this solver's state.

        Returns:
            the solver's result.

        Raises:
            DivergedError: the state is not finite; the last checkpoint is.
            SystemExit: stopped by a signal, after saving.
        """
        self._label, self._share = label or self.command, share
        means, saved = _Means(), self._stage is not None and self._stage["name"] == stage
        if self._stage is not None and saved:
            solver.load_state_dict(self._stage["solver"])
            means = _Means(dict(self._stage["sums"]), self._stage["progress"])
        while not solver.done:
            began = time.monotonic()
            stats = solver.step()
            seconds = time.monotonic() - began
            self.checkpoints.step += 1
            self.checkpoints.went_on = True
            self.step += numbered
            means.add(stats)
            progress = solver.progress
            self.show_progress(progress, stats)
            if rows is None or solver.done or progress - means.progress >= 1 / rows:
                number = {"step": self.step} if numbered else {}
                shown = means.take(progress)
                self.record({**number, **(columns or {}), **(stats if rows is None else shown)})
            stopping = self._stop.requested and not solver.done
            # the first step often reads all images, which no later stop may cost again
            if stopping or solver.done or not saved or self.checkpoints.due(seconds):
                saved = True
                self._stage = {"name": stage, "solver": solver.state_dict(), **vars(means)}
                self._save(last=stopping or solver.done, allow_infinite=allow_infinite)
            if stopping:
                self.leave()
        return solver.result()

    def leave(self) -> None:
        """Leave the program after a signal; the state is saved.

        Raises:
            SystemExit: always, with 128 + the number of the signal.
        """
        say(f"{self._stop.name}: stopped and saved; {self._again('continue')}")
        raise SystemExit(self._stop.exit_code)

    def _again(self, purpose: str) -> str:
        """Return how to go on with the run, as a clause of a message."""
        if command := command_to_continue():
            return f"to {purpose}, run with: {command}"
        return f"run again with `resume`: {self.folder.root} to {purpose}"

    def finish(self, numbers: Mapping[str, Any] | None = None) -> None:
        """Mark the run as finished.

        Args:
            numbers: for the table ``[run]`` of ``config.toml``, such as the verdict.
        """
        self.path(PROGRESS).unlink(missing_ok=True)
        self.folder.config["run"] |= numbers or {}
        self.folder.finish()
        with suppress(OSError):
            self.folder.checkpoints.rmdir()  # where none was saved

    def _save(self, *, last: bool, allow_infinite: bool, checked: str = "stage.solver") -> None:
        state = {"kept": self.state, "stage": self._stage, "step": self.step}
        state["rows"] = len(self.history.rows)
        self.checkpoints.save(state, last=last, checked=checked, allow_infinite=allow_infinite)

    def show_progress(self, progress: float, stats: Mapping[str, Any] | None = None) -> None:
        """Show progress without a look at signals.

        Args:
            progress: share of the present stage that is done, 0 to 1.
            stats: numbers to show.
        """
        if self._bar is None or self._bar.label != self._label:
            if self._bar is not None:
                self._bar.__exit__(None, None, None)
            self._bar = RunProgress(self._label, quiet=self._quiet).__enter__()
        begin, end = self._share
        done = begin + (end - begin) * progress
        self._bar.update(done, stats)
        if time.monotonic() - self._told_at > _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            values = {
                "share": done,
                "label": self._label,
                "detail": describe(stats or {}),
                "seconds": self.seconds(),
                "seconds_left": self._bar.seconds_left(done),
                "continue": command_to_continue(),
            }
            with suppress(OSError):  # the run does not need it
                self.path(PROGRESS).write_text(json.dumps(values), "utf-8")


class _Means:
    """Means of the statistics of several steps, for one row of the history.

    Args:
        sums: name to sum and number of the finite values so far.
        progress: of the solver at the last row.
    """

    def __init__(
        self, sums: dict[str, tuple[float, int]] | None = None, progress: float = 0.0
    ) -> None:
        self.sums, self.progress = sums or {}, progress

    def add(self, stats: Stats) -> None:
        """Add the statistics of a step; values that are not finite are left out."""
        for name, value in stats.items():
            if math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)

    def take(self, progress: float) -> dict[str, float]:
        """Return the means and begin anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums, self.progress = {}, progress
        return means
