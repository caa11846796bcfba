"""Time and memory of `vitreous refine` against particles and box. Prints JSON.

    python benchmarks/refine_scaling.py FOLDER
    python benchmarks/refine_scaling.py FOLDER --rows 500x32 1000x32 --rounds 2

Every row NxBOX simulates N particles of a phantom to disk (D2, -10 dB, shifts), and refines them
from the truth, of which nothing finer than --start-resolution is used. Memory is the kernel's
highest resident set of the command's process (ru_maxrss, with the pages of files that it maps), and
what all its processes hold at one time with shared pages counted once. Seconds per particle and
round: wall time of the whole command over both numbers; the rounds' own times stand beside it, as
the first ones search among all poses and the later ones do not.

Particles stay in FOLDER while their row runs (100,000 of 128 px: 6.6 GB). Table to stderr,
FOLDER/refine_scaling.json and .csv after every row.

Fails (exit 1) where a row needs more memory than the limit.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from _against_truth import against_truth, read_map
from _circumstances import where_and_when
from _processes import measured, vitreous

LIMIT_GB = 6.0
EDGE = 230.4  # of the box, Å
ROWS = [(n, box) for box in (64, 128) for n in (10_000, 30_000, 100_000)]
COLUMNS = ("n", "box", "rounds", "seconds", "ms_per_particle_and_round", "peak_memory_gb")


def size(text: str) -> tuple[int, int]:
    """NxBOX, of the command line."""
    count, box = text.split("x")
    return int(count), int(box)


def simulate(count: int, box: int, folder: Path, options: argparse.Namespace) -> float:
    """The particles; the seconds that it took."""
    command = vitreous(
        *("simulate", "phantom:1", "--sym", "D2", "--box", str(box), "--apix", repr(EDGE / box)),
        *("--n", str(count), f"--snr-db={options.snr_db}", "--shift", "triangular:14.4"),
        *("--seed", str(options.seed), "--overwrite", "--quiet", "-o", "data"),
    )
    log = folder / "simulate.log"
    return measured(command, folder, log, threads=options.threads).seconds


def refine(count: int, box: int, options: argparse.Namespace) -> dict[str, Any]:
    folder: Path = options.folder / f"{count}x{box}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    simulated = simulate(count, box, folder, options)
    command = vitreous(
        *("refine", "data/particles.star", "--map", "data/truth.mrc", "--sym", "D2"),
        *("--start-resolution", str(options.start_resolution), "--rounds", str(options.rounds)),
        *("--threads", str(options.threads), "--device", options.device),
        *("--seed", str(options.seed), "--quiet", "-o", "out"),
    )
    took = measured(command, folder, folder / "refine.log", threads=options.threads)
    history = [json.loads(line) for line in (folder / "out" / "history.jsonl").open()]
    ends = [0.0, *(row["seconds"] for row in history if "step" in row)]
    rounds = len(ends) - 1
    truth = read_map(folder / "data" / "truth.mrc")
    found = against_truth(read_map(folder / "out" / "map.mrc"), truth, EDGE / box)
    run = tomllib.loads((folder / "out" / "config.toml").read_text())["run"]
    row = {
        "n": count,
        "box": box,
        "rounds": rounds,
        "seconds": round(took.seconds, 1),
        "seconds_of_rounds": [round(b - a, 1) for a, b in itertools.pairwise(ends)],
        "ms_per_particle_and_round": round(1e3 * took.seconds / (count * max(rounds, 1)), 3),
        "peak_memory_gb": round(took.largest_process_mb / 1024, 2),
        "peak_memory_all_gb": round(took.peak_memory_mb / 1024, 2),
        "simulation_seconds": round(simulated, 1),
        "fsc_0.5_angstrom": found["sphere"]["fsc_0.5_angstrom"],
        "told_0.143_angstrom": round(run["resolution_0143_angstrom"], 2),
    }
    if not options.keep:
        shutil.rmtree(folder)
    return row


def table(rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> str:
    """Markdown."""
    lines = [list(columns), ["---:"] * len(columns)]
    lines += [
        [format(row[name], "" if isinstance(row[name], str) else ",") for name in columns]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """All so far, to the folder."""
    result = {
        "benchmark": "refine_scaling",
        **where_and_when(),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 2),
        "snr_db": options.snr_db,
        "start_resolution_angstrom": options.start_resolution,
        "most_rounds": options.rounds,
        "limit_gb": LIMIT_GB,
        "results": rows,
        "pass": all(row["peak_memory_gb"] < LIMIT_GB for row in rows),
    }
    (options.folder / "refine_scaling.json").write_text(json.dumps(result, indent=1))
    with (options.folder / "refine_scaling.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return result


def parser_of(about: str, folder: str, rows: list[tuple[int, int]]) -> argparse.ArgumentParser:
    """The options that scaling benchmarks have in common."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(folder))
    parser.add_argument("--rows", nargs="+", type=size, default=rows, metavar="NxBOX")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="particles and results")
    return parser


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, "bench-results/scaling", ROWS)
    parser.add_argument("--rounds", type=int, default=20, help="most; it ends when settled")
    parser.add_argument("--start-resolution", type=float, default=40.0, help="Å")
    parser.add_argument("--snr-db", type=float, default=-10.0)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    return options


def main() -> int:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for count, box in options.rows:
        rows.append(refine(count, box, options))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        result = report(rows, options)
    print(table(rows), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
