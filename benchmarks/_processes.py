"""Programs run as users run them, measured from outside: seconds, memory, and a box of time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "from vitreous.cli.main import run; run()"
_EVERY = 0.5  # seconds between looks at the memory
_PATIENCE = 5.0  # seconds to end in, before it is ended


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Args:
        seconds: wall time.
        cpu_seconds: of the processor, over all processes; what a busy machine does not lengthen.
        peak_memory_mb: highest sum over all processes at one time, shared pages counted once.
        largest_process_mb: highest resident set of any single process.
        returncode: of the command; None where its time was up.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: int
    largest_process_mb: int
    returncode: int | None

    @property
    def told(self) -> dict[str, object]:
        """For the report."""
        return {
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "peak_memory_mb": self.peak_memory_mb,
            "time_was_up": self.returncode is None,
        }


def vitreous(*arguments: str) -> list[str]:
    """The command that a user types, by this interpreter."""
    return [sys.executable, "-c", PROGRAM, *arguments]


def measured(
    command: list[str],
    folder: Path,
    log: Path,
    *,
    time_box: float | None = None,
    threads: int | None = None,
    refusal: int = 0,
) -> Measured:
    """Run a command in a folder, its words to a log, and stop it when its time is up.

    Raises:
        SystemExit: the command failed by itself, other than with the exit code ``refusal``.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with log.open("w") as words:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watch = _Watch(process.pid, None if time_box is None else start + time_box)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        watch.ended.set()
        watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, refusal) and not watch.stopped:
        raise SystemExit(
            f"{' '.join(command)}: exit {process.returncode}\n{log.read_text()[-3000:]}"
        )
    return Measured(
        seconds,
        max(watch.cpu_seconds, usage.ru_utime + usage.ru_stime),
        max(watch.peak_kb, watch.largest_kb) // 1024,
        watch.largest_kb // 1024,
        None if watch.stopped else process.returncode,
    )


def simulate_once(folder: Path, log: Path, *arguments: str, threads: int | None = None) -> None:
    """`vitreous simulate` to a folder, unless it was done before."""
    if not (folder / "truth.star").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = vitreous("simulate", *arguments, "--overwrite", "--quiet", "-o", str(folder))
        measured(command, folder.parent, log, threads=threads)


class _Watch(threading.Thread):
    """Looks at a command and all that it started until `ended` is set; stops it at a time."""

    def __init__(self, leader: int, until: float | None) -> None:
        super().__init__(daemon=True)
        self.leader, self.until = leader, until
        self.ended = threading.Event()
        self.peak_kb = self.largest_kb = 0
        self.cpu_seconds = 0.0
        self.stopped = False

    def run(self) -> None:
        begin = time.perf_counter()
        while True:
            running = session(self.leader)
            together = sum(_kilobytes(one, "smaps_rollup", "Pss:") for one in running)
            self.peak_kb = max(self.peak_kb, together)
            self.largest_kb = max([self.largest_kb, *(peak_kb(one) for one in running)])
            self.cpu_seconds = max(self.cpu_seconds, sum(_cpu_seconds(one) for one in running))
            now = time.perf_counter()
            if self.until is not None and now > self.until:
                self.stopped = True
                _end(self.leader)
                return
            if self.ended.wait(min(_EVERY, 0.05 + 0.1 * (now - begin))):
                return


def session(leader: int) -> list[int]:
    """Processes of the session that a command began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _cpu_seconds(pid: int) -> float:
    """Of a process, threads and children that it waited for included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def peak_kb(pid: int) -> int:
    """Highest resident set of a process so far; 0 where there is none, or no Linux.

    Not `ru_maxrss`, which is never below what its parent had when the process was started.
    """
    return _kilobytes(pid, "status", "VmHWM:")


def _kilobytes(pid: int, table: str, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/{table}").read_text()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith(name)]
    return int(sizes[0]) if sizes else 0


def _end(leader: int) -> None:
    """End a command and all that it started: politely, then for certain."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for pid in session(leader):
            try:
                os.kill(pid, kind)
            except ProcessLookupError:
                continue
        deadline = time.perf_counter() + _PATIENCE
        while session(leader) and time.perf_counter() < deadline:
            time.sleep(0.1)
