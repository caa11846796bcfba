"""Two checkouts of the project write the same maps and tables, bit for bit: prints JSON.

The net under a large change of the code: `same_results.py OLD NEW`. The script runs short commands
of `vitreous` in each checkout, with fixed seeds and one thread, each on what earlier commands of
the same checkout wrote, and compares every map and table. It exits with 1 where a file differs,
where only one side has it, or where a command fails.

It does not compare reports, `config.toml`, checkpoints, labels in MRC headers, and what a clock or
a version writes. Since 2026-11-30 backgrounds are taken off images, and means off maps before an
FSC: maps and curves differ from those of older checkouts on purpose, in every step that reads
images or compares half maps; take a base from then on. To allow a wanted change of a name, list it
in `RENAMED` or give `--renamed`; for a wanted change of an option, add an alternative line to the
command in `STEPS`.

With `--keep FOLDER` a second call takes over what a checkout wrote, as long as its committed `src`
is the same and nothing in it is changed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _processes import vitreous

# Old name to new name, of files, columns and keys that were renamed on purpose; say why.
RENAMED: dict[str, str] = {
    "gain": "log_likelihood_ratio",  # the field's word, in history.jsonl
    "vitreousGain": "vitreousLogLikelihoodRatio",  # the field's word, a column of classify2d
    # precision of a latent component in the images, in history.jsonl: "told" said nothing
    **{f"told_{k}": f"information_{k}" for k in range(1, 11)},
    # words of the findings of check; their numbers stay
    "log-likelihood above no rings": "log-likelihood ratio to no rings (30 more decide)",
    "the angle of astigmatism turns the wrong way": "the angle of astigmatism has the wrong sign",
    "signal over noise about": "signal-to-noise ratio about",
    "from the rings in the power spectra": "from the Thon rings in the power spectra",
    "real backgrounds serve better than white noise (`abinit --noise`)": (
        "use real backgrounds rather than white noise in `vitreous abinit`"
    ),
    # its findings name the thresholds that numbers are judged by
    "spread over micrographs": "spread over micrographs (alike up to 0.1 deviations and 10 %)",
    "over images": "over images; clear from 5 on",
    "% of it": "% of it; 25 to 90 % is right",
    "times that at the end": "times that at the end; white is 0.5 to 2",
    "information shared by half maps": (
        "information shared by half maps (to fit, 1.5 times that of poses at random and 100 more)"
    ),
}

_ONE = "--threads 1 --quiet"
_CPU = f"{_ONE} --device cpu"
_IGNORED = {"report.html", "config.toml", ".lock"}
_TIMED = re.compile(r"(^|_)(seconds?|time|version|memory|progress)(_|$)", re.IGNORECASE)
_MRC_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_ARRAYS = {".mrc", ".mrcs", ".npy", ".cs"}
_TEXTS = {".star", ".csv", ".tlt", ".txt", ".json", ".jsonl"}


@dataclass(frozen=True)
class Step:
    """Commands that write one folder, named as the step.

    Args:
        name: of the step and of its folder.
        needs: steps whose output it reads.
        lines: commands. Each is a line, or alternatives: the first is run whose options the
            checkout's help names, else the last.
        codes: exit codes that are no failure.
    """

    name: str
    needs: tuple[str, ...]
    lines: tuple[str | tuple[str, ...], ...]
    codes: tuple[int, ...] = (0,)


_IMAGES, _TRUTH, _MIXED = "simulate/particles.star", "simulate/truth.star", "mixed/truth.star"
STEPS = (
    Step(
        "simulate",
        (),
        (
            "simulate phantom:3 --sym D2 --box 24 --apix 8 --n 240 --snr-db 0 --seed 3 "
            f"--shift triangular:20 --n-micrographs 6 --b-factor 200 {_CPU} -o simulate",
        ),
    ),
    Step(
        "mixed",
        (),
        (
            "simulate phantom:3 --also phantom:4 --box 20 --apix 8 --n 240 --snr-db 3 --seed 3 "
            f"{_CPU} -o mixed",
        ),
    ),
    Step(
        "convert",
        ("simulate",),
        (
            f"convert {_TRUTH} convert/particles.cs",
            "convert convert/particles.cs convert/particles.star",
        ),
    ),
    Step("prepare", ("simulate",), (f"prepare {_IMAGES} --box 20 --ramp {_ONE} -o prepare",)),
    Step("check", ("simulate",), (f"check {_TRUTH} --seed 1 {_ONE} -o check",), (0, 3)),
    Step(
        "direct",
        ("simulate",),
        (f"reconstruct {_TRUTH} --method direct --sym D2 --seed 1 {_CPU} -o direct",),
    ),
    Step(
        "tv",
        ("simulate",),
        (f"reconstruct {_TRUTH} --method tv --sym D2 --iterations 20 --seed 1 {_CPU} -o tv",),
    ),
    Step(
        "postprocess",
        ("direct",),
        ("postprocess direct/half1.mrc direct/half2.mrc --seed 1 --threads 1 -o postprocess",),
    ),
    Step(
        "abinit",
        ("simulate",),
        (
            f"abinit {_IMAGES} --sym D2 --box 16 --effort 0.01 --shift triangular:20 --seed 3 "
            f"{_CPU} -o abinit",
        ),
    ),
    Step(
        "auto",
        ("simulate",),
        (f"auto {_IMAGES} --sym D2 --box 16 --tries 1 --rounds 2 --seed 1 {_CPU} -o auto",),
    ),
    Step(
        "start",
        ("simulate",),
        (
            (
                f"auto {_IMAGES} --only-start --sym D2 --box 16 --seed 1 {_CPU} -o start",
                f"abinit {_IMAGES} --method em --sym D2 --box 16 --seed 1 {_CPU} -o start",
            ),
        ),
    ),
    Step(
        "refine",
        ("simulate",),
        (
            f"refine {_IMAGES} --map simulate/truth.mrc --sym D2 --rounds 3 --scale micrograph "
            f"--refine-defocus --seed 1 {_CPU} -o refine",
        ),
    ),
    Step(
        "hetero",
        ("mixed",),
        (
            f"hetero run {_MIXED} --box 16 --effort 0.2 --space pca --min-cluster 40 --passes 2 "
            f"--rounds 1 --points 2 --seed 1 {_CPU} -o hetero",
        ),
    ),
    Step(
        "hetero_gan",
        ("mixed",),
        (
            f"hetero run {_MIXED} --no-align --box 16 --effort 0.005 --space pca --points 2 "
            f"--min-cluster 40 --seed 1 {_CPU} -o hetero_gan",
        ),
    ),
    Step(
        "classify2d",
        ("simulate",),
        (f"classify2d {_IMAGES} --classes 4 --effort 0.4 --seed 1 {_CPU} -o classify2d",),
    ),
    Step(
        "tilts",
        (),
        (
            "tomo simulate phantom:3 --shape 24x20x12 --increment 10 --dose 0.5 --seed 1 "
            f"{_CPU} -o tilts",
        ),
    ),
    Step(
        "tomo",
        ("tilts",),
        (
            "tomo reconstruct tilts/tilts.mrc --angles tilts/tilts.tlt --mask tilts/mask.mrc "
            f"--thickness 12 --iterations 20 --seed 1 {_CPU} -o tomo",
        ),
    ),
)
BY_NAME = {step.name: step for step in STEPS}


def with_needs(names: Sequence[str]) -> list[Step]:
    """The steps of these names and all that they need, in the order of `STEPS`."""
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += BY_NAME[name].needs
    return [step for step in STEPS if step.name in wanted]


# ------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Ran:
    """How a step ended: seconds, whether an earlier call ran it, and what went wrong."""

    seconds: float
    reused: bool = False
    error: str | None = None


class Checkout:
    """A checkout of the project and the folder that its commands work in.

    Args:
        source: the checkout.
        work: where its commands run; made if missing.
        time_box: seconds after which a command is stopped.

    Raises:
        SystemExit: the interpreter does not take `vitreous` from this checkout.
    """

    def __init__(self, source: Path, work: Path, time_box: float) -> None:
        self.source, self.work, self._time_box = source.resolve(), work.resolve(), time_box
        (self.work / "logs").mkdir(parents=True, exist_ok=True)
        self.commit = self._git("rev-parse", "HEAD") or "unknown"
        changes = self._git("status", "--porcelain", "--", "src")
        self.clean = changes == ""
        self._tree = self._git("rev-parse", "HEAD:src")
        self._help: dict[str, str] = {}
        program = "import vitreous; print(vitreous.__file__)"
        found = self._call([sys.executable, "-c", program]).stdout.strip()
        if not found or not Path(found).is_relative_to(self.source / "src"):
            raise SystemExit(f"{self.source}: vitreous is taken from {found or 'nowhere'} instead")

    def run(self, step: Step, earlier: Mapping[str, Ran]) -> Ran:
        """Run a step, or take over what an earlier call kept."""
        broken = [name for name in step.needs if earlier[name].error is not None]
        if broken:
            return Ran(0.0, error=f"needs {broken[0]}, which failed")
        lines, key = self._lines(step), self._key(step)
        record, folder = self.work / "logs" / f"{step.name}.json", self.work / step.name
        kept = json.loads(record.read_text()) if record.is_file() else {}
        if self.clean and kept.get("key") == key and folder.is_dir():
            return Ran(kept["seconds"], reused=True)
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start = time.perf_counter()
        for line in lines:
            error = self._fails(step, line)
            if error is not None:
                return Ran(time.perf_counter() - start, error=error)
        seconds = time.perf_counter() - start
        if self.clean:
            record.write_text(json.dumps({"key": key, "seconds": seconds}))
        return Ran(seconds)

    def _fails(self, step: Step, line: str) -> str | None:
        """Run a command; what it said last where it failed."""
        try:
            done = self._call(vitreous(*line.split()))
        except subprocess.TimeoutExpired:
            return f"vitreous {line}: not done in {self._time_box:g} s"
        (self.work / "logs" / f"{step.name}.log").write_text(done.stdout + done.stderr)
        if done.returncode in step.codes:
            return None
        said = "\n".join(done.stderr.strip().splitlines()[-12:])
        return f"vitreous {line}: exit {done.returncode}\n{said}"

    def _key(self, step: Step) -> list[Any]:
        """All that determines what a step writes."""
        versions = [sys.version, *(version(name) for name in ("torch", "numpy", "scipy", "numba"))]
        lines = [line for each in with_needs([step.name]) for line in self._lines(each)]
        return [self._tree, versions, lines]

    def _lines(self, step: Step) -> list[str]:
        return [line if isinstance(line, str) else self._choose(line) for line in step.lines]

    def _choose(self, alternatives: Sequence[str]) -> str:
        """The first line whose options the help names; the last if there is none."""
        for line in alternatives[:-1]:
            command = line.partition(" ")[0]
            if command not in self._help:
                self._help[command] = self._call(vitreous(command, "--help")).stdout
            if all(word in self._help[command] for word in line.split() if word.startswith("--")):
                return line
        return alternatives[-1]

    def _call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "VITREOUS_DEBUG"}
        environment |= {"PYTHONPATH": str(self.source / "src"), "COLUMNS": "240", "NO_COLOR": "1"}
        for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
            environment[f"{library}_NUM_THREADS"] = "1"
        return subprocess.run(
            command,
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=self._time_box,
        )

    def _git(self, *arguments: str) -> str | None:
        """What git says of the checkout; None where it cannot."""
        command = ["git", "-C", str(self.source), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None


# ----------------------------------------------------------------------------------- comparing


class Renaming:
    """Gives old names their new ones, where they stand as whole words."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)
        words = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)_?({words})(?!\w)") if words else None

    def __call__(self, text: str) -> str:
        """The text with its old names replaced; a STAR column's underscore stays."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda m: m[0][: -len(m[1])] + self._names[m[1]], text)


def compare(first: Path, second: Path, renamed: Renaming) -> tuple[int, list[dict[str, Any]]]:
    """How many files two folders hold, and those that differ or that one of them lacks."""
    a = {renamed(name): path for name, path in files_of(first).items()}
    b = files_of(second)
    found: list[dict[str, Any]] = []
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            found.append({"file": name, "only_in": "A" if name in a else "B"})
            continue
        difference = differs(a[name], b[name], renamed)
        if difference is not None:
            found.append({"file": name, **difference})
    return len(a.keys() | b.keys()), found


def files_of(folder: Path) -> dict[str, Path]:
    """Files to compare, by their path in the folder."""
    found = {}
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if path.is_file() and path.name not in _IGNORED and "checkpoints" not in place.parts:
            found[place.as_posix()] = path
    return found


def differs(first: Path, second: Path, renamed: Renaming) -> dict[str, Any] | None:
    """What differs between two files, with the largest relative difference if there is one."""
    if first.read_bytes() == second.read_bytes():
        return None
    if second.suffix in _ARRAYS:
        old = {renamed(name): array for name, array in arrays_of(first).items()}
        return arrays_differ(old, arrays_of(second))
    if second.suffix in _TEXTS:
        return texts_differ(text_of(first, renamed), text_of(second))
    return {"differs": "bytes", "largest_relative_difference": None}


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """All numbers of a binary file by name; labels of MRC headers left out."""
    if path.suffix in (".mrc", ".mrcs"):
        raw = path.read_bytes()
        mode, extended = (int.from_bytes(raw[at : at + 4], "little") for at in (12, 92))
        start = 1024 + extended
        return {
            "header": np.frombuffer(raw[:220] + raw[1024:start], np.uint8),
            "data": np.frombuffer(raw[start:], np.dtype(_MRC_TYPES[mode]).newbyteorder("<")),
        }
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    if array.dtype.names is None:
        return {"data": array}
    return {name: array[name] for name in array.dtype.names}


def arrays_differ(
    first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]
) -> dict[str, Any] | None:
    """Names of the arrays that are not the same bit for bit, in the same order."""
    if list(first) != list(second):
        alone = [
            [n for n in one if n not in other] for one, other in ((first, second), (second, first))
        ]
        words = f"fields {alone[0]} | {alone[1]}" if any(alone) else "order of fields"
        return {"differs": words, "largest_relative_difference": None}
    names, largest = [], [0.0]
    for name, a in first.items():
        b = second[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            names.append(f"{name}: {a.dtype}{a.shape} | {b.dtype}{b.shape}")
        elif a.tobytes() != b.tobytes():
            names.append(name)
            largest.append(relative(a, b) if name != "header" else 0.0)
    if not names:
        return None
    return {"differs": ", ".join(names), "largest_relative_difference": max(largest) or None}


def relative(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest difference over the largest magnitude; 0 for texts."""
    if not np.issubdtype(a.dtype, np.number):
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return 0.0
    scale = max(np.abs(x[finite]).max(), np.abs(y[finite]).max())
    return float(np.abs(x - y)[finite].max() / scale) if scale else 0.0


def text_of(path: Path, renamed: Renaming | None = None) -> str:
    """A text without what a clock or a version wrote, with new names for old ones."""
    text = path.read_text("utf-8")
    if renamed is not None:
        text = renamed(text)
    if path.suffix == ".json":
        return json.dumps(untimed(json.loads(text)), indent=1)
    if path.suffix == ".jsonl":
        return history(text)
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text)))
        kept = [k for k, name in enumerate(rows[0]) if not _TIMED.search(name)] if rows else []
        return "\n".join(",".join(row[k] for k in kept if k < len(row)) for row in rows)
    return text


def history(text: str) -> str:
    """Rows half by half: halves that run at once write in any order.

    Rows about both are left out beside them: these are found in the background, if time allows.
    """
    rows = [untimed(json.loads(line)) for line in text.splitlines()]
    if any("half" in row for row in rows):
        rows = sorted((row for row in rows if "half" in row), key=lambda row: int(row["half"]))
    return "\n".join(json.dumps(row, sort_keys=True) for row in rows)


def untimed(value: Any) -> Any:
    """A value of JSON without entries that a clock or a version wrote."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not _TIMED.search(k)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def texts_differ(first: str, second: str) -> dict[str, Any] | None:
    """The first line that differs, and the largest relative difference of numbers."""
    if first == second:
        return None
    a, b = first.splitlines(), second.splitlines()
    at = next(
        (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    shown = " | ".join(_around(one, other, at) for one, other in ((a, b), (b, a)))
    return {
        "differs": f"line {at + 1} of {len(a)} | {len(b)}: {shown}",
        "largest_relative_difference": numbers_differ(first, second),
    }


def _around(lines: list[str], others: list[str], at: int) -> str:
    """A line from shortly before the place where it differs from the other."""
    line, other = (each[at] if at < len(each) else "" for each in (lines, others))
    same = next((k for k, (x, y) in enumerate(zip(line, other, strict=False)) if x != y), 0)
    start = max(0, same - 30)
    return line[start : start + 70]


def numbers_differ(first: str, second: str) -> float | None:
    """Largest relative difference of two texts' numbers; None where words differ."""
    a, b = (re.split(r'[\s,:{}"\[\]]+', text) for text in (first, second))
    if len(a) != len(b):
        return None
    largest = 0.0
    for x, y in zip(a, b, strict=True):
        if x == y:
            continue
        try:
            one, other = float(x), float(y)
        except ValueError:
            return None
        largest = max(largest, abs(one - other) / max(abs(one), abs(other), 1e-300))
    return largest


# ------------------------------------------------------------------------------------ the claim


def measure(a: Checkout, b: Checkout, steps: Sequence[Step], renamed: Renaming) -> dict[str, Any]:
    """Run every step in both checkouts and compare."""
    ran: tuple[dict[str, Ran], dict[str, Ran]] = ({}, {})
    told: dict[str, Any] = {}
    for step in steps:
        for checkout, results in zip((a, b), ran, strict=True):
            results[step.name] = checkout.run(step, results)
        sides = {"A": ran[0][step.name], "B": ran[1][step.name]}
        entry: dict[str, Any] = {f"seconds_{k}": round(v.seconds, 1) for k, v in sides.items()}
        entry["reused"] = [k for k, v in sides.items() if v.reused]
        failed = {k: v.error for k, v in sides.items() if v.error is not None}
        if failed:
            entry |= {"equal": False, "failed": failed}
        else:
            count, found = compare(a.work / step.name, b.work / step.name, renamed)
            # a step that wrote nothing has shown nothing
            entry |= {"files": count, "equal": count > 0 and not found}
            if found:
                entry["differences"] = found
        told[step.name] = entry
        words = "equal" if entry["equal"] else "failed" if failed else "DIFFERENT"
        print(f"{step.name}: {words}", file=sys.stderr, flush=True)
    return told


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A", help="checkout before the change")
    parser.add_argument("b", type=Path, metavar="B", help="checkout after it")
    parser.add_argument(
        "--only", nargs="+", choices=list(BY_NAME), metavar="STEP", help=", ".join(BY_NAME)
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here, and keep it")
    parser.add_argument("--renamed", nargs="+", default=[], metavar="OLD=NEW")
    parser.add_argument("--time-box", type=float, default=300.0, help="seconds for each command")
    return parser.parse_args()


def main() -> int:
    """Run, compare, print."""
    options = parse()
    names = RENAMED | dict(pair.split("=", 1) for pair in options.renamed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        a = Checkout(options.a, root / "A", options.time_box)
        b = Checkout(options.b, root / "B", options.time_box)
        steps = measure(a, b, with_needs(options.only or list(BY_NAME)), Renaming(names))
    passed = all(entry["equal"] for entry in steps.values())
    result = {
        "benchmark": "same_results",
        "A": {"commit": a.commit, "clean": a.clean},
        "B": {"commit": b.commit, "clean": b.clean},
        "seconds": round(time.perf_counter() - started, 1),
        "renamed": names,
        "pass": passed,
        "different": [name for name, entry in steps.items() if not entry["equal"]],
        "steps": steps,
    }
    print(json.dumps(result, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
