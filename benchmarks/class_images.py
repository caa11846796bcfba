"""Class images against clean projections, with an invariant encoder and critic and without.

    python benchmarks/class_images.py FOLDER --data DATA

Particles are those of `mixed_particles.py`. `vitreous classify2d` runs twice, as it comes and with
`invariant = false`. For --sample particles the class image of each is compared with the particle's
own clean projection (no noise, CTF or shift; at the class images' box): over 72 turns and all
shifts, grey values fitted by least squares, PSNR in dB by the projection's range. Beside it stands
what the mean of all class images gets in the same way: an image that tells nothing of the particle.
Prints JSON.

Fails (exit 1) unless the invariant networks' images are better than the plain ones' and the mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

from _against_truth import read_map
from _circumstances import where_and_when
from _mixtures import column
from _processes import measured, vitreous
from mixed_particles import particles
from vitreous.core.fourier import fourier_resize
from vitreous.core.resample import turn_images
from vitreous.core.rotation import euler_to_matrix
from vitreous.io.mrc import read_mrc
from vitreous.physics.projector import project

TURNS = 72


def clean_projections(source: Path, rows: Tensor) -> Tensor:
    """What the particles show, centred, ``(m, n, n)``."""
    table = source / "truth.star"
    angles = [torch.from_numpy(column(table, f"rlnAngle{n}")) for n in ("Rot", "Tilt", "Psi")]
    rotation = euler_to_matrix(torch.stack(angles, -1)).float()[rows]
    state = torch.from_numpy(column(table, "rlnClassNumber")).long()[rows]
    maps = {k: read_map(source / f"truth{k:02d}.mrc") for k in set(state.tolist())}
    parts = [project(maps[int(k)], r[None]) for k, r in zip(state, rotation, strict=True)]
    return torch.cat(parts)


def best_psnr(image: Tensor, clean: Tensor) -> float:
    """Of an image under the turn and shift that fit best, with the best gain and offset."""
    n = image.shape[-1]
    turns = torch.arange(TURNS) * (2 * math.pi / TURNS)
    band = torch.ones(n, n // 2 + 1)
    turned = turn_images(image.expand(TURNS, n, n), turns, band)
    turned = turned - turned.mean((1, 2), keepdim=True)
    target = clean - clean.mean()
    spectra = torch.fft.rfft2(turned).conj() * torch.fft.rfft2(target)
    match = torch.fft.irfft2(spectra, s=(n, n)).flatten(1)
    power = turned.square().sum((1, 2))
    explained = (match.clamp_min(0).square() / power[:, None].clamp_min(1e-12)).max()
    error = (target.square().sum() - explained).clamp_min(1e-12) / n**2
    extent = clean.max() - clean.min()
    return float(10 * torch.log10(extent**2 / error))


def run(invariant: bool, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One training, and how good its class images are."""
    folder = options.folder / f"{source.name}-{'invariant' if invariant else 'plain'}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "settings.toml"
    config.write_text(tomli_w.dumps(options.settings | {"invariant": invariant}))
    command = vitreous(
        *("classify2d", str(source / "particles.star"), "--config", str(config)),
        *("--effort", str(options.effort), "--seed", str(options.seed)),
        *("--threads", str(options.threads), "--quiet", "-o", str(folder / "out")),
    )
    took = measured(command, folder, folder / "run.log", threads=options.threads)
    images = torch.from_numpy(read_mrc(folder / "out" / "classes.mrcs")[0].astype(np.float32))
    label = torch.from_numpy(column(folder / "out" / "particles.star", "rlnClassNumber")).long()
    rows = torch.linspace(0, len(label) - 1, options.sample).round().long()
    clean = fourier_resize(clean_projections(source, rows), images.shape[-1], 2)
    own = [best_psnr(images[label[i] - 1], x) for i, x in zip(rows, clean, strict=True)]
    same = [best_psnr(images.mean(0), x) for x in clean]
    return {
        "invariant": invariant,
        "classes": len(images),
        "psnr_db": round(float(np.mean(own)), 3),
        "psnr_of_mean_image_db": round(float(np.mean(same)), 3),
        "seconds": round(took.seconds, 1),
        "cpu_seconds": round(took.cpu_seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/mixed"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--molecule", default="ribosome", help="ribosome or phantom:SEED")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--particles", type=int, default=3000, help="of each structure")
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--snr-db", type=float, default=0.0)
    parser.add_argument("--shift-percent", type=float, default=5.0)
    parser.add_argument("--settings", type=tomllib.loads, default={}, help="TOML, for trials")
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    source = particles(options, options.seed)
    rows = [run(invariant, source, options) for invariant in (True, False)]
    above = rows[0]["psnr_db"] > max(rows[1]["psnr_db"], rows[0]["psnr_of_mean_image_db"])
    result = {"benchmark": "class_images", **where_and_when(), "runs": rows, "held": above}
    result |= {"molecule": options.molecule, "effort": options.effort, "sample": options.sample}
    print(json.dumps(result, indent=1))
    return 0 if above else 1


if __name__ == "__main__":
    sys.exit(main())
