"""A run killed in the middle and continued ends bitwise equal to one left alone: prints JSON.

`vitreous abinit` is run three times on one simulated data set of 32 px: left alone; killed with
SIGKILL, parent and both halves at once, then continued; stopped with SIGTERM, then continued. The
half maps, the final map and every number of the halves' histories but the seconds are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _circumstances import where_and_when
from _processes import vitreous
from vitreous.io.mrc import read_mrc

MAPS = ("half1.mrc", "half2.mrc", "map.mrc")


def start(*arguments: object) -> subprocess.Popen[str]:
    """A command of the program, in a session of its own."""
    call = vitreous(*map(str, arguments))
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str], expected: int = 0) -> None:
    """Wait for the end, which must come with this exit code."""
    if process.wait() != expected:
        raise SystemExit(f"{process.args!r}: exit code {process.returncode}")


def rows(out: Path, half: int) -> list[dict[str, float]]:
    """The history of a half without what a clock wrote; a line being written is left out."""
    path = out / "history.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("half") == half:
            found.append({k: v for k, v in row.items() if k != "seconds"})
    return found


def interrupt(process: subprocess.Popen[str], out: Path, step: int, number: int) -> dict[str, int]:
    """Send the signal once both halves are past the step; where the checkpoints then stand."""
    while min((rows(out, half) or [{"step": 0}])[-1]["step"] for half in (1, 2)) < step:
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise SystemExit("the run ended before it could be interrupted; give more --effort")
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
        finish(process, -number)
    else:
        process.send_signal(number)
        finish(process, 128 + number)
    saved = {}
    for half in (1, 2):
        steps = (out / "checkpoints" / f"half{half}").glob("step_*.json")
        saved[f"half{half}"] = max((int(path.stem[5:]) for path in steps), default=0)
    return saved


def same(first: Path, second: Path) -> dict[str, bool]:
    """What is bitwise equal."""
    equal = {m: np.array_equal(read_mrc(first / m)[0], read_mrc(second / m)[0]) for m in MAPS}
    history = all(rows(first, half) == rows(second, half) for half in (1, 2))
    return equal | {"history": history}


def main() -> int:
    """Run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effort", type=float, default=0.3)
    parser.add_argument("--n", type=int, default=4000)
    options = parser.parse_args()
    started = time.perf_counter()
    cases: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sim, alone = Path(folder, "SIM"), Path(folder, "ALONE")
        sample = ("--sym", "D2", "--box", 32, "--apix", 7.2, "--n", options.n, "--seed", 1)
        finish(start("simulate", "phantom:1", *sample, "-q", "-o", sim))
        call = ["abinit", sim / "particles.star", "--sym", "D2", "--effort", options.effort]
        call += ["--device", "cpu", "--seed", 1, "--checkpoint-every", 0.05]
        finish(start(*call, "-o", alone))
        total = rows(alone, 1)[-1]["step"]
        for name, number in (("SIGKILL", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
            out = Path(folder, name)
            saved = interrupt(start(*call, "-o", out), out, int(0.5 * total), number)
            finish(start(*call, "-o", out, "--continue"))
            cases[name] = {"continued_from": saved, "of": total, "equal": same(alone, out)}
    passed = all(all(case["equal"].values()) for case in cases.values())
    result = {
        "benchmark": "resume_bitwise",
        **where_and_when(),
        "particles": options.n,
        "seconds": round(time.perf_counter() - started, 1),
        "pass": passed,
        "cases": cases,
    }
    print(json.dumps(result, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
