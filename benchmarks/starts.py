"""Where a first map is found without a start: random blobs against CryoGAN. Prints JSON.

    python benchmarks/starts.py FOLDER            # hours; --continue goes on where it ended
    python benchmarks/starts.py FOLDER --quick    # minutes

Cells: molecules (beta-galactosidase 5A1A, 70S ribosome, built-in phantoms; no symmetry is imposed
but D2 on 5A1A), noise levels, and, at one level, real backgrounds that the program takes for white
noise, and particles off centre. In every cell, at every seed, the same particles go to

* random: what `vitreous auto` starts from, its first step alone, with its defaults;
* cryogan: `vitreous abinit` with the default preset, told how far particles are off centre;
* cryogan-noise: the same, given the backgrounds (only where they are real).

A start succeeds if its map, aligned with the truth over rotation, shift and hand, keeps an FSC of
0.5 for at least --shells shells (resolution finer than the box over that number). What the program
itself says is kept beside it: a wrong map called solved is the worst there is. "Either" counts the
seeds at which one of them succeeds: what there is to gain by doing both. Markdown table and JSON to
FOLDER; the table also to stderr.

Fails (exit 1) where a wrong map is called solved, or where random starts succeed less often than
CryoGAN.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from _against_truth import against_truth, read_map
from _circumstances import commit, where_and_when
from _processes import measured, simulate_once, vitreous
from _public_data import BACKGROUND, BETAGAL, CTF, RIBOSOME, RIBOSOME_APIX
from vitreous.jobs.inputs.options import ParticleJobOptions
from vitreous.jobs.inputs.working_set import open_working_set
from vitreous.methods.em.config import InitialModelConfig
from vitreous.methods.em.initial_model import InitialModelSearch
from vitreous.optim.loop import run

BACKGROUND_PX, BACKGROUND_APIX = 192, 1.274
EDGE = {"5a1a": 230.4, "ribosome": 320.0}  # of the box, Å; 230.4 for phantoms too
FILES = {"5a1a": BETAGAL, "ribosome": RIBOSOME}
SYMMETRY = {"5a1a": "D2"}
METHODS = ("random", "cryogan", "cryogan-noise")
SETTINGS = ("box", "particles", "shells", "tries", "effort", "threads", "time_box")
WHICH = ("molecule", "snr_db", "noise", "shift_percent", "seed", "method")


@dataclass(frozen=True)
class Cell:
    """Conditions of a data set; shifts reach so far, in percent of the box."""

    molecule: str
    snr_db: float
    noise: str = "white"
    shift_percent: float = 0.0

    @property
    def symmetry(self) -> str:
        return SYMMETRY.get(self.molecule, "C1")

    @property
    def edge(self) -> float:
        return EDGE.get(self.molecule, 230.4)

    @property
    def shift(self) -> str:
        """As the command line takes it: the full width of a triangular distribution, Å."""
        if not self.shift_percent:
            return "none"
        return f"triangular:{2 * self.shift_percent / 100 * self.edge:g}"

    @property
    def name(self) -> str:
        molecule = self.molecule.replace(":", "")
        return f"{molecule}{self.snr_db:+g}dB-{self.noise}-{self.shift_percent:g}"


def cells(options: argparse.Namespace) -> list[Cell]:
    """Noise levels of white noise, then the harder conditions one level each."""
    found = [Cell(m, level) for m in options.molecules for level in options.snr_db]
    for molecule in options.molecules:
        for noise in options.noise:
            for shift in options.shifts:
                found.append(Cell(molecule, options.hard_snr_db, noise, shift))
    return list(dict.fromkeys(found))


def simulate(cell: Cell, seed: int, folder: Path, options: argparse.Namespace) -> None:
    molecule = cell.molecule
    source = molecule if molecule.startswith("phantom") else str(options.data / FILES[molecule])
    extra = ["--input-apix", str(RIBOSOME_APIX)] if molecule == "ribosome" else []
    if cell.noise == "real":
        # Patches must cover the box; where they do not, their pixels are declared larger.
        apix = max(BACKGROUND_APIX, 1.02 * cell.edge / BACKGROUND_PX)
        extra += ["--noise", str(options.data / BACKGROUND), "--noise-apix", f"{apix:.4f}"]
    simulate_once(
        folder,
        folder.with_suffix(".log"),
        *(source, "--box", str(options.box), "--apix", repr(cell.edge / options.box)),
        *("--n", str(options.particles), f"--snr-db={cell.snr_db}", "--shift", cell.shift, *extra),
        *("--ctf", str(options.data / CTF), "--n-micrographs", "100"),
        "--seed",
        str(seed),
        threads=options.threads,
    )


def random_start(
    cell: Cell, seed: int, simulation: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The first step of `vitreous auto`, in this process; three maps against the truth."""
    working = ParticleJobOptions(
        particles=simulation / "particles.star",
        output=simulation,
        symmetry=cell.symmetry,
        seed=seed,
        device=options.device,
        threads=options.threads,
        quiet=True,
    )
    begin = time.perf_counter()
    data = open_working_set(working, check_all=True)
    search = InitialModelSearch(
        data.images,
        data.optics,
        data.half_set,
        InitialModelConfig(tries=options.tries, symmetry=cell.symmetry, seed=seed),
        pixel_size_angstrom=data.pixel_size_angstrom,
        device=data.device,
    )
    first = run(search)
    seconds = time.perf_counter() - begin
    maps = {"map": 0.5 * (first.half1 + first.half2), "half1": first.half1, "half2": first.half2}
    return {
        "seconds": round(seconds, 1),
        "claimed": first.solved,
        "verdict": first.verdict,
        "certainty": round(first.certainty, 1),
        "tries": first.tries,
        "halves_agree": {"0.143": round(first.shells, 1), "0.5": round(first.shells_at_half, 1)},
        **shells({name: one.cpu() for name, one in maps.items()}, simulation),
    }


def cryogan(
    cell: Cell, seed: int, simulation: Path, folder: Path, given: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """`vitreous abinit`, told the shifts, and the backgrounds if they are given."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = ["--noise", str(simulation / "noise.star")] if given else []
    command = vitreous(
        *("abinit", str(simulation / "particles.star"), "--sym", cell.symmetry),
        *("--shift", cell.shift, "--effort", str(options.effort), *noise),
        *("--device", options.device, "--threads", str(options.threads)),
        *("--seed", str(seed), "--overwrite", "--quiet", "-o", "out"),
    )
    box = 60 * options.time_box
    log = folder / "abinit.log"
    took = measured(command, folder, log, time_box=box, threads=options.threads)
    row: dict[str, Any] = {"seconds": round(took.seconds, 1)}
    if took.returncode is None:
        return {**row, "claimed": False, "verdict": "time was up", "shells": {}}
    run = tomllib.loads((folder / "out" / "config.toml").read_text())["run"]
    maps = {name: read_map(folder / "out" / f"{name}.mrc") for name in ("map", "half1", "half2")}
    return {
        **row,
        "claimed": run["solved"],
        "verdict": run["verdict"],
        **shells(maps, simulation),
    }


def shells(maps: dict[str, torch.Tensor], simulation: Path) -> dict[str, Any]:
    """How many shells of each map are right."""
    truth = read_map(simulation / "truth.mrc")
    found = {name: against_truth(one, truth, 1.0) for name, one in maps.items()}
    return {
        "shells": {name: one["shells"] for name, one in found.items()},
        "correlation": found["map"]["correlation"],
    }


def run_cell(cell: Cell, seed: int, method: str, options: argparse.Namespace) -> dict[str, Any]:
    made = f"{cell.name}-{options.box}px-{options.particles}-{seed}"
    simulation = options.folder / "data" / made
    simulate(cell, seed, simulation, options)
    if method == "random":
        row = random_start(cell, seed, simulation, options)
    else:
        folder = options.folder / f"{cell.name}-{seed}-{method}"
        row = cryogan(cell, seed, simulation, folder, method == "cryogan-noise", options)
    reached = row["shells"].get("map", 0)
    told = {"success": reached >= options.shells, "commit": commit(), **row}
    return dict(zip(WHICH, which(cell, seed, method), strict=True)) | told


def which(cell: Cell, seed: int, method: str) -> tuple[Any, ...]:
    """What identifies a row: values of WHICH."""
    return cell.molecule, cell.snr_db, cell.noise, cell.shift_percent, seed, method


def earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the folder's run that is gone on with."""
    path = options.folder / "starts.json"
    if not (options.go_on and path.exists()):
        return []
    found = json.loads(path.read_text())
    for name in SETTINGS:
        if found.get(name) != getattr(options, name):
            raise SystemExit(
                f"{path} was made with {name} {found.get(name)}; give the same, or a folder"
            )
    return list(found["rows"])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each cell; successes, shells of each seed, seconds, mistakes."""
    methods = [m for m in METHODS if any(row["method"] == m for row in rows)]
    head = ["molecule", "dB", "noise", "shift"]
    for method in methods:
        head += [method, "shells", "seconds"]
    if len(methods) > 1:
        head.append("either")
    lines = [head, ["---"] * len(head)]
    keys = WHICH[:4]
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        line = [str(key[0]), f"{key[1]:g}", str(key[2]), f"{key[3]:g} %"]
        cell = [row for row in rows if tuple(row[k] for k in keys) == key]
        for method in methods:
            own = [row for row in cell if row["method"] == method]
            if not own:
                line += ["", "", ""]
                continue
            wrong = sum(r["claimed"] and not r["success"] for r in own)
            missed = sum(r["success"] and not r["claimed"] for r in own)
            remarks = [f"{wrong} wrongly claimed"] * bool(wrong)
            remarks += [f"{missed} not claimed"] * bool(missed)
            remark = f" ({', '.join(remarks)})" if remarks else ""
            seconds = sum(r["seconds"] for r in own) / len(own)
            line.append(f"{sum(r['success'] for r in own)}/{len(own)}{remark}")
            line += [", ".join(str(r["shells"].get("map", "-")) for r in own), f"{seconds:.0f}"]
        if len(methods) > 1:
            seeds = {row["seed"] for row in cell}
            line.append(f"{len({row['seed'] for row in cell if row['success']})}/{len(seeds)}")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def held(rows: list[dict[str, Any]]) -> dict[str, bool]:
    wins = {m: sum(row["success"] for row in rows if row["method"] == m) for m in METHODS}
    result = {
        "no wrong map called solved": not any(r["claimed"] and not r["success"] for r in rows)
    }
    if {"random", "cryogan"} <= {row["method"] for row in rows}:
        result["random at least as often as cryogan"] = wins["random"] >= wins["cryogan"]
    return result


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """All so far, to the folder."""
    result = {
        "benchmark": "starts",
        **where_and_when(),
        "load": round(os.getloadavg()[0], 2),
        **{name: getattr(options, name) for name in SETTINGS},
        "rows": rows,
        "held": held(rows),
    }
    (options.folder / "starts.json").write_text(json.dumps(result, indent=1))
    (options.folder / "starts.md").write_text(table(rows) + "\n")
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/starts"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="FOLDER's run")
    parser.add_argument("--quick", action="store_true", help="a few cells, little data, minutes")
    parser.add_argument("--molecules", nargs="+", help="5a1a, ribosome, phantom:SEED")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--snr-db", type=float, nargs="*", help="with white noise, centred")
    parser.add_argument("--noise", nargs="*", choices=["white", "real"], help="at --hard-snr-db")
    parser.add_argument("--shifts", type=float, nargs="*", help="percent of the box, there too")
    parser.add_argument("--hard-snr-db", type=float, default=-10.0)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--particles", type=int)
    parser.add_argument("--shells", type=int, default=6, help="that must be right")
    parser.add_argument(
        "--tries", type=int, default=InitialModelConfig().tries, help="of random starts"
    )
    parser.add_argument("--effort", type=float, help="of vitreous abinit")
    parser.add_argument("--time-box", type=float, default=30.0, metavar="MINUTES", help="of abinit")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    full = {
        "molecules": ["5a1a", "ribosome", "phantom:1"],
        "seeds": [1, 2, 3],
        "snr_db": [0.0, -10.0, -13.0, -20.0],
        "noise": ["white", "real"],
        "shifts": [0.0, 5.0],
        "particles": 10_000,
        "effort": 1.0,
    }
    quick = {
        "molecules": ["phantom:1"],
        "seeds": [1],
        "snr_db": [0.0],
        "noise": [],
        "shifts": [],
        "particles": 2000,
        "effort": 0.2,
    }
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    return options


def main() -> int:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = earlier(options)
    done = {tuple(row[name] for name in WHICH) for row in rows}
    for cell in cells(options):
        for seed in options.seeds:
            for method in options.methods:
                given_white = method == "cryogan-noise" and cell.noise == "white"
                if given_white or which(cell, seed, method) in done:
                    continue
                rows.append(run_cell(cell, seed, method, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                report(rows, options)
    result = report(rows, options)
    print(table(rows), file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0 if all(result["held"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
