"""How often the last question of `auto` and `refine` errs: do the images show the finer shells?

    python benchmarks/belief.py --data DATA          # every case; prints a table and JSON

Refinements of simulated particles (made-up proteins and a ribosome, several point groups and noise
levels) from right and wrong starts, each with its end judged by the truth: "right" where the FSC
with the true map stays above 0.5 over 70 % of the shells that the half maps claim (masked FSC at
0.143), "wrong" below half of them, "between" otherwise; "stuck" where it is right over less than
half the shells that the same images give from the true map: nobody would call that solved. Starts:

* truth: the true map;
* other: the map of another molecule;
* hollow: the true map's spherical mean with random bumps, others for each half set;
* noise: the true map, but the images are noise alone.

As in these commands, a refinement begins anew from its maps where the images show more than the
maps hold. Of the evidence (`z`, in standard errors, `ratio`, `stability` and `standing_out`, see
:mod:`vitreous.methods.em.finer_shells_test`) the table has least, median and largest value; `sure`
is the share of poses with a posterior above 0.5, another candidate to tell right from wrong. Fails
(exit 1) where a wrong end is believed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitreous as vt
from _circumstances import where_and_when
from _public_data import RIBOSOME, RIBOSOME_APIX
from vitreous.data.maps import read_map, resample_map
from vitreous.jobs.refine.stages import masked_halves, search_again, start_again
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc
from vitreous.maps.fsc_warnings import without_spherical_mean
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.finer_shells_test import (
    CERTAIN,
    LEAST,
    MOST,
    MOST_LEFT,
    STABLE,
    finer_shells_test,
)
from vitreous.methods.em.initial_model_result import Start
from vitreous.methods.em.random_start import random_blobs
from vitreous.methods.em.refinement import Refinement
from vitreous.optim.loop import run

BOX, PIXEL = 32, 7.0
START_ANGSTROM = 45.0
ROUNDS = 5
EVIDENCE = "z", "ratio", "stability", "standing_out"
STARTS = ("truth", "other", "hollow", "noise")
RIGHT, WRONG = 0.7, 0.5  # of the claimed shells


@dataclass(frozen=True)
class Case:
    """One set of particles, and what it is refined from."""

    molecule: str
    symmetry: str
    snr_db: float
    particles: int
    start: str
    seed: int


def cases(seeds: list[int]) -> Iterator[Case]:
    for seed in seeds:
        for molecule, symmetry in (
            ("phantom:1", "C1"),
            ("phantom:2", "D2"),
            ("phantom:3", "C4"),
            ("ribosome", "C1"),
            ("phantom:5", "O"),
        ):
            for snr_db, particles in ((0.0, 400), (-8.0, 800), (-12.0, 1200)):
                for start in STARTS:
                    yield Case(molecule, symmetry, snr_db, particles, start, seed)


def molecule_map(name: str, symmetry: str, data: Path) -> Tensor:
    if name == "ribosome":
        volume = read_map(data / RIBOSOME, RIBOSOME_APIX)[0]
        return resample_map(volume, RIBOSOME_APIX, BOX, PIXEL).float()
    return vt.phantom(BOX, PIXEL, seed=int(name.split(":")[1]), symmetry=symmetry)


def start_maps(case: Case, truth: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    if case.start == "other":
        return vt.phantom(BOX, PIXEL, seed=100 + case.seed, symmetry=case.symmetry)
    if case.start == "hollow":
        stream = torch.Generator().manual_seed(case.seed)
        mean = truth - without_spherical_mean(truth)
        bumps = [random_blobs(BOX, 0.6 * BOX, case.symmetry, stream) for _ in range(2)]
        first, second = (mean + one * (0.3 * mean.std() / one.std()) for one in bumps)
        return first, second
    return truth


def judged(found: Tensor, truth: Tensor, case: Case) -> float:
    """Shells over which the map's FSC with the truth stays above 0.5."""
    aligned = align_maps(found, truth, pixel_size_angstrom=PIXEL, point_group=case.symmetry).aligned
    curves = [fsc(one, truth)[1:] for one in (found, aligned)]
    below = [(curve < 0.5).nonzero().flatten() for curve in curves]
    return float(max(int(b[0]) if len(b) else BOX // 2 for b in below))


def result_of(case: Case, data: Path) -> dict[str, Any]:
    began = time.monotonic()
    truth = molecule_map(case.molecule, case.symmetry, data)
    snr_db = -90.0 if case.start == "noise" else case.snr_db
    particles = vt.simulate(truth, case.particles, PIXEL, snr_db=snr_db, seed=case.seed)
    particles = particles.with_half_sets(seed=case.seed)
    images = particles.images(invert=False)
    config = RefinementConfig(
        symmetry=case.symmetry,
        start_resolution_angstrom=START_ANGSTROM,
        shift_range_angstrom=0.0,
        rounds=ROUNDS,
        seed=case.seed,
    )
    start: Start = start_maps(case, truth)
    searches: list[list[float]] = []
    for again in itertools.count():
        refined = run(Refinement(images, particles.optics, particles.half_set, start, config))
        reached, at_05 = masked_halves(refined, config, PIXEL, local=False).headline
        end = at_05 if math.isfinite(at_05) else reached
        finer = None
        if math.isfinite(end):
            finer = finer_shells_test(
                refined,
                images,
                particles.optics,
                particles.half_set,
                end,
                config,
                pixel_size_angstrom=PIXEL,
            )
        if finer is not None:
            searches.append([getattr(finer, name) for name in EVIDENCE])
        if finer is None or not search_again(finer, again):
            break
        start = start_again(refined, finer, config, PIXEL)
        start = replace(start, independent=True)
        config = replace(config, start_resolution_angstrom=start.resolution_angstrom)
    claimed = BOX * PIXEL / reached
    row = vars(case) | {"claimed_shells": claimed, "claimed_angstrom": reached}
    row["searches"] = searches
    right = 0.0 if case.start == "noise" else judged(refined.map, truth, case)
    share = right / max(claimed, 1e-9)
    row |= {"right_shells": right, "end": "wrong"}
    if share >= WRONG:
        row["end"] = "right" if share >= RIGHT else "between"
    row["sure"] = float((refined.poses.posterior > 0.5).float().mean())
    if finer is not None:
        row |= {name: getattr(finer, name) for name in EVIDENCE}
        row["believed"] = finer.shown
    return row | {"seconds": time.monotonic() - began}


def spread(values: list[float]) -> list[float]:
    """Least, median and largest."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2 :][:1]
    return [round(one, 2) for one in (*ordered[:1], *middle, *ordered[-1:])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", type=int, default=10**9, help="the first cases only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    from_truth = 0.0
    for case in list(cases(options.seeds))[: options.only]:
        row = result_of(case, options.data)
        if case.start == STARTS[0]:
            from_truth = row["right_shells"]
        if row["end"] == "right" and row["right_shells"] < from_truth / 2:
            row["end"] = "stuck"
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    table = {}
    for end in ("right", "stuck", "between", "wrong"):
        of_end = [row for row in rows if row["end"] == end]
        table[end] = {
            "runs": len(of_end),
            "believed": sum(bool(row.get("believed")) for row in of_end),
            **{name: spread([row[name] for row in of_end if name in row]) for name in EVIDENCE},
        }
    print(
        json.dumps(
            {
                "table": table,
                "needed": [CERTAIN, LEAST, MOST, STABLE, MOST_LEFT],
                "rows": rows,
                **where_and_when(),
            }
        )
    )
    return int(any(row["end"] == "wrong" and row.get("believed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
