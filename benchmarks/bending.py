"""One molecule that bends: sorted particles follow the motion. Prints JSON.

    python benchmarks/bending.py FOLDER
    python benchmarks/bending.py FOLDER --phantom 7 --seeds 11     # settings were looked at here

A domain of a built-in phantom turns by 40 degrees in 10 steps (`vitreous simulate --hinge`); box 32
at 10 Å/px, SNR 0 dB, CTFs, shifts of up to 5 % of the box. `vitreous hetero run` finds
poses as of one structure, then the linear model; nobody tells it an angle. What must come out is
one cluster whose first principal component goes with the true angle, |rho| >= 0.9 (Pearson).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from _circumstances import where_and_when
from _mixtures import column
from _processes import measured, simulate_once, vitreous

LEAST_RHO, BOX, APIX = 0.9, 32, 10.0
DEGREES, STATES = 40.0, 10


def follow(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One data set, sorted."""
    name = f"phantom{options.phantom}-{seed}"
    source = options.folder / "data" / name
    simulate_once(
        source,
        source.with_suffix(".log"),
        *(f"phantom:{options.phantom}", "--hinge", str(DEGREES), "--states", str(STATES)),
        *("--box", str(BOX), "--apix", str(APIX), "--n", str(options.particles)),
        *(f"--snr-db={options.snr_db}", "--shift", f"triangular:{0.1 * BOX * APIX:g}"),
        *("--seed", str(seed)),
    )
    folder = options.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    table = "truth.star" if options.true_poses else "particles.star"
    command = vitreous(
        *("hetero", "run", str(source / table), "--seed", str(seed)),
        *("--threads", str(options.threads), "--quiet", "-o", str(folder / "out")),
    )
    took = measured(command, folder, folder / "run.log", threads=options.threads)
    found = folder / "out" / "particles.star"
    classes = column(found, "rlnClassNumber")
    angle = column(source / "truth.star", "rlnClassNumber")
    along = column(found, "vitreousComponent1")
    inside = classes == 1
    return {
        "seed": seed,
        "clusters": int(classes.max()),
        "in_no_cluster": float((classes < 1).mean()),
        "rho": round(abs(float(np.corrcoef(along[inside], angle[inside])[0, 1])), 4),
        "rank_rho": round(abs(float(stats.spearmanr(along[inside], angle[inside])[0])), 4),
        "seconds": round(took.seconds, 1),
        "cpu_seconds": round(took.cpu_seconds, 1),
        "peak_memory_mb": took.peak_memory_mb,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/bending"))
    parser.add_argument("--phantom", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--snr-db", type=float, default=0.0)
    parser.add_argument("--true-poses", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    rows = []
    for seed in options.seeds:
        rows.append(follow(options, seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "benchmark": "bending",
        **where_and_when(),
        "threads": options.threads,
        "phantom": options.phantom,
        "degrees": DEGREES,
        "states": STATES,
        "particles": options.particles,
        "snr_db": options.snr_db,
        "true_poses": options.true_poses,
        "least_rho": LEAST_RHO,
        "runs": rows,
        "held": all(row["clusters"] == 1 and row["rho"] >= LEAST_RHO for row in rows),
    }
    print(json.dumps(result, indent=1))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
