"""Signals that stop a job after its present step."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from vitreous.jobs.run.messages import say

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """Flag that the first of the signals that stop sets; the second stops at once.

    These are SIGINT, SIGTERM, SIGUSR1, and SIGHUP unless it is ignored (``nohup``).

    Use it as a context manager around a run: read :attr:`requested` between steps, save, and leave
    with :meth:`exit_if_requested`.

    Args:
        promise: what is said at the first signal; empty for nothing.

    >>> with StopSignals() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.exit_code
    (True, 143)
    """

    def __init__(self, promise: str = "") -> None:
        self._promise = promise
        self._received: int | None = None
        self._leaving = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:  # the third: what the second began to take down takes too long
            os._exit(128 + number)
        self._leaving = self._received is not None
        self._received = self._received or number
        text = "stopped at once, without saving" if self._leaving else self._promise
        with suppress(RuntimeError):  # in the middle of another message
            if text:
                say(f"{signal.Signals(number).name}: {text}")
        if self._leaving:
            raise SystemExit(128 + number)

    @property
    def requested(self) -> bool:
        """Whether the run is to end after the present step."""
        return self._received is not None

    @property
    def name(self) -> str:
        """Name of the signal that came, such as SIGTERM."""
        return "" if self._received is None else signal.Signals(self._received).name

    @property
    def exit_code(self) -> int:
        """Exit code: 128 + the signal's number once a signal came, 0 before."""
        return 0 if self._received is None else 128 + self._received

    def exit_if_requested(self) -> None:
        """Leave a command that cannot be continued with 128 + n if a signal came, and say so.

        Raises:
            SystemExit: a signal came.
        """
        if self.requested:
            say(
                f"{self.name}: stopped before the end, which this command cannot go on from; start "
                "again, with `overwrite` where it has a folder"
            )
            raise SystemExit(self.exit_code)


class SignalsBeforeRun(StopSignals):
    """Handlers while the input is checked: the first signal leaves, with a word on what is saved.

    Use it as a context manager.
    """

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        say(f"{name}: stopped before the run: nothing was to be saved; give the same command again")
        raise SystemExit(128 + number)
