"""Preparing particles and cutting backgrounds, measured: prints JSON.

`prepare`: images per second from box 384 to 128 and the peak memory, on simulated noise; with
--sparse-gb also on a sparse stack of that size and box 1024, whose memory must stay below 1 GB.

`backgrounds`: power of the windows over that of the noise, shell by shell, averaged over simulated
micrographs with particles in known places; the largest deviation must stay below 5 %. Beside it the
same for windows of least variance, taken literally.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.core.params import Optics
from vitreous.data.backgrounds import Micrograph, choose_windows, free_corners, window_variance
from vitreous.data.tables import make_document
from vitreous.io.mrc import MrcStack, write_mrc
from vitreous.io.mrc_header import Statistics, header_bytes
from vitreous.io.star import write_star

RUN = """
import json, resource, sys, time
from vitreous.cli.main import run
start = time.monotonic()
try:
    run()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": time.monotonic() - start, "peak_mb": peak / 1024}))
"""
EDGE, SIZE, COUNT, MICROGRAPHS = 1024, 64, 40, 24


def write_stack(folder: Path, n: int, box: int, sparse: bool) -> Path:
    """A stack of noise, or of images with three pixels that are not 0, and its table."""
    statistics = Statistics()
    statistics.add(np.arange(2.0))
    rng = np.random.default_rng(0)
    with (folder / "p.mrcs").open("wb") as stream:
        stream.write(header_bytes((n, box, box), 2, 1.0, True, statistics))
        for i in range(n):
            stream.seek(1024 + 4 * i * box * box)
            values = np.arange(3) if sparse else 5 + rng.standard_normal(box * box)
            stream.write(values.astype("<f4").tobytes())
        stream.truncate(1024 + 4 * n * box * box)
    names = [f"{i + 1}@p.mrcs" for i in range(n)]
    table = make_document(names, Optics.uniform(n), pixel_size_angstrom=1.0, box_size=box)
    write_star(folder / "p.star", table)
    return folder / "p.star"


def prepare(n: int, box: int, to: int, sparse: bool) -> dict[str, Any]:
    """Run the command in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        star = write_stack(Path(name), n, box, sparse)
        size = (star.parent / "p.mrcs").stat().st_size
        call = [sys.executable, "-c", RUN, "prepare", str(star), "--box", str(to), "--quiet"]
        done = subprocess.run(
            [*call, "-o", str(star.parent / "OUT")], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout)
    rate = n / found["seconds"]
    return {"images": n, "box": box, "to": to, "gb": size / 1e9, "images_per_s": rate, **found}


def noise(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """White noise plus a part that rises towards low frequencies, unit variance."""
    frequency = np.hypot(np.fft.fftfreq(EDGE)[:, None], np.fft.rfftfreq(EDGE))
    amplitude = 1 + (exponent > 0) * (0.05 / np.maximum(frequency, 1 / 160)) ** exponent
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((EDGE, EDGE))) * amplitude)
    return image / image.std()


def radial_power(windows: np.ndarray) -> np.ndarray:
    """Mean power in each Fourier shell."""
    power = np.abs(np.fft.fft2(windows - windows.mean((1, 2), keepdims=True))) ** 2
    frequency = np.fft.fftfreq(SIZE, 1 / SIZE)
    shell = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    return np.bincount(shell, power.mean(0).ravel()) / np.bincount(shell)


def least(image: Micrograph, centres: np.ndarray, radius: float) -> np.ndarray:
    """Corners of the windows of least variance that do not overlap."""
    corners = free_corners(image.shape, SIZE, SIZE // 8, centres, radius)
    variance = window_variance(image.low_passed(2), corners // 2, SIZE // 2)
    chosen: list[np.ndarray] = []
    for corner in corners[np.argsort(variance)]:
        if all(np.abs(corner - other).max() >= SIZE for other in chosen):
            chosen.append(corner)
        if len(chosen) == COUNT:
            break
    return np.array(chosen)


def spectrum(exponent: float) -> dict[str, Any]:
    """Power of windows over that of the noise."""
    rng = np.random.default_rng(1)
    found, literal, true = [], [], []
    y, x = np.mgrid[:EDGE, :EDGE]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.mrc"
        for _ in range(MICROGRAPHS):
            clean = noise(rng, exponent)
            centres = rng.uniform(0, EDGE, (15, 2))
            signal = sum(
                np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 8.0**2)) for cx, cy in centres
            )
            write_mrc(path, (clean + 3 * signal).astype(np.float32), 1.0)
            image = Micrograph(MrcStack(path))
            windows = choose_windows(image, SIZE, COUNT, centres, 24.0, rng)
            found.append(radial_power(image.cut(windows.corners, SIZE)))
            literal.append(radial_power(image.cut(least(image, centres, 24.0), SIZE)))
            view = np.lib.stride_tricks.sliding_window_view(clean, (SIZE, SIZE))
            true.append(radial_power(view[::32, ::32].reshape(-1, SIZE, SIZE)))
    shells = slice(1, SIZE // 2 + 1)
    ratio, lowest = (np.mean(p, 0)[shells] / np.mean(true, 0)[shells] for p in (found, literal))
    return {
        "exponent": exponent,
        "largest_deviation": float(np.abs(ratio - 1).max()),
        "least_variance_largest_deviation": float(np.abs(lowest - 1).max()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--sparse-gb", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [prepare(options.images, 384, 128, sparse=False)]
    if options.sparse_gb:
        count = round(options.sparse_gb * 1e9 / (4 * 1024**2))
        runs.append(prepare(count, 1024, 64, sparse=True))
    spectra = [spectrum(exponent) for exponent in (0.0, 1.0)]
    print(json.dumps({"cores": os.cpu_count(), "prepare": runs, "backgrounds": spectra}, indent=1))
    if max(run["peak_mb"] for run in runs) > 1000:
        raise SystemExit("memory above 1 GB")
    if max(item["largest_deviation"] for item in spectra) > 0.05:
        raise SystemExit("spectrum of the backgrounds off by more than 5 %")


if __name__ == "__main__":
    main()
