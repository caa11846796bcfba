"""What each choice of the ab initio solver earns: quality against seconds on phantoms. Prints JSON.

One half set of 5,000 particles of a built-in phantom, box 32, 7.2 Å/px, one thread, so the order of
the rows and not the seconds carries to other machines. Settings of the solver are chosen here, on
phantoms; the claims of ``abinitio.py`` are made on other molecules.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage
from vitreous.methods.cryogan.solver import STREAMS, CryoGan
from vitreous.physics.noise import noise_sigma
from vitreous.physics.simulator import Simulator, simulate

BOX, PIXEL, PARTICLES = 32, 7.2, 5000
STAGES = ((16, 2000), (32, 3000))
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "default, another seed": {"seed": 1},
    "images not filtered": {"weighting": "none"},
    "no coarse stage": {"stages": ((32, 4000),)},
    "strided critic": {"critic": "strided", "width": 24, "stages": ((16, 500), (32, 600))},
    "paper's critic": {"critic": "paper", "width": 24, "stages": ((16, 250), (32, 300))},
    "critic's step 3e-3": {"learning_rate_critic": 3e-3},
    "paper's volume step, 1e-3": {"learning_rate_volume": 1e-3},
    "four critic updates": {"n_critic": 4, "stages": ((16, 900), (32, 1350))},
    "penalty at every update": {"penalty_every": 1, "stages": ((16, 1600), (32, 2400))},
    "batch 128": {"batch_size": 128, "stages": ((16, 900), (32, 1250))},
    "noise not started": {"noise_start": "one"},
    "no mirrors": {"mirror": False},
    "rotated": {"rotate": True},
    "not rotated": {"rotate": False},
    "short average": {"averaging": 0.9},
    "no clipping constraint": {"floor_centre": None},
}


class Stack:
    """Images in memory."""

    box_size = BOX

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images[indices]


def data(phantom: int, symmetry: str, snr_db: float) -> tuple[torch.Tensor, Stack, Simulator]:
    """Truth, particles and the conditions they were made under."""
    g = torch.Generator().manual_seed(phantom)
    truth = protein_phantom(BOX, PIXEL, seed=phantom, point_group=symmetry)
    defocus = 8000 + 14000 * torch.rand(PARTICLES, generator=g)
    optics = replace(
        Optics.uniform(PARTICLES), defocus_u_angstrom=defocus, defocus_v_angstrom=defocus
    )
    rotations = random_rotations(PARTICLES, generator=g)
    pieces = [
        simulate(truth, rotations[rows], torch.zeros(len(rows), 2), optics[rows], PIXEL)
        for rows in torch.split(torch.arange(PARTICLES), 500)
    ]
    clean = torch.cat(pieces)
    sigma = noise_sigma(float(clean.var(dim=(1, 2)).mean()), snr_db=snr_db)
    images = clean + sigma * torch.randn(clean.shape, generator=g)
    return truth, Stack(images), Simulator(BOX, PIXEL, optics, torch.arange(PARTICLES))


def measure(
    truth: torch.Tensor, images: Stack, simulator: Simulator, symmetry: str, row: dict[str, Any]
) -> dict[str, float]:
    """Run one row; quality against the truth and seconds."""
    settings = {"stages": STAGES, **row}
    stages = tuple(TrainingStage(*stage) for stage in settings.pop("stages"))
    seed = 100 * settings.pop("seed", 0)
    config = CryoGanConfig(stages=stages, symmetry=symmetry, **settings)
    generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(STREAMS)}
    start = time.perf_counter()
    solver = CryoGan(images, simulator, config, generators)
    while not solver.done:
        solver.step()
    seconds = time.perf_counter() - start
    aligned = align_maps(solver.result(), truth, pixel_size_angstrom=PIXEL).aligned
    curve = fsc(aligned, truth)
    return {
        "seconds": round(seconds, 1),
        "fsc_0.5_angstrom": round(fsc_resolution(curve, 0.5, BOX, PIXEL), 1),
        "fsc_0.143_angstrom": round(fsc_resolution(curve, 0.143, BOX, PIXEL), 1),
        "mean_fsc": round(float(curve[1:].mean()), 3),
    }


def main() -> int:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"of: {', '.join(ROWS)}; default all")
    parser.add_argument("--phantom", type=int, default=3)
    parser.add_argument("--symmetry", default="D2")
    parser.add_argument("--snr-db", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth, images, simulator = data(options.phantom, options.symmetry, options.snr_db)
    rows = {}
    for name in options.rows or ROWS:
        rows[name] = measure(truth, images, simulator, options.symmetry, ROWS[name])
        print(name, rows[name], file=sys.stderr, flush=True)
    print(json.dumps({**vars(options), "torch": torch.__version__, "rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
