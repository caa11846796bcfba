"""How often `abinit` calls a map solved that is wrong, and how often it refuses one that is right.

    python benchmarks/belief_abinit.py FOLDER --data DATA    # a table, and JSON
    python benchmarks/belief_abinit.py FOLDER --seeds 1 --effort 1

Simulated particles (three made-up proteins, a ribosome; C1, C4, D2; 0 and -10 dB; 32 px; and noise
alone) are reconstructed in a part of the usual time, so that some maps come out right and some do
not. A map is "right" where its FSC with the truth stays above 0.5 over half of the shells that the
half maps claim (0.143) or more. Prints the images' answers (see
:mod:`vitreous.methods.em.finer_shells_test`) beside each. Fails (exit 1) where a map is called
solved that is not right.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from _against_truth import read_map
from _circumstances import where_and_when
from _processes import simulate_once
from _public_data import RIBOSOME, RIBOSOME_APIX
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.cryogan.run import abinit
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc

BOX, PIXEL = 32, 7.0
RIGHT = 0.5  # of the claimed shells
NOISE = -90.0  # dB
MOLECULES = (("phantom:1", "C1"), ("phantom:2", "D2"), ("phantom:3", "C4"), ("ribosome", "C1"))
CASES = [
    *((*molecule, snr_db) for molecule in MOLECULES for snr_db in (0.0, -10.0)),
    (*MOLECULES[1], NOISE),
]


def result_of(
    case: tuple[str, str, float], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    molecule, symmetry, snr_db = case
    folder = options.folder / f"{molecule.replace(':', '-')}_{snr_db:g}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    source = ["--input-apix", str(RIBOSOME_APIX)] if molecule == "ribosome" else []
    simulate_once(
        *(folder / "data", folder / "simulate.log"),
        *(str(options.data / RIBOSOME) if source else molecule, *source, "--sym", symmetry),
        *("--box", str(BOX), "--apix", str(PIXEL), "--n", str(options.particles)),
        *(f"--snr-db={snr_db}", "--seed", str(seed)),
        threads=options.threads,
    )
    began = time.monotonic()
    found = abinit(
        CryoGanOptions(
            particles=folder / "data" / "particles.star",
            output=folder / "abinit",
            symmetry=symmetry,
            seed=seed,
            effort=options.effort,
            threads=options.threads,
            overwrite=True,
            quiet=True,
        )
    )
    truth = read_map(folder / "data" / "truth.mrc")
    volume = found.halves.average.float()
    aligned = align_maps(volume, truth, pixel_size_angstrom=PIXEL, point_group=symmetry).aligned
    below = (fsc(aligned, truth)[1:] < 0.5).nonzero().flatten()
    right = 0 if snr_db == NOISE else int(below[0]) if len(below) else BOX // 2
    reached = found.halves.headline[0]
    claimed = BOX * PIXEL / reached if math.isfinite(reached) else 0.0
    evidence = {} if found.finer_shells is None else vars(found.finer_shells)
    return {
        "case": f"{molecule} {symmetry} {snr_db:g} dB",
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "solved": found.solved,
        "claimed_shells": round(claimed, 1),
        "right_shells": right,
        "right": right >= RIGHT * max(claimed, 4),
        **{name: round(value, 2) for name, value in evidence.items()},
        "verdict": found.verdict,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--effort", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=int, default=len(CASES), help="the first cases only")
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    rows = []
    for seed in options.seeds:
        for case in CASES[: options.only]:
            rows.append(result_of(case, seed, options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    table = {
        f"{'right' if right else 'wrong'}, {'solved' if solved else 'not solved'}": sum(
            (row["right"], row["solved"]) == (right, solved) for row in rows
        )
        for right in (True, False)
        for solved in (True, False)
    }
    print(json.dumps({"table": table, "effort": options.effort, "rows": rows, **where_and_when()}))
    return int(table["wrong, solved"] > 0)


if __name__ == "__main__":
    sys.exit(main())
