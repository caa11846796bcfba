"""Class images against clean projections: with turns and shifts and without, and RELION's.

    python benchmarks/class_images.py FOLDER --data DATA --ways align as-they-lie relion

Particles are those of `mixed_particles.py`. Ways: `align` is `vitreous classify2d` as it comes,
`as-they-lie` the same without turning or shifting particles; `gan` and `gan-plain` are the
VAE-GAN (`--no-align`), networks invariant and not, whose classes are then averaged by alignment;
`relion` is 2D classification by RELION with the options that its job window sets, 25 iterations.
All get the same cores and number of classes, one after the other. RELION is stopped when
--time-box is over, and its last iteration counts.

For --sample particles the class image of each is compared with the particle's own clean projection
(no noise, CTF or shift), both Fourier-cropped to --compare-at pixels: over 72 turns and all shifts,
grey values fitted by least squares, PSNR in dB by the projection's range. Beside it stands what
the mean of all class images gets in the same way: an image that tells nothing of the particle.
Prints JSON.

Fails (exit 1) unless the class images of `align` are better than those of `as-they-lie`, than their
mean, and no more than 0.1 dB below RELION's; of those that were run.
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
from _mixtures import EDGE, column
from _processes import Measured, measured, vitreous
from mixed_particles import particles
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.core.resample import rotate_images
from vitreous.core.rotation import euler_to_matrix
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.physics.projector import project

TURNS = 72
WORST_DB = 0.1  # by which RELION's may be better


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
    turned = rotate_images(image.expand(TURNS, n, n), turns, band)
    turned = turned - turned.mean((1, 2), keepdim=True)
    target = clean - clean.mean()
    spectra = torch.fft.rfft2(turned).conj() * torch.fft.rfft2(target)
    match = torch.fft.irfft2(spectra, s=(n, n)).flatten(1)
    power = turned.square().sum((1, 2))
    explained = (match.clamp_min(0).square() / power[:, None].clamp_min(1e-12)).max()
    error = (target.square().sum() - explained).clamp_min(1e-12) / n**2
    extent = clean.max() - clean.min()
    return float(10 * torch.log10(extent**2 / error))


WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "align": ((), {}),
    "as-they-lie": ((), {"as_they_lie": True}),
    "gan": (("--no-align",), {"invariant": True}),
    "gan-plain": (("--no-align",), {"invariant": False}),
}


def run_vitreous(way: str, source: Path, folder: Path, options: argparse.Namespace) -> Measured:
    """`vitreous classify2d`, to FOLDER/out."""
    arguments, settings = WAYS[way]
    config = folder / "settings.toml"
    config.write_text(tomli_w.dumps({**settings, **options.settings}))
    command = vitreous(
        *("classify2d", str(source / "particles.star"), *arguments, "--config", str(config)),
        *("--classes", str(options.classes), "--effort", str(options.effort)),
        *("--shift-range", repr(reach(options)), "--seed", str(options.seed)),
        *("--threads", str(options.threads), "--quiet", "-o", str(folder / "out")),
    )
    return measured(command, folder, folder / "run.log", threads=options.threads)


def reach(options: argparse.Namespace) -> float:
    """How far particles are looked for, Å: somewhat farther than they are off centre."""
    return (options.shift_percent + 3) / 100 * EDGE


def run_relion(source: Path, folder: Path, options: argparse.Namespace) -> Measured:
    """RELION's 2D classification of the same particles, its files brought to our names."""
    pixel = EDGE / options.box
    images, _ = read_mrc(source / "particles.mrcs")
    outside = soft_mask(options.box, 2, options.box / 2 - 1, 0.0).numpy() == 0
    background = images[:, outside]
    images = (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]
    write_mrc(folder / "particles.mrcs", images, pixel, is_stack=True)
    shutil.copyfile(source / "particles.star", folder / "particles.star")
    command = [
        *("relion_refine", "--i", "particles.star", "--o", "./run", "--ctf", "--pad", "2"),
        *("--dont_combine_weights_via_disc", "--pool", "3", "--iter", "25", "--tau2_fudge", "2"),
        *("--particle_diameter", str(0.95 * EDGE), "--K", str(options.classes)),
        *("--flatten_solvent", "--zero_mask", "--oversampling", "1", "--psi_step", "12"),
        *("--offset_range", str(math.ceil(reach(options) / pixel)), "--offset_step", "2"),
        *("--norm", "--scale", "--random_seed", str(options.seed), "--j", str(options.threads)),
    ]
    took = measured(
        command,
        folder,
        folder / "run.log",
        threads=options.threads,
        time_box=60 * options.time_box,
    )
    out = folder / "out"
    out.mkdir()
    last = max(folder.glob("run_it*_data.star"))  # the last file of an iteration
    shutil.copyfile(last, out / "particles.star")
    classes = last.with_name(last.name.replace("_data.star", "_classes.mrcs"))
    shutil.copyfile(classes, out / "classes.mrcs")
    return took


def run(way: str, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One way, and how good its class images are."""
    folder = options.folder / f"{source.name}-2d-{way}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if way == "relion":
        took = run_relion(source, folder, options)
    else:
        took = run_vitreous(way, source, folder, options)
    images = torch.from_numpy(read_mrc(folder / "out" / "classes.mrcs")[0].astype(np.float32))
    label = torch.from_numpy(column(folder / "out" / "particles.star", "rlnClassNumber")).long()
    rows = torch.linspace(0, len(label) - 1, options.sample).round().long()
    clean = clean_projections(source, rows)
    n = options.compare_at or options.box
    images, clean = (fourier_resize(x, n, 2) for x in (images, clean))
    own = [best_psnr(images[label[i] - 1], x) for i, x in zip(rows, clean, strict=True)]
    same = [best_psnr(images.mean(0), x) for x in clean]
    return {
        "way": way,
        "classes": len(images),
        "psnr_db": round(float(np.mean(own)), 3),
        "psnr_of_mean_image_db": round(float(np.mean(same)), 3),
        "seconds": round(took.seconds, 1),
        "cpu_seconds": round(took.cpu_seconds, 1),
        "peak_memory_mb": took.peak_memory_mb,
        "time_was_up": took.returncode is None,
    }


def held(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """The limits, as far as they were run."""
    by = {row["way"]: row for row in rows}
    if "align" not in by:
        return {}
    ours = by["align"]["psnr_db"]
    result = {"better than the mean": ours > by["align"]["psnr_of_mean_image_db"]}
    if "as-they-lie" in by:
        result["invariant above variant"] = ours > by["as-they-lie"]["psnr_db"]
    if "relion" in by:
        result["as good as relion"] = ours > by["relion"]["psnr_db"] - WORST_DB
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/mixed"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument(
        "--ways", nargs="+", choices=[*WAYS, "relion"], default=["align", "as-they-lie"]
    )
    parser.add_argument("--molecule", default="ribosome", help="ribosome or phantom:SEED")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--particles", type=int, default=3000, help="of each structure")
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--box", type=int, default=32)
    parser.add_argument("--compare-at", type=int, metavar="PX", help="box; that of the particles")
    parser.add_argument("--snr-db", type=float, default=0.0)
    parser.add_argument("--shift-percent", type=float, default=5.0)
    parser.add_argument("--time-box", type=float, default=30.0, metavar="MINUTES", help="RELION's")
    parser.add_argument("--settings", type=tomllib.loads, default={}, help="TOML, for trials")
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    if "relion" in options.ways and shutil.which("relion_refine") is None:
        print("relion: relion_refine not found: Debian's package relion", file=sys.stderr)
        return 2
    source = particles(options, options.seed)
    rows = []
    for way in options.ways:
        rows.append(run(way, source, options))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    limits = held(rows)
    result = {"benchmark": "class_images", **where_and_when(), "runs": rows, "held": limits}
    told = ("molecule", "seed", "particles", "snr_db", "shift_percent", "effort", "sample")
    result |= {name: getattr(options, name) for name in told}
    print(json.dumps(result, indent=1))
    return 0 if all(limits.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
