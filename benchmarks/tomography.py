"""Tomography at low dose: random pixels against few tilts, one step against two.

Figures 3.6 and 3.7 of L. Donati's thesis (EPFL, 2020), on cells that the package makes. Strengths
are chosen on one cell by the best PSNR against its truth, for every method alike (the thesis:
"by visual assessment"), and used on another cell, whose numbers are reported. Simulated with the
window (2, 10.83, 2), reconstructed with (2, 19, 4); PSNR as it is, without fitting grey levels.
Prints JSON; writes PNG and CSV to a folder.

    python benchmarks/tomography.py FOLDER                    # 256 x 256 x 128 at 10 %
    python benchmarks/tomography.py FOLDER --dose 0.5 0.2 0.03
    python benchmarks/tomography.py FOLDER --large            # 512 x 512 x 256, time and memory
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _circumstances import where_and_when
from vitreous.data.cells import cell_phantom
from vitreous.data.tilts import linear_tilts, random_downsampling, tilt_downsampling
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.tomography.back_projection import Sirt, weighted_back_projection
from vitreous.methods.tomography.inpainting import inpaint
from vitreous.methods.tomography.total_variation import (
    SIMULATION_WINDOW,
    WINDOW,
    Scan,
    total_variation_solver,
)
from vitreous.metrics.image import psnr
from vitreous.optim.loop import run
from vitreous.physics.tomography.projector import TiltProjector, expand_slices

TUNED, REPORTED = 1, 2  # seeds of the cells
STRENGTHS = [1.2, 1.7, 2.4, 3.4, 4.8]
AFTER_INPAINTING = [0.3, 0.6, 1.2, 2.4]
INPAINTING = [0.1, 0.3]
FEW_TILTS = 3  # times more iterations for T-DS, of which each costs a tenth
LIMITS = {"seconds": 600.0, "gib": 8.0, "large_gib": 24.0}


@dataclass
class Case:
    """A simulated acquisition of one cell."""

    clean: Tensor
    truth: Tensor
    tilts: Tensor
    sigma: float
    seed: int

    def scan(self, dose: float, kind: str) -> Scan:
        draw = torch.Generator().manual_seed(1000 + self.seed)
        noise = torch.randn(self.clean.shape, generator=draw).mul_(self.sigma)
        images = noise.add_(self.clean)
        if kind == "T-DS":
            kept = tilt_downsampling(len(self.tilts), dose)
            images = images[kept]
            return Scan(images, self.tilts[kept], torch.ones(images.shape, dtype=torch.bool))
        tilts, rows, columns = images.shape
        scanned = random_downsampling((tilts, rows, columns), dose, draw)
        return Scan(images.mul_(scanned), self.tilts, scanned)


def case(shape: tuple[int, int, int], snr: float, seed: int, slices: int | None = None) -> Case:
    """A cell, or its middle ``slices``; the noise is that of the whole cell in either case."""
    cell = cell_phantom(shape, 10240.0 / shape[1], seed=seed)
    tilts = linear_tilts(-69.5, 69.5, 1.0)
    projector = TiltProjector(tilts, shape, SIMULATION_WINDOW)
    clean = projector(cell)
    sigma = float((clean.var() / snr).sqrt())
    truth = expand_slices(cell, SIMULATION_WINDOW)
    if slices is not None:
        middle = slice((shape[1] - slices) // 2, (shape[1] + slices) // 2)
        clean, truth = clean[:, middle].contiguous(), truth[:, middle].contiguous()
    return Case(clean, truth, tilts, sigma, seed)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def best(scores: dict[Any, float]) -> Any:
    return max(scores, key=lambda key: scores[key])


def solve(scan: Scan, depth: int, strength: float, iterations: int, what: str) -> Tensor:
    def tell(step: int, stats: dict[str, float]) -> None:
        if step % 10 == 9:
            say(f"{what}: iteration {step + 1}, objective {stats['objective']:.6g}")

    solver = total_variation_solver(scan, depth, strength, iterations=iterations, tolerance=0.0)
    result = run(solver, [tell])
    return expand_slices(result.volume, WINDOW)


def tune(
    shape: tuple[int, int, int], snr: float, dose: float, slices: int, iterations: int
) -> dict[str, Any]:
    """Strengths with the best PSNR on the middle slices of the cell for tuning."""
    chosen: dict[str, Any] = {}
    sample = case(shape, snr, TUNED, slices)

    def score(scan: Scan, strength: float, times: int = 1) -> float:
        volume = solve(scan, shape[0], strength, times * iterations, f"tuning {strength:g}")
        return float(psnr(volume, sample.truth, 3))

    random = sample.scan(dose, "I-DS")
    for name, scan in (("I-DS", random), ("T-DS", sample.scan(dose, "T-DS"))):
        times = FEW_TILTS if name == "T-DS" else 1
        scores = {strength: score(scan, strength, times) for strength in STRENGTHS}
        chosen[name] = {"strength": best(scores), "psnr": scores}
        say(name, chosen[name])
    pairs = {}
    for mu in INPAINTING:
        restored = inpaint(random, mu)
        for strength in AFTER_INPAINTING:
            pairs[mu, strength] = score(restored, strength)
    mu, strength = best(pairs)
    chosen["two-step"] = {
        "inpainting": mu,
        "strength": strength,
        "psnr": {f"{a:g}, {b:g}": value for (a, b), value in pairs.items()},
    }
    say("two-step", chosen["two-step"])
    return chosen


def measures(volume: Tensor, truth: Tensor) -> tuple[dict[str, float], Tensor]:
    curve = fsc(volume, truth)
    n = max(truth.shape)
    return {
        "psnr_db": float(psnr(volume, truth, 3)),
        "mean_fsc": float(curve[1:].mean()),
        "resolution_05_px": fsc_resolution(curve, 0.5, n, 1.0),
    }, curve


def gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(
    shape: tuple[int, int, int], snr: float, dose: float, chosen: dict[str, Any], options: Any
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """All methods on the cell for reporting: numbers, volumes, FSC curves."""
    depth, iterations = shape[0], options.iterations
    sample = case(shape, snr, REPORTED)
    random = sample.scan(dose, "I-DS")
    two = chosen["two-step"]
    works: dict[str, Callable[[], Tensor]] = {
        "I-DS": lambda: solve(random, depth, chosen["I-DS"]["strength"], iterations, "I-DS"),
        "T-DS": lambda: solve(
            sample.scan(dose, "T-DS"),
            depth,
            chosen["T-DS"]["strength"],
            FEW_TILTS * iterations,
            "T-DS",
        ),
        "two-step": lambda: solve(
            inpaint(random, two["inpainting"]), depth, two["strength"], iterations, "two-step"
        ),
        "WBP of I-DS": lambda: weighted_back_projection(random, depth),
        "SIRT of I-DS": lambda: expand_slices(run(Sirt(random, depth, iterations=30)), WINDOW),
    }
    rows, volumes, curves = {}, {"truth": sample.truth}, {}
    for name, work in works.items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        volumes[name] = work()
        seconds = time.perf_counter() - start
        rows[name], curves[name] = measures(volumes[name], sample.truth)
        rows[name] |= {"seconds": seconds, "peak_gib_so_far": gib()}
        say(name, rows[name])
    return rows, volumes, curves


def draw(folder: Path, dose: float, volumes: dict[str, Tensor], curves: dict[str, Tensor]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stem = f"tomography-{100 * dose:g}"
    z, y, x = (edge // 2 for edge in volumes["truth"].shape)
    shown = ["truth", "I-DS", "T-DS", "two-step"]
    figure = Figure(figsize=(13, 12.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(5, 3, height_ratios=[1, 1, 1, 1, 0.9])
    top = float(volumes["truth"].max())
    for row, name in zip(grid[:4], shown, strict=True):
        volume = volumes[name]
        for axis, plane in zip(row, (volume[z], volume[:, y], volume[:, :, x]), strict=True):
            axis.imshow(plane, cmap="gray", vmin=0, vmax=0.8 * top)
            axis.set_axis_off()
        row[0].axhline(y, color="gold", linewidth=0.7)
        row[0].set_title(f"{name}, xy", fontsize=9)
        row[1].set_title("xz", fontsize=9)
        row[2].set_title("yz", fontsize=9)
    profiles = {name: volumes[name][z, y].tolist() for name in shown}
    for name, profile in profiles.items():
        grid[4][0].plot(profile, label=name, linewidth=1)
    grid[4][0].set_title(f"profile, {100 * dose:g} % dose", fontsize=9)
    for name, curve in curves.items():
        n = max(volumes["truth"].shape)
        grid[4][1].plot(torch.arange(len(curve)) / n, curve, label=name, linewidth=1)
    grid[4][1].axhline(0.5, color="grey", linewidth=0.5)
    grid[4][1].set_title("FSC against the truth, cycles per pixel", fontsize=9)
    for axis in grid[4][:2]:
        axis.legend(fontsize=7)
    grid[4][2].set_axis_off()
    figure.savefig(folder / f"{stem}.png", dpi=110, metadata={"Software": None})
    _table(folder / f"{stem}-fsc.csv", {name: curve.tolist() for name, curve in curves.items()})
    _table(folder / f"{stem}-profile.csv", profiles)


def _table(path: Path, columns: dict[str, list[float]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", *columns])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([i, *(f"{value:.6g}" for value in row)])


def large(options: Any) -> dict[str, Any]:
    """512 x 512 x 256 at the first dose: seconds and memory of the reconstruction alone."""
    shape = (256, 512, 512)
    sample = case(shape, options.snr, REPORTED)
    scan = sample.scan(options.dose[0], "I-DS")
    start = time.perf_counter()
    # half the pixel: the strength goes with the noise of the images, twice as large in pixels
    volume = solve(scan, shape[0], options.large_strength, options.iterations, "large")
    seconds = time.perf_counter() - start
    row, _ = measures(volume, sample.truth)
    return row | {
        "shape_xyz": [512, 512, 256],
        "dose": options.dose[0],
        "strength": options.large_strength,
        "seconds": seconds,
        "peak_gib": gib(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results"))
    parser.add_argument("--dose", type=float, nargs="+", default=[0.1])
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 256, 256], help="z y x")
    parser.add_argument("--snr", type=float, default=100.0)
    parser.add_argument("--slices", type=int, default=16, help="of the cell for tuning")
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--tuning-iterations", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tuned", type=Path, help="an earlier run's JSON, for its strengths")
    parser.add_argument("--only", nargs="+", help="these methods alone; draws and judges nothing")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--large-strength", type=float, default=4.8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    shape = (options.shape[0], options.shape[1], options.shape[2])
    result: dict[str, Any] = {
        "benchmark": "tomography",
        **where_and_when(),
        "snr": options.snr,
        "iterations": options.iterations,
        "psnr": "straight, no grey-level fit",
        "limits": LIMITS,
    }
    held: dict[str, bool] = {}
    if options.large:
        result["large"] = large(options)
        held["large fits"] = result["large"]["peak_gib"] < LIMITS["large_gib"]
    else:
        result["shape_zyx"] = shape
        for dose in options.dose:
            if options.tuned is None:
                chosen = tune(shape, options.snr, dose, options.slices, options.tuning_iterations)
            else:
                chosen = json.loads(options.tuned.read_text())[f"{100 * dose:g} %"]["tuned"]
            rows, volumes, curves = compare(shape, options.snr, dose, chosen, options)
            result[f"{100 * dose:g} %"] = {"tuned": chosen, "reported": rows}
            if options.only:
                continue
            draw(options.folder, dose, volumes, curves)
            if dose == 0.1:
                ours = rows["I-DS"]
                for other in ("T-DS", "two-step"):
                    for number in ("psnr_db", "mean_fsc"):
                        held[f"{number} above {other}"] = ours[number] > rows[other][number]
                held["seconds"] = ours["seconds"] < LIMITS["seconds"]
                held["gib"] = ours["peak_gib_so_far"] < LIMITS["gib"]
    result["held"] = held
    print(json.dumps(result, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
