"""What is made of particles that show nothing. Prints JSON.

    python benchmarks/nothing.py FOLDER                              # white noise, D2 and C1
    python benchmarks/nothing.py FOLDER --noise real --symmetry D2   # windows of real backgrounds

Particles of noise alone (beta-galactosidase 5A1A at 90 dB below it), with the CTFs of real
micrographs, go to

* `vitreous auto`, all its tries: it must say NOT SOLVED and write no poses;
* `vitreous refine --map truth.mrc` ("Einstein from noise"): it must refuse the map, exit 3.

Of the half maps that `auto` ends with two means of the FSC are told, over shells 3 and above: as
they are ("unmasked", where the outline of starts and what alignment finds go on), and of shells
that took no part in finding the poses ("held out").

Fails (exit 1) where noise is called solved, the map is not refused, or the FSC of shells held out
is beyond 0.15 on average.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from _circumstances import where_and_when
from _processes import measured, simulate_once, vitreous
from _public_data import BACKGROUND, BETAGAL, CTF

EDGE = 230.4  # of the box, Å
REFUSED = 3
FIRST_SHELL = 3  # of which there is enough to average
ABOUT_ZERO = 0.15


def simulate(noise: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """The particles, once."""
    real = ["--noise", str(options.data / BACKGROUND)] if noise == "real" else []
    simulate_once(
        folder,
        folder.with_suffix(".log"),
        *(str(options.data / BETAGAL), "--apix", repr(EDGE / options.box)),
        *("--box", str(options.box), "--n", str(options.particles), "--snr", "1e-9", *real),
        *("--ctf", str(options.data / CTF), "--n-micrographs", "100"),
        "--seed",
        str(seed),
        threads=options.threads,
    )


def run(noise: str, symmetry: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both commands on the same particles."""
    simulation = options.folder / "data" / f"{noise}-{options.box}px-{options.particles}-{seed}"
    simulate(noise, seed, simulation, options)
    folder = options.folder / f"{noise}-{symmetry}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    star = str(simulation / "particles.star")
    common = ("--sym", symmetry, "--threads", str(options.threads), "--overwrite", "--quiet")
    auto = vitreous("auto", star, *common, "--seed", str(seed), "-o", "auto")
    took = measured(auto, folder, folder / "auto.log", threads=options.threads)
    told = tomllib.loads((folder / "auto" / "config.toml").read_text())["run"]
    with (folder / "auto" / "fsc.csv").open() as lines:
        shells = list(csv.DictReader(lines))[FIRST_SHELL:]
    refine = vitreous(
        *("refine", star, "--map", str(simulation / "truth.mrc"), *common, "-o", "einstein"),
    )
    log = folder / "refine.log"
    refused = measured(refine, folder, log, threads=options.threads, refusal=REFUSED)
    return {
        "noise": noise,
        "symmetry": symmetry,
        "seed": seed,
        "solved": told["solved"],
        "verdict": told["verdict"],
        "start": told["start"],
        "tries": told["tries"],
        "poses_written": "rlnAngleRot" in (folder / "auto" / "particles.star").read_text(),
        "mean_fsc": {
            name: round(sum(float(shell[name]) for shell in shells) / len(shells), 3)
            for name in ("unmasked", "held_out")
        },
        "seconds": round(took.seconds, 1),
        "map_refused": refused.returncode == REFUSED,
        "refusal": log.read_text().strip(),
        "seconds_to_refuse": round(refused.seconds, 1),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/nothing"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--symmetry", nargs="+", default=["D2", "C1"])
    parser.add_argument("--noise", nargs="+", choices=["white", "real"], default=["white"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--box", type=int, default=32, help="pixels; the edge in Å stays")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    return options


def main() -> int:
    options = parse()
    rows = []
    for noise in options.noise:
        for symmetry in options.symmetry:
            for seed in options.seeds:
                rows.append(run(noise, symmetry, seed, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    held = {
        "noise is not solved": not any(row["solved"] or row["poses_written"] for row in rows),
        "FSC about zero": all(abs(row["mean_fsc"]["held_out"]) < ABOUT_ZERO for row in rows),
        "the map is refused": all(row["map_refused"] for row in rows),
    }
    names = ("box", "particles", "threads")
    settings = {name: getattr(options, name) for name in names}
    result = {"benchmark": "nothing", **where_and_when(), **settings, "rows": rows, "held": held}
    print(json.dumps(result, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
