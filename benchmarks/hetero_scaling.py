"""Time and memory of `vitreous hetero run` against particles and box. Prints JSON.

    python benchmarks/hetero_scaling.py FOLDER
    python benchmarks/hetero_scaling.py FOLDER --rows 500x32 --ways poses

Every row NxBOX simulates N particles of two phantoms to disk (0 dB, CTF, shifts of up to 5 % of the
box) and sorts them:

* poses: by the poses they were made with (finding them is `refine_scaling.py`), all of the rest:
  linear model, embedding, clusters, maps of them and along them;
* gan: by the VAE-GAN without poses, of whose training only --effort is done, since its seconds are
  those of its updates; memory does not depend on how many they are.

Memory is the kernel's highest resident set of the command's process (with the pages of files that
it maps). Particles stay in FOLDER while their row runs (100,000 of 128 px: 6.6 GB). Table to
stderr, FOLDER/hetero_scaling.json after every row.

Fails (exit 1) where a row needs more memory than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from _circumstances import where_and_when
from _mixtures import column
from _processes import measured, vitreous
from refine_scaling import parser_of, table
from vitreous.metrics.clustering import normalised_mutual_information

LIMIT_GB = 6.0
EDGE = 230.4  # of the box, Å
ROWS = [(10_000, 64), (100_000, 64), (100_000, 128)]
COLUMNS = ("way", "n", "box", "seconds", "cpu_seconds", "peak_memory_gb", "clusters")


def sort(way: str, count: int, box: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    folder: Path = options.folder / f"{way}-{count}x{box}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shift = f"triangular:{0.1 * EDGE:g}"
    common = ("--seed", str(options.seed), "--quiet")
    simulated = vitreous(
        *("simulate", "phantom:1", "--also", "phantom:2", "--box", str(box)),
        *("--apix", repr(EDGE / box), "--n", str(count), "--snr-db=0", "--shift", shift),
        *("--defocus", "8000:20000", *common, "-o", "data"),
    )
    measured(simulated, folder, folder / "simulate.log", threads=options.threads)
    if way == "poses":
        given = ["data/truth.star", "--effort", str(options.effort_of_poses)]
    else:
        given = ["data/particles.star", "--no-align", "--shift", shift]
        given += ["--effort", str(options.effort)]
    command = vitreous(
        *("hetero", "run", *given, "--threads", str(options.threads)),
        *("--device", options.device, *common, "-o", "out"),
    )
    took = measured(command, folder, folder / "sort.log", threads=options.threads)
    truth, found = (
        torch.from_numpy(column(path, "rlnClassNumber")).long()
        for path in (folder / "data" / "truth.star", folder / "out" / "particles.star")
    )
    row = {
        "way": way,
        "n": count,
        "box": box,
        "seconds": round(took.seconds, 1),
        "cpu_seconds": round(took.cpu_seconds, 1),
        "peak_memory_gb": round(took.largest_process_mb / 1024, 2),
        "clusters": int(found.max()),
        "nmi": round(normalised_mutual_information(truth, found), 3),
    }
    if not options.keep:
        shutil.rmtree(folder)
    return row


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, "bench-results/hetero", ROWS)
    parser.add_argument("--ways", nargs="+", choices=("poses", "gan"), default=["poses", "gan"])
    parser.add_argument("--effort", type=float, default=0.01, help="of the VAE-GAN")
    parser.add_argument("--effort-of-poses", type=float, default=1.0)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    return options


def main() -> int:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for count, box in options.rows:
        for way in options.ways:
            rows.append(sort(way, count, box, options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            result = {
                "benchmark": "hetero_scaling",
                **where_and_when(),
                "threads": options.threads,
                "load": round(os.getloadavg()[0], 2),
                "limit_gb": LIMIT_GB,
                "results": rows,
                "pass": all(row["peak_memory_gb"] < LIMIT_GB for row in rows),
            }
            (options.folder / "hetero_scaling.json").write_text(json.dumps(result, indent=1))
    print(table(rows, COLUMNS), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
