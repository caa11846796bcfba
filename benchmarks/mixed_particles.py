"""Mixed particles sorted without being told how many kinds there are. Prints JSON.

    python benchmarks/mixed_particles.py FOLDER --data DATA
    python benchmarks/mixed_particles.py FOLDER --data DATA --molecule phantom:5 --seeds 11

Three structures, --particles of each: the 70S ribosome, and the same without a connected piece of
about a quarter and of a third of its mass (`_mixtures.py`); box 32 at 10 Å/px, CTFs of real
micrographs, SNR 0 dB, shifts of up to --shift-percent of the box along each axis (triangular).
Every way of --ways runs as users run it, `vitreous hetero run`:

* align: poses of one structure for all (as `vitreous auto` finds them), a linear model and its
  clusters, poses sought again under their maps, a linear model with those, and so on in passes;
* align-once: one pass;
* gan: the VAE-GAN, without poses, as it comes;
* gan-full: with invariance to shifts, and gan-plain, gan-no-noise, gan-camera: that without
  invariance, without the noise that is learned, with learned poses: the ablations of the thesis;
* gan-full-untold, gan-plain-untold: the first two where simulated images are not shifted;
* gan-convolutional, gan-convolutional-plain: convolutional networks with and without invariance.

Mutual information (NMI) and adjusted Rand are those of the clusters found with the truth; particles
in no cluster count as a class of their own. `probe` is how often a linear classifier that is told
the truth reads the structure off the latents; chance is 0.33. Each map is aligned with the truth
that most of its particles show (rotation, shift, hand), FSC within the sphere of the box. Seconds
are those of the whole command. Where a VAE-GAN finds one cluster there is one map for all; so the
maps of its model at the mean latent of each truth's particles are compared too (`model_maps`), as
the thesis does there. While the methods were written other seeds than 1 to 3 of this
mixture were looked at (101), and phantoms (phantom:5, seed 11).

Fails (exit 1) unless the best way has NMI of 0.90 and three maps at 40 Å or finer (FSC 0.5).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from _circumstances import where_and_when
from _mixtures import (
    EDGE,
    PIECES,
    Array,
    column,
    map_against_truth,
    maps_against_truth,
    ribosomes,
    without_piece,
)
from _processes import measured, simulate_once, vitreous
from _public_data import CTF
from vitreous.data.phantoms import protein_phantom
from vitreous.io.mrc import write_mrc
from vitreous.io.star import read_star
from vitreous.jobs.hetero.run import load_trained
from vitreous.jobs.run.class_tables import LATENT
from vitreous.metrics.clustering import adjusted_rand, normalised_mutual_information

LEAST_NMI, COARSEST = 0.90, 40.0
UNTOLD = "-untold"
FULL: dict[str, Any] = {"invariant": True}
CONVOLUTIONAL: dict[str, Any] = FULL | {"critic": "convolutional", "encoder": "convolutional"}
CONVOLUTIONAL |= {"critic_width": 8, "encoder_width": 8}
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "align": ((), {}),
    "align-once": (("--passes", "1"), {}),
    "gan": (("--no-align",), {}),
    "gan-full": (("--no-align",), FULL),
    "gan-plain": (("--no-align",), FULL | {"invariant": False}),
    "gan-no-noise": (("--no-align",), FULL | {"noise": "none"}),
    "gan-camera": (("--no-align",), FULL | {"camera": "learned"}),
    "gan-full-untold": (("--no-align",), FULL),
    "gan-plain-untold": (("--no-align",), FULL | {"invariant": False}),
    "gan-convolutional": (("--no-align",), CONVOLUTIONAL),
    "gan-convolutional-plain": (("--no-align",), CONVOLUTIONAL | {"invariant": False}),
}


def phantoms(seed: int, folder: Path) -> list[Path]:
    """A phantom and two that lack a piece."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = protein_phantom(64, EDGE / 64, seed=seed).double().numpy()
    maps = [whole, *(without_piece(whole, *piece) for piece in PIECES.values())]
    paths = [folder / f"map{k}.mrc" for k in range(len(maps))]
    for path, one in zip(paths, maps, strict=True):
        write_mrc(path, one.astype(np.float32), EDGE / 64)
    return paths


def particles(options: argparse.Namespace, seed: int) -> Path:
    """The mixture of a seed, made once."""
    kind, _, number = options.molecule.partition(":")
    name = f"{options.molecule.replace(':', '')}-{options.particles}-{options.snr_db:g}dB"
    folder = options.folder / "data" / f"{name}-{options.shift_percent:g}pc-{seed}"
    made = options.folder / "data" / options.molecule.replace(":", "")
    paths = phantoms(int(number), made) if kind == "phantom" else ribosomes(options.data, made)
    first, *others = paths
    shift = 2 * options.shift_percent / 100 * EDGE
    simulate_once(
        folder,
        folder.with_suffix(".log"),
        *(str(first), *(part for path in others for part in ("--also", str(path)))),
        *("--box", str(options.box), "--apix", repr(EDGE / options.box)),
        *("--n", str(3 * options.particles), "--ctf", str(options.data / CTF)),
        *("--n-micrographs", "200", f"--snr-db={options.snr_db}"),
        *("--shift", f"triangular:{shift:g}", "--seed", str(seed)),
    )
    return folder


def sort(way: str, source: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the command, and what it found."""
    folder = options.folder / f"{source.name}-{way}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments, settings = WAYS[way]
    config = folder / "settings.toml"
    config.write_text(tomli_w.dumps(settings))
    shift = 2 * options.shift_percent / 100 * EDGE
    gan = "--no-align" in arguments
    told = ("--shift", f"triangular:{shift:g}") if gan and not way.endswith(UNTOLD) else ()
    command = vitreous(
        *("hetero", "run", str(source / "particles.star"), *arguments, *told),
        *("--config", str(config), "--effort", str(options.effort), "--seed", str(seed)),
        *("--threads", str(options.threads), "--device", options.device),
        *("--quiet", "-o", str(folder / "out")),
    )
    took = measured(command, folder, folder / "run.log", threads=options.threads)
    out = folder / "out"
    states = column(source / "truth.star", "rlnClassNumber")
    found = column(out / "particles.star", "rlnClassNumber")
    maps = sorted(path for path in out.glob("class??.mrc"))
    pair = torch.from_numpy(states).long(), torch.from_numpy(found).long()
    return {
        "way": way,
        "seed": seed,
        "clusters": int(found.max()),
        "in_no_cluster": float((found < 1).mean()),
        "nmi": round(normalised_mutual_information(*pair), 4),
        "adjusted_rand": round(adjusted_rand(*pair), 4),
        "probe": probe(out / "particles.star", states),
        "seconds": round(took.seconds, 1),
        "cpu_seconds": round(took.cpu_seconds, 1),
        "peak_memory_mb": took.peak_memory_mb,
        "maps": maps_against_truth(maps, found, states, source, EDGE),
        "model_maps": model_maps(out, states, source) if gan else [],
    }


def model_maps(out: Path, states: Array, source: Path) -> list[dict[str, Any]]:
    """The model's map at the mean latent of each truth's particles, against that truth."""
    model, places = load_trained(out, device="cpu").model, latents(out / "particles.star")
    rows = []
    for state in sorted({int(one) for one in states}):
        place = torch.from_numpy(places[states == state].mean(0)).float()
        told = map_against_truth(model.volume(place), source / f"truth{state:02d}.mrc", EDGE)
        rows.append({"truth": state, **told})
    return rows


def latents(table: Path) -> Array:
    """Latent vectors of all particles ``(n, d)``."""
    names = [n for n in read_star(table).blocks["particles"].columns if n.startswith(LATENT)]
    return np.stack([column(table, name) for name in names], -1)


def probe(table: Path, states: Array) -> float:
    """Share of particles whose structure a linear classifier reads off the latents (5 folds)."""
    places, shown = latents(table), states.astype(int)
    score = cross_val_score(LogisticRegression(max_iter=1000), places, shown, cv=5)
    return round(float(score.mean()), 3)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds, a line for each way."""
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        coarsest = [
            max((one["sphere"]["fsc_0.5_angstrom"] for one in row["maps"]), default=float("nan"))
            for row in mine
        ]
        line: dict[str, Any] = {"way": way, "seeds": len(mine)}
        line |= {"clusters": [row["clusters"] for row in mine]}
        for name in ("nmi", "adjusted_rand", "probe", "seconds", "cpu_seconds"):
            line[name] = round(statistics.mean(row[name] for row in mine), 3)
        line["coarsest_map_0.5_angstrom"] = round(max(coarsest), 1)
        if any(row["model_maps"] for row in mine):
            line["model_maps_0.5_angstrom"] = [
                [one["sphere"]["fsc_0.5_angstrom"] for one in row["model_maps"]] for row in mine
            ]
        right = all(row["clusters"] == 3 and row["nmi"] >= LEAST_NMI for row in mine)
        line["held"] = right and max(coarsest) <= COARSEST
        lines.append(line)
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/mixed"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--molecule", default="ribosome", help="ribosome or phantom:SEED")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["align", "gan"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--particles", type=int, default=3000, help="of each structure")
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--snr-db", type=float, default=0.0)
    parser.add_argument("--shift-percent", type=float, default=5.0)
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    return options


def main() -> int:
    options = parse()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        source = particles(options, seed)
        for way in options.ways:
            rows.append(sort(way, source, seed, options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            result = {
                "benchmark": "mixed_particles",
                **where_and_when(),
                "threads": options.threads,
                "load": round(os.getloadavg()[0], 2),
                "molecule": options.molecule,
                "particles": 3 * options.particles,
                "snr_db": options.snr_db,
                "shift_percent": options.shift_percent,
                "limits": {"nmi": LEAST_NMI, "coarsest_angstrom": COARSEST},
                "table": summary(rows),
                "runs": rows,
            }
            (options.folder / "mixed_particles.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0 if any(line["held"] for line in result["table"]) else 1


if __name__ == "__main__":
    sys.exit(main())
