"""Refinement of particles as a microscope gives them, with and without refined optics. Prints JSON.

    python benchmarks/microscope.py FOLDER
    python benchmarks/microscope.py FOLDER --sets 5a1a.cif.gz,D2,128,1.5,20000 \
        apoferritin_ca_model.pdb,O,256,1.06,30000 --snr-db=-12 --junk 0.2

A set is SOURCE,SYMMETRY,BOX,APIX,N. Its images have shifts, an envelope, ice that scales the
contrast, defocus of each particle, beam tilt and junk. It is refined from the truth, of which
nothing finer than --start-resolution is used, or found by `auto` (--by auto): once as the table
has the optics, once with aberrations, the defocus of particles and the contrast of micrographs
refined. Beside them stands the map of the true poses and optics, without junk. Resolutions are
those of the FSC of 0.5 with the truth within the molecule's own soft mask, the ratio is that over
the resolution by the true poses. Seconds are wall time of the whole command, CPU seconds those of
all its processes.

Fails (exit 1) where a map with refined optics is more than 5 % coarser than that of the true poses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from _against_truth import against_truth, read_map
from _circumstances import where_and_when
from _processes import measured, simulate_once, vitreous
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star

LIMIT = 1.05
SETS = ["phantom:1,D2,64,1.5,1000", "phantom:2,C3,64,1.5,1000"]
WAYS = {
    "as the table has it": (),
    "optics refined": ("--refine-aberrations", "--refine-defocus", "particle", "--scale",
                       "micrograph"),
}  # fmt: skip


def simulate(one: list[str], folder: Path, options: argparse.Namespace) -> None:
    source, symmetry, box, apix, count = one
    source = str(Path(source).resolve()) if Path(source).exists() else source
    simulate_once(
        *(folder / "data", folder / "simulate.log"),
        *(source, "--sym", symmetry, "--box", box, "--apix", apix, "--n", count),
        *(f"--snr-db={options.snr_db}", "--shift", "gaussian:3", "--seed", str(options.seed)),
        *("--b-factor", str(options.b_factor), "--defocus-spread", str(options.defocus_spread)),
        *("--ice-micrographs", "0.2", "--ice-particles", "0.1", "--junk", str(options.junk)),
        *("--beam-tilt", options.beam_tilt, "--n-micrographs", str(max(1, int(count) // 100))),
        threads=options.threads,
    )


def without_junk(table: Path) -> Path:
    """Write the rows of the true table that show a particle, beside it."""
    document = read_star(table)
    rows = dict(document.blocks["particles"].columns)
    kept = [i for i, kind in enumerate(rows.get("vitreousJunk", ())) if kind == "0"]
    if "vitreousJunk" in rows:
        rows = {name: [values[i] for i in kept] for name, values in rows.items()}
    path = table.with_name("particles_alone.star")
    write_star(path, StarDocument({**document.blocks, "particles": StarBlock(rows)}))
    return path


def run(one: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    folder: Path = options.folder / "_".join(one).replace("/", "-").replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    simulate(one, folder, options)
    _, symmetry, _, apix, count = one
    common = ("--sym", symmetry, "--threads", str(options.threads), "--quiet", "--overwrite")
    alone = without_junk(folder / "data" / "truth.star")
    commands: dict[str, tuple[str, ...]] = {}
    commands["true poses and optics"] = ("reconstruct", str(alone))
    start = ("--map", "data/truth.mrc", "--start-resolution", str(options.start_resolution))
    rounds = ("--rounds", str(options.rounds), "--seed", str(options.seed))
    for way in options.ways:
        more = WAYS[way]
        begin = start if options.by == "refine" else ()
        commands[way] = (options.by, "data/particles.star", *begin, *rounds, *more)
    truth = read_map(folder / "data" / "truth.mrc")
    rows: list[dict[str, Any]] = []
    for way, command in commands.items():
        out = folder / way.replace(" ", "_")
        shutil.rmtree(out, ignore_errors=True)
        call = vitreous(*command, *common, "-o", str(out))
        took = measured(call, folder, out.with_suffix(".log"), threads=options.threads)
        found = against_truth(read_map(out / "map.mrc"), truth, float(apix))["molecule"]
        history = out / "history.jsonl"
        steps = len(history.read_text().splitlines()) if way in WAYS else 1
        row = {
            "set": ",".join(one),
            "way": way,
            "resolution_angstrom": found["fsc_0.5_angstrom"],
            "rounds": steps,
            "seconds": round(took.seconds, 1),
            "cpu_seconds": round(took.cpu_seconds, 1),
            "cpu_ms_per_particle_and_round": round(1e3 * took.cpu_seconds / int(count) / steps, 2),
            "peak_memory_gb": round(took.largest_process_mb / 1024, 2),
        }
        row["ratio"] = round(
            row["resolution_angstrom"] / (rows or [row])[0]["resolution_angstrom"], 3
        )
        if way == "optics refined":
            block = read_star(out / "particles.star").blocks["optics"].columns
            row["beam_tilt_mrad"] = [float(block[f"rlnBeamTilt{axis}"][0]) for axis in "XY"]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path("bench-results/microscope")
    parser.add_argument("folder", type=Path, nargs="?", default=folder)
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="SOURCE,SYM,BOX,APIX,N")
    parser.add_argument("--by", choices=("refine", "auto"), default="refine")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=8, help="most; it ends when settled")
    parser.add_argument("--start-resolution", type=float, default=12.0, help="Å, of refine")
    parser.add_argument("--snr-db", type=float, default=-3.0)
    parser.add_argument("--b-factor", type=float, default=80.0, help="Å²")
    parser.add_argument("--defocus-spread", type=float, default=300.0, help="Å")
    parser.add_argument("--beam-tilt", default="0.3:-0.2", help="mrad")
    parser.add_argument("--junk", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    return options


def main() -> int:
    options = parse()
    rows = [row for text in options.sets for row in run(text.split(","), options)]
    refined = [row["ratio"] for row in rows if row["way"] == "optics refined"]
    result = {
        "benchmark": "microscope",
        **where_and_when(),
        **{name: str(value) for name, value in vars(options).items()},
        "limit": LIMIT,
        "results": rows,
        "pass": max(refined) <= LIMIT,
    }
    print(json.dumps(result, indent=1))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
