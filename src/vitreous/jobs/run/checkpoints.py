"""Nested state, step number and clock of a run, as its checkpoints hold them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitreous.core.errors import DivergedError, InputError
from vitreous.io.checkpoint import FORGED, Checkpoint, load_checkpoint, save_checkpoint
from vitreous.io.nested import flatten_state, not_finite, restore_state
from vitreous.jobs.run.messages import one_line, resource_shortage, say

SAVE_SECONDS = 120.0
_DEAREST_SAVE = 0.05  # of a step's time: a save that costs less is done after every step
_FIRST_SAVE_SECONDS = 0.1  # what a save is taken to cost before there was one


class RunCheckpoints:
    """Checkpoints of one run: restored when it continues, saved while it goes on.

    Args:
        folder: where the checkpoints are.
        resume: continue from the newest one, if there is any.
        save_seconds: time between two checkpoints.
        name: of the run in messages, such as "half 1"; empty for none.

    Attributes:
        state: content of the checkpoint that the run continues from; empty where there is none.
        step: number of steps done so far; set it before :meth:`save`.
        saved: whether a checkpoint of this run exists.
        seconds_before: wall time of the run up to the checkpoint that it continues from.
        went_on: whether a step has been done since; set it after the first one.
    """

    def __init__(
        self, folder: Path, *, resume: bool, save_seconds: float = SAVE_SECONDS, name: str = ""
    ) -> None:
        self._folder, self._save_seconds = folder, save_seconds
        self._name = f"{name}: " if name else ""
        self.state: dict[str, Any] = {}
        self.step, self.seconds_before, self.went_on = 0, 0.0, False
        checkpoint = load_checkpoint(folder, _fault) if resume else None
        self.saved = checkpoint is not None
        if checkpoint is not None:
            self.state = restore_state(checkpoint.tensors, checkpoint.meta["tree"])
            self.step = checkpoint.step
            self.seconds_before = float(checkpoint.meta["seconds"])
        elif resume:
            say(f"{self._name}no checkpoint yet, starts from the beginning")
        self._started = self._saved_at = time.monotonic()
        self._save_cost = _FIRST_SAVE_SECONDS

    def seconds(self) -> float:
        """Return the wall time of the run, interruptions left out."""
        return self.seconds_before + time.monotonic() - self._started

    def seconds_unsaved(self) -> float:
        """Return how much of the run's time no checkpoint holds."""
        return time.monotonic() - self._saved_at

    def refusal(self, error: BaseException | None) -> InputError | None:
        """Return the error to raise instead, where a restored state made the first step fail.

        Args:
            error: that ended the run, or None.
        """
        if not self.state or self.went_on or not isinstance(error, FORGED):
            return None
        if resource_shortage(error) is not None:
            return None
        path = self._folder / f"step_{self.step:08d}.json"
        return InputError(
            f"{path}: the checkpoint does not fit this run ({type(error).__name__}: "
            f"{one_line(error)[:120]}); remove it to go on from the one before, or start again "
            "with `overwrite`"
        )

    def due(self, step_seconds: float = 0.0) -> bool:
        """Return whether to save now: the last checkpoint is old, or a save costs next to nothing.

        Args:
            step_seconds: time that the last step took.
        """
        old = time.monotonic() - self._saved_at > self._save_seconds
        return old or self._save_cost < _DEAREST_SAVE * step_seconds

    def save(
        self,
        state: Mapping[str, Any],
        *,
        last: bool = True,
        checked: str = "",
        allow_infinite: bool = False,
    ) -> None:
        """Write a checkpoint, unless a value in it is not finite.

        Args:
            state: all of the run's state, nested.
            last: no later checkpoint will follow, so that one that is not finite is an error
                instead of a warning.
            checked: prefix of the tensors that must be finite; all by default.
            allow_infinite: refuse NaN only.

        Raises:
            DivergedError: a value is not finite, and there will be no later checkpoint.
            ResourceError: the disk is full.
        """
        began = time.monotonic()
        tensors, tree = flatten_state(dict(state))
        looked_at = {k: v for k, v in tensors.items() if k.startswith(checked)}
        if allow_infinite:
            broken = next((k for k, v in looked_at.items() if bool(v.isnan().any())), None)
        else:
            broken = next(iter(not_finite(looked_at)), None)
        if broken and last:
            raise DivergedError(
                f"{broken} is not finite, so it was not saved; continue from the last checkpoint "
                "with other settings, such as lower learning rates, or start again with another "
                "`seed`"
            )
        if broken:
            say(f"warning: {self._name}{broken} is not finite; nothing was saved")
        else:
            meta = {"tree": tree, "seconds": self.seconds()}
            save_checkpoint(self._folder, self.step, tensors, meta)
            self.saved = True
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - began


def _fault(checkpoint: Checkpoint) -> str | None:
    """Return why the state of a checkpoint cannot be used, or None."""
    try:
        state = restore_state(checkpoint.tensors, checkpoint.meta["tree"])
        float(checkpoint.meta["seconds"])
        for name in ("step", "rows"):
            if not isinstance(state.get(name, 0), (int, list)):
                return f"{name} is no number"
        stage = state.get("stage") or {"name": "", "solver": {}, "sums": {}, "progress": 0.0}
        dict(state.get("kept", {})), dict(stage["sums"]), float(stage["progress"])
        dict(stage["solver"]), str(stage["name"])
    except (*FORGED, RecursionError) as error:
        return f"holds no state of a run ({type(error).__name__}: {one_line(error)[:80]})"
    nan = [name for name, value in checkpoint.tensors.items() if bool(value.isnan().any())]
    return f"{nan[0]} is not a number" if nan else None
