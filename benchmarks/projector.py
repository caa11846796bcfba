"""The projector against torch-fourier-slice: speed, memory, accuracy. Prints JSON.

Forward plus backward to the volume, 32 images, the same volumes, orientations and number of
threads, the two programs taking turns; fails (exit 1) where ours is not at least 4 times faster.
Accuracy is that against analytic Gaussian blobs. Also tabulates what oversampling and number of
taps cost in aliasing, from the transforms of the interpolation kernels.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fourier_slice import project_3d_to_2d

from _circumstances import commit
from _processes import peak_kb
from vitreous.core.rotation import random_rotations
from vitreous.physics.projector import project

LEAST_RATIO = 4.0
IMAGES = 32


def theirs(volume: Tensor, rotations: Tensor) -> Tensor:
    """Their matrices turn the slice, ours the particle: the transpose."""
    return project_3d_to_2d(volume, rotations.mT)


PROGRAMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vitreous": project,
    "torch-fourier-slice": theirs,
}


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blobs within 0.35 box of the centre as volume, orientations, and the exact images."""
    g = torch.Generator().manual_seed(n)
    rotations = random_rotations(IMAGES, generator=g, dtype=torch.float64)
    sigma = 1.8
    centres = torch.randn(8, 3, generator=g, dtype=torch.float64)
    radii = 0.35 * n * torch.rand(8, 1, generator=g, dtype=torch.float64) ** (1 / 3)
    centres = centres / centres.norm(dim=1, keepdim=True) * radii
    axis = torch.arange(n, dtype=torch.float64) - n // 2

    def profile(position: Tensor) -> Tensor:
        return torch.exp(-((axis - position[..., None]) ** 2) / (2 * sigma**2))

    volume = torch.einsum("bz,by,bx->zyx", *(profile(centres[:, i]) for i in (2, 1, 0)))
    moved = torch.einsum("rij,bj->rbi", rotations, centres)
    exact = torch.einsum("rby,rbx->ryx", profile(moved[..., 1]), profile(moved[..., 0]))
    return volume.float(), rotations.float(), exact * sigma * math.sqrt(2 * math.pi)


def step(program: str, volume: Tensor, rotations: Tensor, upstream: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    leaf = volume.clone().requires_grad_(True)
    start = time.perf_counter()
    torch.autograd.backward((PROGRAMS[program](leaf, rotations) * upstream).sum())
    return time.perf_counter() - start


def peak_mib(program: str, n: int, threads: int) -> float:
    """Peak resident memory of a fresh process that makes one step, less that of one at 16^3."""
    peaks = []
    for size in (16, n):
        command = [sys.executable, __file__, "--child", program, str(size), str(threads)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks.append(float(out))
    return round(peaks[1] - peaks[0], 1)


def child(program: str, n: int, threads: int) -> None:
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    rotations = random_rotations(IMAGES, generator=g)
    step(program, torch.ones(n, n, n), rotations, torch.ones(IMAGES, n, n))
    own = peak_kb(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(own / 1024)


def compare(n: int, repeats: int, threads: int, *, memory: bool) -> dict[str, Any]:
    volume, rotations, exact = inputs(n)
    upstream = torch.randn(IMAGES, n, n, generator=torch.Generator().manual_seed(1))
    images = {name: run(volume, rotations).double() for name, run in PROGRAMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repeat in range(repeats + 1):
        for name in PROGRAMS:
            taken = step(name, volume, rotations, upstream)
            if repeat > 0:  # the first round warms up
                seconds[name].append(taken)
    ours, reference = (np.array(seconds[name]) for name in PROGRAMS)
    correlation = np.corrcoef([image.flatten().numpy() for image in images.values()])[0, 1]
    errors = {k: ((v - exact).norm() / exact.norm()).item() for k, v in images.items()}
    row: dict[str, Any] = {
        "box": n,
        "seconds": {name: float(np.median(s)) for name, s in seconds.items()},
        "ratio": float(np.median(reference / ours)),
        "lowest_ratio": float((reference / ours).min()),
        "error_against_blobs": errors,
        "correlation_of_both": float(correlation),
    }
    if memory:
        row["peak_mib"] = {name: peak_mib(name, n, threads) for name in PROGRAMS}
    return row


def _kaiser_bessel_transform(frequency: np.ndarray, taps: int, beta: float) -> np.ndarray:
    root = np.sqrt((beta**2 - (np.pi * taps * frequency) ** 2).astype(complex))
    return np.sinc(root / (1j * np.pi)).real


def _aliasing(transform: Callable[[np.ndarray], np.ndarray], oversampling: float) -> float:
    """RMS over the inner 70 % of the box of the aliases' amplitude, one axis."""
    x = np.linspace(-0.35, 0.35, 201) / oversampling
    aliases = sum(transform(x + m) ** 2 for m in range(-40, 41) if m != 0)
    return float(np.sqrt(np.mean(aliases / transform(x) ** 2)))


def aliasing_table() -> list[dict[str, float | int | str]]:
    """Kaiser-Bessel kernels with the best shape parameter, and linear interpolation."""
    rows: list[dict[str, float | int | str]] = []
    for oversampling in (1.0, 1.25, 1.5, 2.0):
        linear = _aliasing(lambda x: np.sinc(x) ** 2, oversampling)
        rows.append({"kernel": "linear", "oversampling": oversampling, "taps": 2, "error": linear})
        for taps in (2, 4, 6):
            errors = [
                _aliasing(partial(_kaiser_bessel_transform, taps=taps, beta=beta), oversampling)
                for beta in np.linspace(0.5, 16.0, 156)
            ]
            rows.append(
                {
                    "kernel": "Kaiser-Bessel",
                    "oversampling": oversampling,
                    "taps": taps,
                    "error": min(errors),
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="skip the memory of each program")
    parser.add_argument("--child", nargs=3, metavar=("PROGRAM", "BOX", "THREADS"))
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), int(options.child[2]))
        return 0
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.boxes:
        row = compare(n, options.repeats, options.threads, memory=not options.no_memory)
        rows.append(row)
        print(f"box {n}: {row['ratio']:.1f} times faster", file=sys.stderr)
    result = {
        "benchmark": "projector",
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "threads": options.threads,
        "torch": torch.__version__,
        "images": IMAGES,
        "rows": rows,
        "aliasing": aliasing_table(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result, indent=1))
    return 0 if all(row["ratio"] >= LEAST_RATIO for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
