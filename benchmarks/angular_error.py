"""Resolution against angular error at scales 1 to 4: figure 4.2a of L. Donati's thesis. JSON.

    python benchmarks/angular_error.py --output bench-results     # also angular_error.csv and .png
    python benchmarks/angular_error.py --box 48 --projections 2000 --seed 1

20,000 projections of beta-galactosidase (5A1A, 128^3 at 1.8 Å/px) at random orientations, made with
the window (2, 10.83, 2), SNR 1. Orientations are then misestimated: each component of the error's
rotation vector is uniform within a limit. Every image goes to the nearest of 80 equidistributed
viewing directions by its wrong orientation, is turned in its plane by the wrong angle between the
two (the thesis registers images; here nothing but the wrong orientation enters), and is averaged.
The 80 averages are reconstructed at s = 1 to 4 with the window (2, 19, 4) and total variation, no
CTF, by two solvers, each with 30 iterations of ADMM: the thesis', with 7 plain conjugate gradients
in each and rho ten times lambda (in units of the images' noise and of pixels; the factor is not
told in the thesis), and the package's, whose conjugate gradients are preconditioned (up to 7) and
whose rho adapts itself. lambda goes over powers of ten down until the map shares less with the
truth than a stronger one's.

"best" takes lambda by the FSC with the truth, as the thesis does; "kept" takes it so at the
smallest error only; "validated" (``--validate``, three times the work) takes, without the truth,
the lambda whose map of half the images fits averages of the other half best.

Fails (exit 1) where s = 1 is not the finest without error, or is still so at the largest.

With ``--cache FILE`` rows already there are not computed again, so that a run can be cut in pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _circumstances import where_and_when
from _model_based import (
    DATA,
    FIELD_ANGSTROM,
    IMAGED,
    PlainCg,
    expanded,
    misestimated,
    molecule,
    spread_directions,
    stream,
    write_csv,
)
from _public_data import BETAGAL
from vitreous.core.rotation import random_rotations
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.optim.admm import Admm, admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.priors import TotalVariation
from vitreous.physics.kaiser_bessel.normal_equations import NormalAccumulator
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel

RECONSTRUCTED = KaiserBessel(2, 19.0, 4.0)
TEMPLATES, BATCH = 80, 500
LEVELS = (0.0, 4.0, 8.0, 12.0, 16.0, 20.0)
SCALES = (1, 2, 3, 4)
SOLVERS = ("thesis", "package")
POWERS = (-2, -3, -4, -5, -6)  # of ten, times the strength that leaves nothing but the prior
ITERATIONS, CG_ITERATIONS, RHO_PER_LAMBDA = 30, 7, 10.0  # the last chosen on a phantom
WAYS = {
    "best": "λ by the truth",
    "kept": "λ as at the least error",
    "validated": "λ by validation",
}


def in_plane_rad(rotations: Tensor, templates: Tensor) -> Tensor:
    """Angle a for which Rz(a) times the template is nearest to the rotation."""
    m = rotations @ templates.mT
    return torch.atan2(m[..., 1, 0] - m[..., 0, 1], m[..., 0, 0] + m[..., 1, 1])


def turned(images: Tensor, angle_rad: Tensor) -> Tensor:
    """Images ``(b, n, n)`` with the in-plane turn a taken back, interpolated bicubically."""
    n = images.shape[-1]
    axis = torch.arange(n) - n // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    c, s = angle_rad.cos()[:, None, None], angle_rad.sin()[:, None, None]
    at = torch.stack([c * x - s * y, s * x + c * y], dim=-1).float()
    at = 2 * (at + n // 2) / (n - 1) - 1
    samples = torch.nn.functional.grid_sample(
        images[:, None], at, mode="bicubic", padding_mode="zeros", align_corners=True
    )
    return samples[:, 0]


class Averages:
    """Class averages of two half sets, grown batch by batch."""

    def __init__(self, templates: Tensor, n: int) -> None:
        self.templates = templates
        self.sums = torch.zeros(2, len(templates), n, n)
        self.counts = torch.zeros(2, len(templates))

    def add(self, images: Tensor, wrong: Tensor, half: Tensor) -> None:
        """Classify by viewing direction, turn, add."""
        member = (wrong[:, 2] @ self.templates[:, 2].mT).argmax(1)
        aligned = turned(images, in_plane_rad(wrong, self.templates[member]))
        self.sums.index_put_((half, member), aligned, accumulate=True)
        self.counts.index_put_((half, member), torch.ones(len(images)), accumulate=True)

    def images(self, halves: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Averages over half sets, and their orientations; empty classes are left out."""
        total, count = self.sums[list(halves)].sum(0), self.counts[list(halves)].sum(0)
        filled = count > 0
        return total[filled] / count[filled, None, None], self.templates[filled]


def class_averages(
    coefficients: Tensor, count: int, levels: list[float], seed: int
) -> dict[float, Averages]:
    """Project, add noise, and average under each level of error; images are kept nowhere."""
    n = coefficients.shape[-1]
    true = random_rotations(count, generator=stream(seed))
    templates = spread_directions(TEMPLATES)
    found = {level: Averages(templates, n) for level in levels}
    wrong = {level: misestimated(true, level, seed + 1) for level in levels}
    half = torch.randint(0, 2, (count,), generator=stream(seed + 2))
    noise, scale = stream(seed + 3), 0.0
    for rows in torch.split(torch.arange(count), BATCH):
        images = WindowProjector(true[rows], n, IMAGED)(coefficients)
        scale = scale or float(images.var((1, 2)).mean().sqrt())  # signal and noise of variance 1
        images = images / scale + torch.randn(images.shape, generator=noise)
        for level in levels:
            found[level].add(images, wrong[level][rows], half[rows])
    return found


def equations_of(averages: Averages, halves: tuple[int, ...], scale: int) -> LeastSquares:
    """Normal equations of the class averages, each counted once."""
    images, rotations = averages.images(halves)
    sums = NormalAccumulator(images.shape[-1], RECONSTRUCTED, scale)
    sums.insert(images, rotations, None, None, 1.0)
    return LeastSquares.of_images(sums.equations())


def solved(equations: LeastSquares, strength: float, solver: str) -> Tensor:
    """ADMM of the thesis or of the package."""
    thesis = solver == "thesis"
    config = AdmmConfig(
        nonnegative=False,
        linear_step="cg",
        iterations=ITERATIONS,
        cg_iterations=CG_ITERATIONS,
        rho=RHO_PER_LAMBDA * strength if thesis else None,
        adapt_rho=not thesis,
        tolerance=0.0,
    )
    if not thesis:
        return admm(equations, TotalVariation(strength), config).volume
    iterates = Admm(equations, TotalVariation(strength), config)
    iterates.linear = PlainCg(equations, iterates.x, CG_ITERATIONS)
    for _ in range(ITERATIONS):
        iterates.step()
    return iterates.x


def rows_of(
    averages: Averages, level: float, scale: int, truth: Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each lambda: resolution, and misfit of half maps with each other's averages."""
    n = truth.shape[-1]
    whole = equations_of(averages, (0, 1), scale)
    halves = [equations_of(averages, (h,), scale) for h in (0, 1)] if options.validate else []
    top = TotalVariation(0.0).strongest(whole)
    rows: list[dict[str, Any]] = []
    for solver in options.solvers:
        shared = [0.0]
        for strength in (top * 10.0**power for power in options.powers):
            start = time.perf_counter()
            x = solved(whole, strength, solver)
            seconds = time.perf_counter() - start
            curve = fsc(expanded(x, RECONSTRUCTED, scale, n), truth)
            maps = [solved(half, strength, solver) for half in halves]
            score = halves[1].misfit(maps[0]) + halves[0].misfit(maps[1]) if halves else math.nan
            shared.append(float(curve[1 : n // 4].mean()))
            rows.append(
                {
                    "solver": solver,
                    "error_deg": level,
                    "scale": scale,
                    "power": round(math.log10(strength / top)),
                    "strength": strength,
                    "resolution_angstrom": fsc_resolution(curve, 0.5, n, FIELD_ANGSTROM / n),
                    "shared": shared[-1],
                    "validation": score,
                    "seconds": seconds,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if shared[-1] < max(shared):
                break  # the best one is behind
    return rows


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each solver, error and scale the resolution under the three ways to choose lambda."""
    places: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in rows:
        places.setdefault((row["solver"], row["error_deg"], row["scale"]), []).append(row)
    least = min(row["error_deg"] for row in rows)
    table = []
    for (solver, level, scale), here in sorted(places.items()):
        best = min(here, key=_order)
        wanted = min(places[solver, least, scale], key=_order)["strength"]
        kept = min(here, key=partial(_from, wanted))
        validated = min(here, key=lambda r: r["validation"])
        known = not math.isnan(validated["validation"])
        table.append(
            {
                "solver": solver,
                "error_deg": level,
                "scale": scale,
                "best": best["resolution_angstrom"],
                "kept": kept["resolution_angstrom"],
                "validated": validated["resolution_angstrom"] if known else math.nan,
                "power_best": best["power"],
                "power_validated": validated["power"] if known else "",
            }
        )
    return table


def _from(wanted: float, row: dict[str, Any]) -> float:
    """How far a row's strength is from another one, as a ratio."""
    return abs(math.log(row["strength"] / wanted))


def _order(row: dict[str, Any]) -> tuple[float, float]:
    """Finer resolution first; then what shares more with the truth."""
    return row["resolution_angstrom"], -row["shared"]


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Resolution against error: a row for each solver, a column for each choice of lambda."""
    from matplotlib.figure import Figure

    solvers = sorted({row["solver"] for row in table}, reverse=True)
    ways = ways_of(table)
    figure = Figure(figsize=(4.2 * len(ways), 3.2 * len(solvers)), layout="constrained")
    panels = figure.subplots(len(solvers), len(ways), sharey=True, sharex=True, squeeze=False)
    for solver, line in zip(solvers, panels, strict=True):
        for way, panel in zip(ways, line, strict=True):
            for scale in sorted({row["scale"] for row in table}):
                rows = [r for r in table if (r["solver"], r["scale"]) == (solver, scale)]
                x, y = [r["error_deg"] for r in rows], [r[way] for r in rows]
                panel.plot(x, y, "o-", markersize=3, label=f"s = {scale}")
            panel.set_title(f"{solver}'s solver, {WAYS[way]}", fontsize=9)
            panel.grid(alpha=0.3)
    for line in panels:
        line[0].set_ylabel("resolution at FSC 0.5, Å")
    for panel in panels[-1]:
        panel.set_xlabel("largest error of a rotation component, degrees")
    panels[0][0].invert_yaxis()
    panels[0][0].legend()
    figure.savefig(path, dpi=80)


def ways_of(table: list[dict[str, Any]]) -> list[str]:
    """The ways to choose lambda that there are numbers of."""
    return [way for way in WAYS if not math.isnan(table[0][way])]


def best_scales(table: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """The scale with the finest resolution, for each solver, choice of lambda, and error."""
    return {
        solver: {
            way: {
                f"{level:g}": min(
                    (r for r in table if (r["solver"], r["error_deg"]) == (solver, level)),
                    key=itemgetter(way),
                )["scale"]
                for level in sorted({row["error_deg"] for row in table})
            }
            for way in ways_of(table)
        }
        for solver in sorted({row["solver"] for row in table})
    }


def crosses(finest: dict[str, int]) -> bool:
    """Whether s = 1 resolves most at the least error and a coarser lattice at the largest."""
    levels = sorted(finest, key=float)
    return finest[levels[0]] == 1 and finest[levels[-1]] > 1


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, those of the cache included."""
    rows = json.loads(options.cache.read_text()) if _there(options.cache) else []
    done = {(row["error_deg"], row["scale"]) for row in rows}
    wanted = [(lev, s) for lev in options.levels for s in options.scales if (lev, s) not in done]
    if not wanted:
        return rows
    source = options.model or str(options.data / BETAGAL)
    coefficients = molecule(source, options.box)
    truth = expanded(coefficients, IMAGED, 1, options.box)
    levels = sorted({level for level, _ in wanted})
    averages = class_averages(coefficients, options.projections, levels, options.seed)
    for level, scale in wanted:
        rows += rows_of(averages[level], level, scale, truth, options)
        if options.cache is not None:
            options.cache.write_text(json.dumps(rows))
    return rows


def _there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def main() -> int:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/5a1a.cif.gz")
    parser.add_argument("--model", help="another atomic model, or phantom:SEED")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--projections", type=int, default=20000)
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS)
    parser.add_argument("--scales", type=int, nargs="+", default=SCALES)
    parser.add_argument("--powers", type=float, nargs="+", default=POWERS)
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, choices=SOLVERS)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = measured(options)
    table = chosen(rows)
    write_csv(options.output / "angular_error.csv", table)
    write_csv(options.output / "angular_error_all.csv", rows)
    draw(table, options.output / "angular_error.png")
    finest = best_scales(table)
    held = all(crosses(by_error) for ways in finest.values() for by_error in ways.values())
    result = {
        "benchmark": "angular_error",
        **where_and_when(),
        "box": options.box,
        "projections": options.projections,
        "pixel_size_angstrom": FIELD_ANGSTROM / options.box,
        "table": table,
        "finest_scale": finest,
        "held": held,
        "seconds_of_solving": sum(row["seconds"] for row in rows),
    }
    print(json.dumps(result, indent=1))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
