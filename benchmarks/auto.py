"""From raw particles to a map: `vitreous auto` against RELION, cryoDRGN and ASPIRE. Prints JSON.

    python benchmarks/auto.py FOLDER --opponents relion --time-box 120
    python benchmarks/auto.py FOLDER --case a --seeds 1 --particles 300 --box 32 --time-box 2

Cases: (a) beta-galactosidase (5A1A), box 64, 3.6 Å/px, with D2 imposed; (b) the same particles in
C1; (c) 70S ribosome, box 64, 5 Å/px, C1, shifts of up to 5 % of the box; (d), if asked for, like
(a) on windows of 101 real backgrounds instead of white noise. All have 10,000 particles at -10 dB
with the CTFs of 200 real micrographs; every seed is another data set. All programs get the same
particles, cores and symmetry, one after the other, and none knows a pose or a map.

RELION: 3D initial model, then auto-refinement in halves, with the options that its job windows set
(`relion_pipeliner --addJobFromStar`), but that the first reference is filtered to --ini-high, not
60 Å; images are normalised to it, the diameter is the case's. `relion-refinement` is the second of
the two alone, from the true map: what it comes to from a better start than it would have.
cryoDRGN: `abinit_homo` (in 4.3 `abinit_homo_old`), defaults. ASPIRE: class averages, common lines,
mean estimate.
`true-poses` is no opponent but the bound: `vitreous reconstruct` of the same particles with the
poses they were made with.

Against the truth: alignment over rotation, shift and hand, then FSC 0.5 and 0.143 within the sphere
inscribed in the box (the headline; within the molecule's soft mask beside it). Memory is that of
all processes of a program together. A program that is not done within --time-box is stopped, and
its last map counts, or its start where that is finer; the JSON says so (`time_was_up`).
--times-ours N makes the box of an opponent N times the seconds that ours took on the same
particles, where that is less. Seconds of the processor are told beside those of the clock: they
hold on a machine that has other work. Ratios are the opponent's over ours: above 1 we are faster,
or finer. Table to FOLDER/auto.json and auto.csv, after every run.

Fails (exit 1) where a map of ours is not solved or is coarser than 1.5 times Nyquist at 0.143,
where ours is coarser than an opponent's by more than the limit, or slower.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import sys
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from _against_truth import against_truth, latest, read_map
from _circumstances import where_and_when
from _processes import Measured, measured, simulate_once, vitreous
from _public_data import BACKGROUND, BETAGAL, CTF, RIBOSOME, RIBOSOME_APIX
from vitreous.core.grid import soft_mask
from vitreous.io.mrc import read_mrc, write_mrc

COARSEST = 1.05  # ours over the opponent's resolution
LEAST_RATIO = 1.0  # of wall time
OF_NYQUIST = 1.5
PARTICLES_PER_MICROGRAPH = 50


@dataclass(frozen=True)
class Data:
    """What is simulated; lengths in Å, the shift the full width of its triangular distribution.

    Noise is white, or a stack of backgrounds.
    """

    source: str
    edge: float
    shift: float
    diameter: float
    input_apix: float | None = None
    noise: str = ""


DATA = {
    "5a1a": Data(BETAGAL, 230.4, 14.4, 200.0),
    "5a1a-real": Data(BETAGAL, 230.4, 14.4, 200.0, noise=BACKGROUND),
    "ribosome": Data(RIBOSOME, 320.0, 32.0, 290.0, input_apix=RIBOSOME_APIX),
}
CASES = {
    "a": ("5a1a", "D2"),
    "b": ("5a1a", "C1"),
    "c": ("ribosome", "C1"),
    "d": ("5a1a-real", "D2"),
}


@dataclass(frozen=True)
class Job:
    """One case at one seed, for any of the programs; the time box in seconds."""

    data: Data
    symmetry: str
    seed: int
    simulation: Path
    folder: Path
    box: int
    options: argparse.Namespace
    time_box: float
    taken: list[Measured] = field(default_factory=list)

    @property
    def pixel(self) -> float:
        return self.data.edge / self.box

    def run(self, command: list[str], name: str) -> Measured:
        """Within what earlier steps left of the time, in the job's folder, words to NAME.log."""
        left = self.time_box - sum(step.seconds for step in self.taken)
        took = measured(
            command,
            self.folder,
            self.folder / f"{name}.log",
            time_box=max(left, 1.0),
            threads=self.options.threads,
        )
        self.taken.append(took)
        return took


@dataclass(frozen=True)
class Outcome:
    """What a program made: steps by name, its map, what is to be told of it, and its start."""

    steps: dict[str, Measured]
    volume: Tensor | None
    told: dict[str, Any]
    first: Tensor | None = None


def simulate(job: Job) -> None:
    """The particles, once for all cases and programs that use them."""
    options = job.options
    micrographs = min(200, max(2, options.particles // PARTICLES_PER_MICROGRAPH))
    more = ["--input-apix", str(job.data.input_apix)] if job.data.input_apix else []
    more += ["--noise", str(options.data / job.data.noise)] if job.data.noise else []
    simulate_once(
        job.simulation,
        job.simulation.with_suffix(".log"),
        *(str(options.data / job.data.source), *more),
        *("--box", str(job.box), "--apix", repr(job.pixel), "--n", str(options.particles)),
        *("--ctf", str(options.data / CTF), "--n-micrographs", str(micrographs)),
        *(f"--snr-db={options.snr_db}", "--shift", f"triangular:{job.data.shift}"),
        "--seed",
        str(job.seed),
        threads=options.threads,
    )


def run_vitreous(job: Job) -> Outcome:
    """`vitreous auto`, as it comes."""
    command = vitreous(
        *("auto", str(job.simulation / "particles.star"), "--sym", job.symmetry),
        *("--seed", str(job.seed), "--threads", str(job.options.threads)),
        *("--device", job.options.device, "--overwrite", "--quiet", "-o", "out"),
    )
    took = job.run(command, "auto")
    told: dict[str, Any] = {"solved": False}
    out = job.folder / "out"
    volume = first = None
    if took.returncode == 0:
        run = tomllib.loads((out / "config.toml").read_text())["run"]
        names = ("solved", "verdict", "resolution_0143_angstrom", "tries")
        told = {name: run[name] for name in names}
        volume, first = read_map(out / "map.mrc"), read_map(out / "start.mrc")
    return Outcome({"auto": took}, volume, told, first)


def normalise(job: Job) -> None:
    """Stack and table for RELION: background of mean zero and unit deviation in every image."""
    source = job.simulation
    images, _ = read_mrc(source / "particles.mrcs")
    n = images.shape[-1]
    radius = min(n / 2 - 1, job.data.diameter / 2 / job.pixel)
    outside = soft_mask(n, 2, radius, 0.0).numpy() == 0
    background = images[:, outside]
    images = (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]
    write_mrc(job.folder / "particles.mrcs", images, job.pixel, is_stack=True)
    shutil.copyfile(source / "particles.star", job.folder / "particles.star")


def of_relion(job: Job) -> list[str]:
    """Options of both of its steps."""
    return [
        *("--i", "particles.star", "--ctf", "--sym", job.symmetry, "--flatten_solvent"),
        *("--zero_mask", "--dont_combine_weights_via_disc", "--pool", "3", "--pad", "2"),
        *("--skip_gridding", "--particle_diameter", str(job.data.diameter)),
        *("--oversampling", "1", "--random_seed", str(job.seed)),
    ]


def run_relion(job: Job) -> Outcome:
    """3D initial model by gradient descent, then auto-refinement of two halves."""
    normalise(job)
    first, between, last = job.options.sgd_iterations
    model = [
        *("relion_refine", "--o", "./initial", "--sgd", "--denovo_3dref", "--K", "1"),
        *("--sgd_ini_iter", str(first), "--sgd_inbetween_iter", str(between)),
        *("--sgd_fin_iter", str(last), "--sgd_write_iter", "10", "--sgd_ini_resol", "35"),
        *("--sgd_fin_resol", "15", "--sgd_ini_subset", "100", "--sgd_fin_subset", "500"),
        *("--healpix_order", "1", "--offset_range", "6", "--offset_step", "4"),
        *("--j", str(job.options.threads)),
    ]
    steps = {"initial model": job.run(model + of_relion(job), "initial")}
    found = latest(job.folder, r"initial_it(\d+)_class001.mrc")
    told: dict[str, Any] = {"initial_iterations": found[0]}
    if found[1] is None:
        return Outcome(steps, None, told)
    start = read_map(found[1])
    if steps["initial model"].returncode is None:
        return Outcome(steps, None, told, start)
    refined = refine_by_relion(job, found[1])
    return Outcome(steps | refined.steps, refined.volume, told | refined.told, start)


def run_relion_refinement(job: Job) -> Outcome:
    """Auto-refinement of two halves from the truth, low-pass filtered."""
    normalise(job)
    truth = Path(shutil.copyfile(job.simulation / "truth.mrc", job.folder / "truth.mrc"))
    return refine_by_relion(job, truth)


def refine_by_relion(job: Job, reference: Path) -> Outcome:
    """Auto-refinement in the job's folder from a map there."""
    ranks = ["mpirun", "-n", "3", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]
    refine = [
        *("relion_refine_mpi", "--o", "./refined", "--auto_refine", "--split_random_halves"),
        *("--ref", reference.name, "--firstiter_cc", "--ini_high", str(job.options.ini_high)),
        *("--healpix_order", "2", "--auto_local_healpix_order", "4", "--offset_range", "5"),
        *("--offset_step", "2", "--low_resol_join_halves", "40", "--norm", "--scale"),
        *("--j", str(max(1, job.options.threads // 2))),
    ]
    steps = {"auto-refinement": job.run(ranks + refine + of_relion(job), "refined")}
    whole = job.folder / "refined_class001.mrc"
    pattern = r"refined_it(?!000)(\d+)_half%d_class001.mrc"  # iteration 0 is the filtered start
    halves = [latest(job.folder, pattern % k) for k in (1, 2)]
    told: dict[str, Any] = {"refined_iterations": halves[0][0]}
    if whole.exists():
        return Outcome(steps, read_map(whole), told | {"map": "all particles"})
    one, two = (path for _, path in halves)
    if one is None or two is None:
        return Outcome(steps, None, told)
    average = 0.5 * (read_map(one) + read_map(two))
    return Outcome(steps, average, told | {"map": "mean of the last half maps"})


def run_cryodrgn(job: Job) -> Outcome:
    """Ab initio reconstruction with hierarchical pose search; its images may be dark or light."""
    program, source = str(job.options.cryodrgn), job.simulation
    job.run([program, "--help"], "help")
    words = (job.folder / "help.log").read_text()
    command = "abinit_homo_old" if "abinit_homo_old" in words else "abinit_homo"
    star = str(source / "particles.star")
    ctf = job.run([program, "parse_ctf_star", star, "-o", "ctf.pkl"], "ctf")
    took = job.run(
        [
            *(program, command, str(source / "particles.mrcs"), "--ctf", "ctf.pkl"),
            *("--l-end", str(min(32, job.box // 2)), "--seed", str(job.seed), "-o", "out"),
            *shlex.split(job.options.cryodrgn_options),
        ],
        "abinit",
    )
    whole = job.folder / "out" / "reconstruct.mrc"
    epoch, path = latest(job.folder / "out", r"reconstruct\.(\d+)\.mrc")
    if whole.exists():
        path = whole
    steps = {"ctf": ctf, "abinit": took}
    told = {"command": command, "epochs": epoch}
    return Outcome(steps, None if path is None else read_map(path), told)


def run_aspire(job: Job) -> Outcome:
    """Class averages, common lines, mean estimate; `_aspire_job.py` in ASPIRE's own Python."""
    script = Path(__file__).with_name("_aspire_job.py").resolve()
    command = [str(job.options.aspire), str(script), str(job.simulation / "particles.star")]
    command += ["out.mrc", str(job.pixel), job.symmetry, str(job.seed)]
    took = job.run([*command, str(job.options.aspire_classes)], "aspire")
    path = job.folder / "out.mrc"
    return Outcome({"aspire": took}, read_map(path) if path.exists() else None, {})


def run_true_poses(job: Job) -> Outcome:
    """What the particles hold at best: reconstruction with the poses they were made with."""
    command = vitreous(
        *("reconstruct", str(job.simulation / "truth.star"), "--sym", job.symmetry),
        *("--threads", str(job.options.threads), "--overwrite", "--quiet", "-o", "out"),
    )
    took = job.run(command, "reconstruct")
    path = job.folder / "out" / "map.mrc"
    return Outcome({"reconstruct": took}, read_map(path) if path.exists() else None, {})


PROGRAMS: dict[str, Callable[[Job], Outcome]] = {
    "vitreous": run_vitreous,
    "true-poses": run_true_poses,
    "relion": run_relion,
    "relion-refinement": run_relion_refinement,
    "cryodrgn": run_cryodrgn,
    "aspire": run_aspire,
}


def job_of(name: str, case: str, seed: int, time_box: float, options: argparse.Namespace) -> Job:
    """A program's task on a data set, which is made if need be; its folder is emptied."""
    data, symmetry = CASES[case]
    made = f"{data}-{options.box}px-{options.particles}-{options.snr_db:g}dB-{seed}"
    folder = options.folder / f"{case}-{seed}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    simulation = options.folder / "data" / made
    job = Job(DATA[data], symmetry, seed, simulation, folder, options.box, options, time_box)
    simulate(job)
    return job


def missing(name: str, options: argparse.Namespace) -> str:
    """What an opponent lacks here; empty if nothing."""
    if name == "true-poses":
        return ""
    if name.startswith("relion"):
        needed = ("relion_refine", "relion_refine_mpi", "mpirun")
        absent = [program for program in needed if shutil.which(program) is None]
        return f"{', '.join(absent)} not found: Debian's package relion" if absent else ""
    path: Path | None = getattr(options, name)
    if path is None:
        return f"give --{name}"
    return "" if shutil.which(path) else f"--{name} {path}: not an executable"


def row_of(name: str, case: str, job: Job) -> dict[str, Any]:
    """Run one program and compare its map."""
    job.folder.mkdir(parents=True, exist_ok=True)
    outcome = PROGRAMS[name](job)
    truth = read_map(job.simulation / "truth.mrc")
    compare = partial(
        against_truth, truth=truth, pixel=job.pixel, either_contrast=name in ("cryodrgn", "aspire")
    )
    steps = outcome.steps
    row: dict[str, Any] = {
        "case": case,
        "seed": job.seed,
        "program": name,
        "nyquist_angstrom": round(2 * job.pixel, 2),
        "seconds": round(sum(step.seconds for step in steps.values()), 1),
        "cpu_seconds": round(sum(step.cpu_seconds for step in steps.values()), 1),
        "peak_memory_mb": max(step.peak_memory_mb for step in steps.values()),
        "time_was_up": any(step.returncode is None for step in steps.values()),
        **outcome.told,
    }
    if len(steps) > 1:
        row["steps"] = {which: step.told for which, step in steps.items()}
    last = None if outcome.volume is None else compare(outcome.volume)
    if outcome.first is not None:
        start = row["start_against_truth"] = compare(outcome.first)
        at = "fsc_0.5_angstrom"
        finer = last is None or start["sphere"][at] < last["sphere"][at]
        if row["time_was_up"] and finer:
            last, row["map"] = start, "initial model"
    row["against_truth"] = last
    return row


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds, a line for each case and program, with ratios to ours."""
    lines: list[dict[str, Any]] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        ours: dict[str, Any] | None = None
        for name in PROGRAMS:
            chosen = [row for row in rows if (row["case"], row["program"]) == (case, name)]
            if not chosen:
                continue
            maps = [row["against_truth"] for row in chosen if row["against_truth"] is not None]
            line: dict[str, Any] = {
                "case": case,
                "program": name,
                "seeds": len(chosen),
                "seconds": round(statistics.mean(row["seconds"] for row in chosen), 1),
                "cpu_seconds": round(statistics.mean(row["cpu_seconds"] for row in chosen), 1),
                "peak_memory_mb": max(row["peak_memory_mb"] for row in chosen),
                "times_up": sum(row["time_was_up"] for row in chosen),
                "without_map": len(chosen) - len(maps),
            }
            for where in ("sphere", "molecule"):
                for at in ("fsc_0.5_angstrom", "fsc_0.143_angstrom"):
                    values = [one[where][at] for one in maps]
                    line[f"{where}_{at}"] = round(statistics.mean(values), 2) if values else None
            if name == "vitreous":
                ours = line
            elif ours is not None:
                line |= ratios(line, ours)
            lines.append(line)
    return lines


def ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float | None]:
    """Theirs over ours."""
    result: dict[str, float | None] = {}
    for short, key in (
        ("wall_ratio", "seconds"),
        ("cpu_ratio", "cpu_seconds"),
        ("resolution_ratio_0.5", "sphere_fsc_0.5_angstrom"),
        ("resolution_ratio_0.143", "sphere_fsc_0.143_angstrom"),
    ):
        a, b = theirs[key], ours[key]
        result[short] = round(a / b, 2) if a and b else None
    return result


def held(lines: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, bool]:
    """The limits. An opponent stopped by the time box took at least that long."""
    own = [row for row in rows if row["program"] == "vitreous"]
    result = {"solved": bool(own) and all(row["solved"] for row in own)}
    if result["solved"]:
        result[f"within {OF_NYQUIST} Nyquist"] = all(
            row["against_truth"]["sphere"]["fsc_0.143_angstrom"]
            <= OF_NYQUIST * row["nyquist_angstrom"]
            for row in own
        )
    for line in lines:
        if "wall_ratio" not in line or line["program"] == "true-poses":
            continue
        name = f"{line['case']} {line['program']}"
        wall, finer = line["wall_ratio"], line["resolution_ratio_0.5"]
        result[f"{name}: faster"] = wall is not None and wall > LEAST_RATIO
        without = line["without_map"] == line["seeds"]  # no map of theirs is coarser than any
        result[f"{name}: as fine"] = without or (finer is not None and finer * COARSEST >= 1)
    return result


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """All so far, to the folder."""
    lines = means(rows)
    result = {
        "benchmark": "auto",
        **where_and_when(),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 2),
        "particles": options.particles,
        "box": options.box,
        "snr_db": options.snr_db,
        "time_box_minutes": options.time_box,
        "times_ours": options.times_ours,
        "at_once": options.at_once,
        "limits": {"coarsest": COARSEST, "least_wall_ratio": LEAST_RATIO},
        "table": lines,
        "runs": rows,
        "held": held(lines, rows),
    }
    (options.folder / "auto.json").write_text(json.dumps(result, indent=1))
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with (options.folder / "auto.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(lines)
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/auto"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["a", "b", "c"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--opponents", nargs="*", choices=list(PROGRAMS)[1:], default=["relion"])
    parser.add_argument("--cryodrgn", type=Path, metavar="PROGRAM", help="cryodrgn, installed")
    parser.add_argument("--cryodrgn-options", default="", help="more for it, one text, for trials")
    parser.add_argument("--aspire", type=Path, metavar="PYTHON", help="a Python that has ASPIRE")
    parser.add_argument("--aspire-classes", type=int, default=500, help="class averages it orients")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", help="of vitreous auto")
    parser.add_argument("--time-box", type=float, default=120.0, metavar="MINUTES")
    parser.add_argument("--times-ours", type=float, metavar="N", help="an opponent's box")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="opponents at a time")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=64, help="pixels; the edge in Å stays")
    parser.add_argument("--snr-db", type=float, default=-10.0)
    parser.add_argument("--ini-high", type=float, default=40.0, help="Å, of RELION's refinement")
    parser.add_argument(
        *("--sgd-iterations", "--relion-iterations"),
        type=int,
        nargs=3,
        default=[50, 200, 50],
        help="of RELION's initial model; fewer only to try this script",
    )
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    return options


def main() -> int:
    options = parse()
    for name in options.opponents:
        absent = missing(name, options)
        if absent:
            print(f"{name}: {absent}", file=sys.stderr)
            return 2
    rows: list[dict[str, Any]] = []

    def finish(name: str, case: str, seed: int, time_box: float) -> dict[str, Any]:
        row = row_of(name, case, job_of(name, case, seed, time_box, options))
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        report(rows, options)
        return row

    longest = 60 * options.time_box
    waiting: list[tuple[str, str, int, float]] = []
    for seed in options.seeds:
        for case in options.case:
            ours = finish("vitreous", case, seed, longest)
            times = options.times_ours
            time_box = longest if times is None else min(longest, times * ours["seconds"])
            waiting += [(name, case, seed, time_box) for name in options.opponents]
    with ThreadPoolExecutor(options.at_once) as pool:
        for done in [pool.submit(finish, *task) for task in waiting]:
            done.result()
    result = report(rows, options)
    print(json.dumps(result, indent=1))
    return 0 if all(result["held"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
