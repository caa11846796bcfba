"""SIGKILL at random moments, continued to the same bits as a run left alone: prints JSON.

Every command that resumes runs on tiny data. A trial starts it, kills it at a random moment of its
work, continues it with ``--continue``, and so on for up to three kills; one trial in four replaces
the results of an earlier run (``--overwrite``). Where a command has processes of its own, the
parent, one of these or all of them are killed. What the last run leaves is compared with a run left
alone: maps and tables byte for byte, checkpoints to the last bit, ``config.toml`` and
``history.jsonl`` but for times, and the names of all files, so that no part of a file stays behind.

The runs are forked from this program, which has imported the package already, and save after every
step, so that most of their time is the work that a kill can harm.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _circumstances import where_and_when
from _processes import session
from vitreous.io.checkpoint import load_checkpoint
from vitreous.jobs.cryogan import half_worker
from vitreous.jobs.prepare import run as prepare_run
from vitreous.jobs.run import streaming
from vitreous.jobs.run.checkpoints import RunCheckpoints
from vitreous.jobs.run.history import read_rows

OUT = "OUT"
ENDED_SECONDS = 90.0  # in which a run whose half was killed has to end by itself
PARTICLES = "simulate phantom:1 --sym D2 --box 16 --apix 10 --n 240 --snr-db 6 --seed 1 -o SIM"
TILTS = "tomo simulate phantom:1 --shape 32x8x16 --increment 6 --seed 1 -o TILTS"
JOBS = "simulate reconstruct cryogan hetero class2d prepare refine tomography postprocess"
COMMANDS = {
    "reconstruct": "SIM/truth.star --sym D2 --method tv --strength 0.01 --iterations 12",
    "abinit": "SIM/particles.star --sym D2 --config tiny.toml --checkpoint-every 0",
    "hetero run": "SIM/truth.star --sym D2 --effort 0.2 --maps reconstruct --space pca",
    "classify2d": "SIM/particles.star --classes 3 --effort 0.2",
    "prepare": "SIM/particles.star --box 12",
    "auto": "SIM/particles.star --sym D2 --images 100 --starts 1 --tries 1 --rounds 3",
    "refine": "SIM/particles.star --map SIM/truth.mrc --sym D2 --rounds 3",
    "tomo reconstruct": "TILTS/tilts.mrc --angles TILTS/tilts.tlt --strength 0.1 --iterations 8",
}
IMPORTED = [f"vitreous.jobs.{name}.run" for name in JOBS.split()] + ["sklearn.cluster"]
TINY = "batch_size = 8\n[[stages]]\nbox_size = 16\niterations = 40\n"


def save_often() -> None:
    """Let runs save after every step; halves that are spawned import this module, and so do too."""
    RunCheckpoints.due = lambda self, step_seconds=0.0: True  # type: ignore[method-assign]
    streaming.SAVE_SECONDS, prepare_run.PIECE_BYTES = 0.0, 12 * 4 * 16**2
    half_worker.ROWS = 8


save_often()


@dataclass
class Run:
    """A run of the program, forked from this one, in a session of its own."""

    pid: int
    code: int | None = None

    @classmethod
    def start(cls, folder: Path, arguments: list[str]) -> Run:
        """Begin a command in a folder; its words go to ``log`` there."""
        pid = os.fork()
        if pid:
            return cls(pid)
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            words = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(words, 1), os.dup2(words, 2)
            sys.argv = ["vitreous", *arguments, "--quiet"]
            importlib.import_module("vitreous.cli.main").run()
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self, until: float = 0.0) -> bool:
        """Return whether it has ended; wait for it up to a time of the monotonic clock."""
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                return False
            else:
                time.sleep(0.002)
        return True

    def begun(self, out: Path) -> bool:
        """Wait until it holds the lock of its folder; return False if it ended before."""
        lock = out / ".lock"
        while not self.ended():
            try:
                if lock.read_text().split()[1:] == [str(self.pid)]:
                    return True
            except OSError:
                pass
            time.sleep(0.001)
        return False

    def kill(self, target: str) -> None:
        """Kill the process, one of its own, or all of them; wait for the end."""
        halves = [pid for pid in session(self.pid) if pid != self.pid and _is_half(pid)]
        pids = {"half": halves[:1], "parent": [self.pid]}.get(target) or session(self.pid)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self.ended(time.monotonic() + ENDED_SECONDS):
            raise SystemExit(f"still running {ENDED_SECONDS:.0f} s after the kill of a {target}")


def _is_half(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# ---------------------------------------------------------------- comparison


def contents(out: Path) -> dict[str, Any]:
    """Return what a run left: by name bytes, or values without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or path.parent.name.startswith(("checkpoints", "half")):
            continue
        if path.name == "config.toml":
            config = tomllib.loads(path.read_text())
            found[name] = untimed(config | {"machine": None})
        elif path.name == "history.jsonl":
            found[name] = history(untimed(read_rows(path)))
        else:
            found[name] = True if path.suffix == ".html" else path.read_bytes()
    for folder in (out / "checkpoints", *(out / "checkpoints").glob("half*")):
        checkpoint = load_checkpoint(folder)
        if checkpoint is not None:
            name = str(folder.relative_to(out))
            found[name] = checkpoint.step, untimed(checkpoint.meta)
            for key, tensor in checkpoint.tensors.items():
                found[f"{name}: {key}"] = tensor.numpy().tobytes()
    parts = [str(p.relative_to(out.parent)) for p in out.parent.rglob(".*")]
    return found | ({"left behind": parts} if parts else {})


def history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows; of two halves, which write at once, those of each in turn.

    Rows that compare the halves are made beside the run and may be missing; none may come twice.
    """
    if not any("half" in row for row in rows):
        return rows
    between = [row["step"] for row in rows if "half" not in row]
    twice = [{"twice": step} for step, count in Counter(between).items() if count > 1]
    return sorted((row for row in rows if "half" in row), key=lambda row: row["half"]) + twice


def untimed(value: Any) -> Any:
    """Return nested values without those of a clock."""
    if isinstance(value, dict):
        clock = ("seconds", "started", "ended")
        return {k: untimed(v) for k, v in value.items() if k not in clock}
    return [untimed(one) for one in value] if isinstance(value, (list, tuple)) else value


def differing(alone: dict[str, Any], out: Path) -> list[str]:
    """Return the names of what differs from a run left alone."""
    there = contents(out)
    return [name for name in {**alone, **there} if alone.get(name) != there.get(name)]


# ---------------------------------------------------------------- trials


class Trials:
    """Trials of one command.

    Args:
        name: of the command.
        base: folder with the data and the run left alone, which is made here.
        chance: of all that is random.
    """

    def __init__(self, name: str, base: Path, chance: random.Random) -> None:
        self.name, self._base, self._chance = name, base, chance
        self._call = [*name.split(), *COMMANDS[name].split(), "--seed", "1", "--threads", "1"]
        if name == "prepare":
            self._call = self._call[:-4] + self._call[-2:]
        self._targets = ["parent", "half", "group"] if name == "abinit" else ["parent"]
        self.kills: Counter[str] = Counter()
        self.trials, self.differing = 0, list[dict[str, Any]]()
        folder = self._folder("alone")
        for more in ((), ("--overwrite",)):  # the second compiles nothing
            process = Run.start(folder, self._arguments(*more))
            process.begun(folder / OUT)
            begun = time.monotonic()
            if not process.ended(begun + 600) or process.code:
                raise SystemExit(f"{name}: {(folder / 'log').read_text()[-2000:]}")
            self._work_seconds = time.monotonic() - begun
        self._alone = contents(folder / OUT)

    def _folder(self, name: str) -> Path:
        folder = self._base / self.name.replace(" ", "_") / name
        folder.mkdir(parents=True)
        for data in ("SIM", "TILTS", "tiny.toml"):
            (folder / data).symlink_to(self._base / data)
        return folder

    def _arguments(self, *more: str) -> list[str]:
        return [*self._call, "-o", OUT, *more]

    def attempt(self, most: int) -> None:
        """Kill and continue a run up to some times, and compare what it leaves."""
        self.trials += 1
        folder = self._folder(f"trial{self.trials}")
        out = folder / OUT
        more: list[str] = []
        if self._chance.random() < 0.25:
            shutil.copytree(folder.parent / "alone" / OUT, out)
            more = ["--overwrite"]
        kills = []
        for _ in range(self._chance.randint(1, min(3, most))):
            process = Run.start(folder, self._arguments(*more))
            early, share = self._chance.random() < 0.05, self._chance.random()
            target = self._chance.choice(self._targets)
            if not early and not process.begun(out):
                break
            delay = share * (0.2 if early else self._work_seconds)
            if process.ended(time.monotonic() + delay):
                break
            process.kill(target)
            self.kills[target] += 1
            kills.append(f"{target} after {delay:.2f} s")
            if (out / "config.toml").is_file():
                more = ["--continue"]
        else:
            process = Run.start(folder, self._arguments(*more))
        process.ended(time.monotonic() + 600)
        words = (folder / "log").read_text()
        wrong = differing(self._alone, out) if process.code == 0 else [f"exit {process.code}"]
        if wrong or "Traceback" in words:
            self.differing.append({"trial": self.trials, "kills": kills, "differs": wrong[:9]})
            if process.code:
                self.differing[-1]["words"] = words[-500:]
        else:
            shutil.rmtree(folder)

    def result(self) -> dict[str, Any]:
        """Return counts and what differed."""
        equal = self.trials - len(self.differing)
        killed = {"kills": self.kills.total(), "killed": dict(self.kills)}
        return {**killed, "trials": self.trials, "equal": equal, "differing": self.differing}


def simulate(base: Path) -> None:
    """Make the data of all commands."""
    (base / "tiny.toml").write_text(TINY)
    for call in (PARTICLES, TILTS):
        process = Run.start(base, call.split())
        process.ended(time.monotonic() + 600)
        if process.code:
            raise SystemExit((base / "log").read_text())


def main() -> int:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the trials that differ")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    started, chance = time.perf_counter(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        base = (options.keep or Path(temporary)).resolve()
        base.mkdir(parents=True, exist_ok=True)
        simulate(base)
        commands = {}
        for place, name in enumerate(options.only):
            trials = Trials(name, base, chance)
            wanted = options.kills * (place + 1) // len(options.only)
            wanted -= options.kills * place // len(options.only)
            while (left := wanted - trials.kills.total()) > 0:
                trials.attempt(left)
            commands[name] = trials.result()
            print(f"{name}: {commands[name]}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "kills",
        **where_and_when(),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "kills": sum(one["kills"] for one in commands.values()),
        "pass": not any(one["differing"] for one in commands.values()),
        "commands": commands,
    }
    print(json.dumps(result, indent=2))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
