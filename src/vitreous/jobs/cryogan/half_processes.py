"""Two half sets at once: start their processes, listen to them, end them together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitreous.core.errors import DivergedError, InputError, ResourceError, UsageError, VitreousError
from vitreous.jobs.cryogan.half_worker import HalfJob, Outcome, work
from vitreous.jobs.run.signals import STOP_SIGNALS

_ERRORS = {kind.exit_code: kind for kind in (UsageError, InputError, ResourceError, DivergedError)}
_LISTEN_SECONDS = 0.5
_GRACE_SECONDS = 35.0
_STOPPED_SECONDS = 15.0  # that a half may be stopped (SIGSTOP); with the grace below a minute

Listener = Callable[[tuple[Any, ...]], None]


class WorkerBugError(Exception):
    """A worker raised what it should not; the text is its traceback."""


def run_pair(
    jobs: Sequence[HalfJob], stop_requested: Callable[[], bool], listen: Listener
) -> dict[int, Outcome] | None:
    """Run the halves side by side to their end.

    Args:
        jobs: one for each half.
        stop_requested: once it answers true, the halves save and stop.
        listen: called with every ``row``, ``state`` and ``mark`` message; and with ``("idle",)``
            at least twice a second.

    Returns:
        outcomes by half, or None if they were stopped by a signal.

    Raises:
        VitreousError: a half failed, with the same error; or its process died, naming the half.
        WorkerBugError: a bug in a half.
    """
    context = multiprocessing.get_context("spawn")
    links: dict[int, Connection] = {}
    processes: dict[int, Any] = {}
    try:
        # Signals wait while the children start, which inherit the mask: only the parent acts.
        # The start of the tracker of resources resets the mask, and so comes first.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for job in jobs:
                links[job.half], theirs = context.Pipe()
                process = context.Process(target=work, args=(job, theirs), name=f"half {job.half}")
                process.start()
                processes[job.half] = process
                theirs.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return listen_to(links, processes, stop_requested, listen)
    finally:
        for process in processes.values():
            if process.is_alive():
                process.kill()
            process.join()


def listen_to(
    links: Mapping[int, Connection],
    processes: Mapping[int, Any],
    stop_requested: Callable[[], bool],
    listen: Listener,
) -> dict[int, Outcome] | None:
    """Listen until every half has ended; see :func:`run_pair`."""
    open_links = dict(links)
    outcomes: dict[int, Outcome] = {}
    failure: Exception | None = None
    stopped = _StoppedHalves(processes)
    deadline: float | None = None
    while open_links:
        ready = wait(list(open_links.values()), timeout=_LISTEN_SECONDS)
        for half, link in list(open_links.items()):
            if link not in ready:
                continue
            message = _receive(link)
            if message is None:
                del open_links[half]
                failure = failure or _death(half, processes[half])
            elif message[0] in ("done", "stopped", "error", "bug"):
                del open_links[half]
                if message[0] == "done":
                    outcomes[half] = message[1]
                else:
                    failure = failure or _failure(message)
            else:
                listen(message)
        listen(("idle",))
        failure = failure or stopped.check(open_links)
        if deadline is None and (failure is not None or stop_requested()):
            deadline = time.monotonic() + _GRACE_SECONDS
            _ask_to_stop(open_links)
        if deadline is not None and time.monotonic() > deadline:
            break
    if failure is not None:
        raise failure
    return outcomes if len(outcomes) == len(links) else None


def _receive(link: Connection) -> tuple[Any, ...] | None:
    """Return the next message, None when the other side has gone."""
    try:
        return tuple(link.recv())
    except (EOFError, ConnectionError):
        return None


def _ask_to_stop(links: Mapping[int, Connection]) -> None:
    for link in links.values():
        with suppress(ConnectionError):
            link.send("stop")


def _death(half: int, process: Any) -> Exception:
    process.join(_LISTEN_SECONDS)
    code = process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return _lost(half, f"its process died ({how}; 9 often means out of memory)")


def _lost(half: int, how: str) -> Exception:
    return ResourceError(
        f"half {half}: {how}; the other half was stopped and saved, go on with `resume`"
    )


class _StoppedHalves:
    """Watch for halves that are stopped (SIGSTOP) and would be waited for without end."""

    def __init__(self, processes: Mapping[int, Any]) -> None:
        self._processes, self._looked = processes, time.monotonic()
        self._seconds = dict.fromkeys(processes, 0.0)

    def check(self, halves: Iterable[int]) -> Exception | None:
        """Return the error of a half that has been stopped for long, while this process ran."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * _LISTEN_SECONDS), now
        for half in halves:
            stopped = _is_stopped(self._processes[half].pid)
            self._seconds[half] = self._seconds[half] + passed if stopped else 0.0
            if self._seconds[half] > _STOPPED_SECONDS:
                self._processes[half].kill()
                return _lost(half, "its process was stopped (SIGSTOP)")
        return None


def _is_stopped(pid: int) -> bool:
    try:  # the state follows the name, which is in brackets and may hold any character
        return (
            Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2][:1] == "T"
        )
    except OSError:
        return False


def _failure(message: tuple[Any, ...]) -> Exception | None:
    if message[0] == "error":
        return _ERRORS.get(message[1], VitreousError)(message[2])
    return WorkerBugError(message[1]) if message[0] == "bug" else None


class Comparison:
    """Resolution between the halves while they run, measured in the background at low priority.

    Args:
        compare: two volumes to resolutions in Å at 0.143 and 0.5.
    """

    def __init__(
        self, compare: Callable[[NDArray[Any], NDArray[Any]], tuple[float, float]]
    ) -> None:
        self._compare = compare
        self._waiting: dict[int, dict[int, NDArray[Any]]] = {}
        self._begun: list[Future[dict[str, float]]] = []
        self._pool = ThreadPoolExecutor(1, "between halves", initializer=_yield_to_others)

    def add(self, half: int, step: int, volume: NDArray[Any]) -> None:
        """Add the volume of a half at a mark; it is compared once the other half has come there."""
        pair = self._waiting.setdefault(step, {})
        pair[half] = volume
        if len(pair) == 2:
            del self._waiting[step]
            self._begun.append(self._pool.submit(self._row, step, pair[1], pair[2]))

    def results(self) -> list[dict[str, float]]:
        """Return the history rows that were finished since the last call."""
        done = [one for one in self._begun if one.done()]
        self._begun = [one for one in self._begun if one not in done]
        return [one.result() for one in done if not one.cancelled()]

    def close(self) -> None:
        """Finish the comparison at hand and drop those that wait."""
        self._pool.shutdown(cancel_futures=True)

    def _row(self, step: int, first: NDArray[Any], second: NDArray[Any]) -> dict[str, float]:
        at_0143, at_05 = self._compare(first, second)
        return {"step": step, "resolution_angstrom": at_0143, "resolution_0.5_angstrom": at_05}


def _yield_to_others() -> None:
    """Give a thread low priority and one core."""
    import torch

    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    torch.set_num_threads(1)
