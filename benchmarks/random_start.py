"""What random starts gain by what they do. Prints JSON.

    python benchmarks/random_start.py FOLDER --molecule ribosome phantom:4
    python benchmarks/random_start.py FOLDER --molecule ribosome --box 32

What `vitreous auto` does first (`solvers.random_start`), run by run, each to its end instead of the
best only:

* as it is;
* whole: with as much work in rounds of all images instead of a quarter of them each;
* split: as it is, but the images split in two, each half under its own map (`one_map=False`).

All get the same images and blobs. Particles of a box of 320 Å at -10 dB, C1, CTFs of real
micrographs, shifts of up to 5 % of the box.

A run's map is aligned with the truth over rotation, shift and hand; told are the shells up to which
their FSC stays above 0.5, sorted, and the seconds of all runs. Fails (exit 1) where the median as
it is is not at least that of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from _against_truth import against_truth, read_map
from _circumstances import where_and_when
from _processes import simulate_once
from _public_data import CTF, RIBOSOME, RIBOSOME_APIX
from vitreous.core.images import ImagesInMemory
from vitreous.core.random import stream_seed
from vitreous.jobs.inputs.options import ParticleJobOptions
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.methods.em.config import Batches, RandomStartConfig
from vitreous.methods.em.random_start import RandomStart

EDGE = 320.0  # of the box, Å
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "whole": {"batches": Batches(parts=1, rounds=8)},
    "split": {"one_map": False},
}
SOURCES = {"ribosome": (RIBOSOME, "--input-apix", str(RIBOSOME_APIX))}


def simulate(molecule: str, seed: int, options: argparse.Namespace) -> Path:
    """The particles, once."""
    folder: Path = options.folder / "data" / f"{molecule.replace(':', '')}-{options.box}px-{seed}"
    source = [molecule]
    if molecule in SOURCES:
        path, *more = SOURCES[molecule]
        source = [str(options.data / path), *more]
    simulate_once(
        folder,
        folder.with_suffix(".log"),
        *(*source, "--box", str(options.box), "--apix", repr(EDGE / options.box)),
        *("--n", str(2 * options.images), f"--snr-db={options.snr_db}"),
        *("--shift", f"triangular:{0.1 * EDGE:g}"),
        *("--ctf", str(options.data / CTF), "--n-micrographs", "100"),
        "--seed",
        str(seed),
        threads=options.threads,
    )
    return folder


def runs(
    data: WorkingSet, truth: torch.Tensor, way: str, seed: int, options: argparse.Namespace
) -> tuple[list[int], float]:
    """Right shells of every run of both halves, and seconds."""
    images = data.images
    reached, seconds = [], 0.0
    for half in (1, 2):
        rows = (data.half_set == half).nonzero().flatten()
        memory = images.read(rows)
        for start in range(options.starts):
            config = RandomStartConfig(
                shift_range_angstrom=data.shift_range(None),
                images=options.images,
                starts=1,
                seed=stream_seed(seed, f"start {start} of half {half}"),
                **WAYS[way],
            )
            begin = time.perf_counter()
            task = RandomStart(
                ImagesInMemory(memory),
                data.particles.optics[rows],
                config,
                pixel_size_angstrom=data.pixel_size_angstrom,
            )
            while not task.done:
                task.step()
            seconds += time.perf_counter() - begin
            reached.append(against_truth(task.result(), truth, data.pixel_size_angstrom)["shells"])
    return sorted(reached), round(seconds, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/random_start"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--molecule", nargs="+", default=["ribosome", "phantom:4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--starts", type=int, default=4, help="of each half set")
    parser.add_argument("--images", type=int, default=1000, help="of each half set")
    parser.add_argument("--box", type=int, default=64, help="pixels; the edge in Å stays")
    parser.add_argument("--snr-db", type=float, default=-10.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for molecule in options.molecule:
        for seed in options.seeds:
            folder = simulate(molecule, seed, options)
            working = ParticleJobOptions(
                particles=folder / "particles.star",
                output=folder,
                seed=seed,
                device="cpu",
                threads=options.threads,
            )
            data = open_working_set(working)
            truth = read_map(folder / "truth.mrc")
            for way in WAYS:
                reached, seconds = runs(data, truth, way, seed, options)
                rows.append(
                    {
                        "molecule": molecule,
                        "seed": seed,
                        "way": way,
                        "shells": reached,
                        "median": statistics.median(reached),
                        "seconds": seconds,
                    }
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    median = {(row["molecule"], row["seed"], row["way"]): row["median"] for row in rows}
    held = all(median[*case, "as it is"] >= value for (*case, _), value in median.items())
    result = {
        "benchmark": "random_start",
        **where_and_when(),
        "box": options.box,
        "rows": rows,
        "held": held,
    }
    print(json.dumps(result, indent=1))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
