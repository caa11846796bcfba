"""Direct reconstruction against relion_reconstruct: seconds, agreement, error. Prints JSON.

Simulated particles with known poses, shifts, astigmatism and noise; the same STAR file, cores and
disk, the programs taking turns. RELION runs as it comes (padding 2, ten gridding iterations), on
one core and, through MPI, on all; the faster counts. Ours is timed as a whole command, start of the
interpreter to report included, which also makes two half maps; and as the sums and one map alone,
in a process that has loaded its libraries, as RELION has by the time it reads its first image.

Fails (exit 1) where the sums and map take more than a fifth of RELION's time, or the two maps' FSC
is 0.95 or less in any shell up to 0.9 of Nyquist.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from _against_truth import read_map
from _circumstances import where_and_when
from _processes import measured, vitreous
from vitreous.core.rotation import random_rotations
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.maps.fsc import fsc
from vitreous.methods.reconstruct.gridding import accumulate, half_map
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.insertion import Accumulator, weighted_slices
from vitreous.physics.kernels.slice_kernel import padded_size
from vitreous.physics.projector import scatter

LEAST_RATIO = 5.0
LEAST_FSC = 0.95


def simulate(folder: Path, options: argparse.Namespace) -> None:
    size = ["--box", str(options.box), "--apix", str(options.apix), "--n", str(options.particles)]
    noise = ["--snr-db", str(options.snr_db), "--shift", f"triangular:{8 * options.apix}"]
    seed = ["--seed", str(options.seed), "--quiet"]
    command = vitreous("simulate", options.source, *size, *noise, *seed, "-o", "sim")
    measured(command, folder, folder / "simulate.log")


def child(star: Path, target: Path) -> None:
    """Print the seconds from the opened table to one unfiltered map of all particles; write it."""
    particles = Particles.open(star)
    assert particles.pose is not None
    half = torch.arange(len(particles)) % 2 + 1

    def run(chosen: Particles, half: Tensor) -> Tensor:
        pose, pixel = chosen.pose, chosen.pixel_size_angstrom
        assert pose is not None
        where = pose.rotation, pose.shift_angstrom, chosen.optics
        first, second = accumulate(PosedParticles(chosen, *where, pixel, half))
        return half_map(first + second)

    run(particles.select(slice(0, 8)), half[:8])  # compiled loops are loaded once
    start = time.perf_counter()
    volume = run(particles, half)
    print(time.perf_counter() - start)
    write_mrc(target, volume.numpy(), particles.pixel_size_angstrom)


def in_process(folder: Path, threads: int) -> float:
    command = [sys.executable, __file__, "--child", "sim/truth.star", "alone.mrc"]
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        cwd=folder,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},  # as the command does
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def nanoseconds_per_point(n: int) -> dict[str, float]:
    """Of the insertion alone, one thread: linear spreading of B and W, and the projector's of B."""
    before, b = torch.get_num_threads(), 1000
    torch.set_num_threads(1)
    rotations = random_rotations(b, generator=torch.Generator().manual_seed(0))
    values = weighted_slices(torch.zeros(b, n, n), None, None, 1.0)
    slices = torch.zeros(b, n * (n // 2 + 1), dtype=torch.complex64)
    sums = Accumulator(n, sets=1, threads=1)
    kinds: dict[str, Callable[[], object]] = {
        "linear, twofold grid, B and W": lambda: sums.insert(values, rotations),
        "Kaiser-Bessel, 1.5-fold grid, B alone": lambda: scatter(
            slices, rotations, n, padded_size(n)
        ),
    }
    result = {}
    for name, run in kinds.items():
        taken = []
        for _ in range(4):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        result[name] = round(min(taken) / values[..., 0].numel() * 1e9, 1)
    torch.set_num_threads(before)
    return result


def agreement(a: Tensor, b: Tensor) -> dict[str, float]:
    n = a.shape[-1]
    curve = fsc(a, b)[1 : int(0.9 * n / 2) + 1]
    return {"lowest": round(float(curve.min()), 4), "mean": round(float(curve.mean()), 4)}


def compare(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Take turns, then compare the maps."""
    star = folder / "sim" / "truth.star"
    relion = ["--i", "truth.star", "--ctf", "--o"]
    commands = {
        "relion_reconstruct": ["relion_reconstruct", *relion, "../relion.mrc"],
        "vitreous reconstruct": vitreous(
            *("reconstruct", "truth.star", "-o", "../ours", "--overwrite", "--quiet"),
            *("--threads", str(options.threads)),
        ),
    }
    if shutil.which("relion_reconstruct_mpi") and shutil.which("mpirun") and options.threads > 1:
        ranks = ["mpirun", "--allow-run-as-root", "-n", str(options.threads)]
        commands["relion_reconstruct_mpi"] = [
            *(*ranks, "relion_reconstruct_mpi", *relion, "../relion_mpi.mrc")
        ]
    seconds: dict[str, list[float]] = {name: [] for name in (*commands, "sums and map")}
    memory = dict.fromkeys(commands, 0)
    for _ in range(options.repeats):
        for name, command in commands.items():
            took = measured(command, star.parent, folder / f"{name}.log")
            seconds[name].append(took.seconds)
            memory[name] = max(memory[name], took.peak_memory_mb)
        seconds["sums and map"].append(in_process(folder, options.threads))
    best = {name: min(values) for name, values in seconds.items()}
    theirs = min(value for name, value in best.items() if name.startswith("relion"))
    truth, relion_map = read_map(folder / "sim" / "truth.mrc"), read_map(folder / "relion.mrc")
    volume = read_map(folder / "alone.mrc")
    ratio = theirs / best["sums and map"]
    between = agreement(volume, relion_map)
    return {
        "best_seconds": {name: round(value, 3) for name, value in best.items()},
        "median_seconds": {n: round(statistics.median(v), 3) for n, v in seconds.items()},
        "peak_memory_mb": memory,
        "ratio": round(ratio, 2),
        "ratio_of_whole_commands": round(theirs / best["vitreous reconstruct"], 2),
        "nanoseconds_per_point": nanoseconds_per_point(options.box),
        "fsc_between_maps": between,
        "fsc_with_truth": {
            "vitreous": agreement(volume, truth),
            "vitreous, regularised": agreement(read_map(folder / "ours" / "map.mrc"), truth),
            "relion": agreement(relion_map, truth),
        },
        "pass": ratio >= LEAST_RATIO and between["lowest"] > LEAST_FSC,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="phantom:1", help="as of vitreous simulate")
    parser.add_argument("--particles", type=int, default=20000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--apix", type=float, default=3.0, help="Å")
    parser.add_argument("--snr-db", type=float, default=-10.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=2, type=Path, metavar=("STAR", "MRC"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(*options.child)
        return 0
    if shutil.which("relion_reconstruct") is None:
        print("relion_reconstruct not found: install Debian's package relion", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        simulate(Path(name), options)
        result = compare(Path(name), options)
    header = {
        "benchmark": "reconstruct_against_relion",
        **where_and_when(),
        "load_before": round(os.getloadavg()[0], 2),
        **{k: getattr(options, k) for k in ("source", "particles", "box", "apix", "snr_db")},
    }
    print(json.dumps(header | result, indent=2))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
