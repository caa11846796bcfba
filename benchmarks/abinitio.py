"""From particle files to a map, against the truth: one ab initio claim a run. Prints JSON.

    python benchmarks/abinitio.py easy        # beta-galactosidase, box 32, 0 dB, D2
    python benchmarks/abinitio.py noisy       # the same at -10 dB
    python benchmarks/abinitio.py asymmetric  # 70S ribosome, box 32, 0 dB, C1
    python benchmarks/abinitio.py real-noise  # beta-galactosidase, box 64, -10 dB, real backgrounds

Every case is simulated and reconstructed with the command line's own defaults, from one seed; the
map is then aligned with the truth over rotation, shift and hand. Fails (exit 1) where a limit on
resolution or time is missed. Needs the real data beside the checkout (``--data``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from _public_data import BACKGROUND, BETAGAL, CTF, RIBOSOME
from vitreous.io.mrc import read_mrc
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution


@dataclass(frozen=True)
class Case:
    """What to simulate and what the map must reach, in Å and minutes."""

    source: str
    simulate: tuple[str, ...]
    abinit: tuple[str, ...]
    at_05_angstrom: float
    at_0143_angstrom: float
    minutes: float


SMALL = ("--box", "32", "--apix", "7.2", "--n", "10000")
CASES = {
    "easy": Case(BETAGAL, (*SMALL, "--snr-db", "0"), ("--sym", "D2"), 20.0, 14.4, 5),
    "noisy": Case(
        BETAGAL, (*SMALL, "--snr-db", "-10"), ("--sym", "D2", "--effort", "2"), 25.0, 99.0, 10
    ),
    "asymmetric": Case(
        RIBOSOME,
        ("--input-apix", "5", "--box", "32", "--apix", "10", "--n", "10000", "--snr-db", "0"),
        (),
        28.0,
        99.0,
        10,
    ),
    "real-noise": Case(
        BETAGAL,
        ("--box", "64", "--apix", "3.6", "--n", "10000", "--snr-db", "-10"),
        ("--sym", "D2", "--effort", "2"),
        18.0,
        99.0,
        30,
    ),
}


def vitreous(*arguments: str) -> float:
    """Run a command of the program; the seconds it took."""
    program = Path(sys.executable).with_name("vitreous")
    start = time.perf_counter()
    subprocess.run([program, *arguments], check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def resolution(map_path: Path, truth_path: Path) -> dict[str, float]:
    """Resolution in Å against the truth, after alignment without any knowledge of symmetry."""
    array, header = read_mrc(truth_path)
    pixel = header.pixel_size_or(None)
    truth = torch.from_numpy(array.copy()).float()
    found = torch.from_numpy(read_mrc(map_path)[0].copy()).float()
    aligned = align_maps(found, truth, pixel_size_angstrom=pixel)
    curve = fsc(aligned.aligned, truth)
    at = {
        f"fsc_{threshold}_angstrom": fsc_resolution(curve, threshold, truth.shape[-1], pixel)
        for threshold in (0.5, 0.143)
    }
    return at | {"correlation": float(aligned.correlation)}


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, object]:
    """Simulate, reconstruct, compare with the truth."""
    root = (options.keep or Path(tempfile.mkdtemp(prefix="vitreous-bench-"))) / name
    simulation, out, seed = root / "simulation", root / "abinit", str(options.seed)
    extra = ["--ctf", str(options.data / CTF)]
    noise = []
    if name == "real-noise":
        extra += ["--noise", str(options.data / BACKGROUND)]
        noise = ["--noise", str(simulation / "noise.star")]
    source = str(options.data / case.source)
    common = ["--seed", seed, "--overwrite"]
    vitreous("simulate", source, *case.simulate, *extra, "-o", str(simulation), *common)
    particles = str(simulation / "particles.star")
    seconds = vitreous("abinit", particles, *case.abinit, *noise, "-o", str(out), *common)
    reached = {
        which: resolution(out / f"{which}.mrc", simulation / "truth.mrc")
        for which in ("map", "half1", "half2")
    }
    whole = reached["map"]
    passed = (
        whole["fsc_0.5_angstrom"] <= case.at_05_angstrom
        and whole["fsc_0.143_angstrom"] <= case.at_0143_angstrom + 0.05
        and seconds <= 60 * case.minutes
    )
    return {
        "abinit": " ".join(case.abinit),
        "abinit_seconds": round(seconds, 1),
        "limits": {
            "fsc_0.5_angstrom": case.at_05_angstrom,
            "fsc_0.143_angstrom": case.at_0143_angstrom,
            "seconds": 60 * case.minutes,
        },
        "against_truth": reached,
        "passed": passed,
    }


def main() -> int:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of: {', '.join(CASES)}; default all")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for simulations and results")
    options = parser.parse_args()
    results = {name: measure(name, CASES[name], options) for name in options.cases or list(CASES)}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    report = {
        "seed": options.seed,
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cases": results,
    }
    print(json.dumps(report, indent=2))
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
