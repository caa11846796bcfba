"""Objective against seconds, with and without inner loop: figure 4.16 of L. Donati's thesis. JSON.

    python benchmarks/inner_loop_free.py --output bench-results   # with inner_loop_free.csv, .png
    python benchmarks/inner_loop_free.py --box 256                # the thesis' size

30 equidistributed projections of beta-galactosidase (5A1A, window (2, 10.83, 2)), SNR 1, error
on the orientations (each component of its rotation vector uniform within 7 degrees), no CTF; total
variation and nonnegativity, equation (4.42). lambda is the power of ten, times the strength that
leaves nothing but the prior, with the best FSC with the truth. All methods have the same lambda
and, as in the thesis, one fixed rho for both constraints, each its own from a grid: the one that is
soonest within 1e-3 of the least objective that any of them reached. The grid is searched at half
the box, at --box itself with ``--grid-at-full-size``.

- "inner-loop-free": algorithm 6 with A a circulant matrix (``linear_step="majorised"``), or, as in
  the thesis, with A = |H|^2 I.
- "k CG, plain": algorithm 2 with k conjugate gradients, not preconditioned, as in the thesis.
- "k CG, preconditioned": the package's own (``linear_step="cg"``).

The objective is taken at the nearest feasible point, max(x, 0), and its evaluation is not timed.
Fails (exit 1) where the package's algorithm 6 is not within 1e-3 of the least objective, in
seconds, before both of the thesis' plain ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from vitreous.core.rotation import euler_to_matrix
from vitreous.linop.gradient import Gradient
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.optim.admm import Admm, admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.admm_linear_step import LinearStep, MajorisedStep
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.priors import TotalVariation
from vitreous.optim.prox import lengths
from vitreous.physics.kaiser_bessel.normal_equations import NormalAccumulator
from vitreous.physics.kaiser_bessel.projector import WindowProjector

PROJECTIONS, ERROR_DEG, CLOSE = 30, 7.0, 1e-3
POWERS = (-1, -2, -3, -4, -5)
RHOS = (0.3, 1.0, 3.0, 10.0, 30.0)  # times the mean eigenvalue of H^T H


@dataclass(frozen=True)
class Method:
    """A way to do the linear step, and whether the thesis compares with it."""

    name: str
    linear_step: Literal["auto", "cg", "majorised", "padded"]
    cg_iterations: int = 1
    from_thesis: bool = False

    def prepared(self, equations: LeastSquares, strength: float, rho: float) -> Admm:
        """ADMM before its first iteration, from zero."""
        config = AdmmConfig(
            linear_step=self.linear_step,
            cg_iterations=self.cg_iterations,
            cg_tolerance=0.0,
            rho=rho,
            adapt_rho=False,
        )
        solver = Admm(equations, TotalVariation(strength), config)
        if self.from_thesis:
            step: LinearStep = MajorisedStep(equations, solver.x, circulant=False)
            if self.linear_step == "cg":
                step = PlainCg(equations, solver.x, self.cg_iterations)
            solver.linear = step
        return solver

    @property
    def applications(self) -> int:
        """Of H^T H in one iteration."""
        return 1 if self.linear_step == "majorised" else self.cg_iterations + 1


INNER_LOOP_FREE = Method("inner-loop-free, A circulant", "majorised")
METHODS = (
    INNER_LOOP_FREE,
    Method("inner-loop-free, A = |H|² (thesis)", "majorised", from_thesis=True),
    Method("1 CG, plain (thesis)", "cg", 1, from_thesis=True),
    Method("3 CG, plain (thesis)", "cg", 3, from_thesis=True),
    Method("1 CG, preconditioned", "cg", 1),
    Method("3 CG, preconditioned", "cg", 3),
)


@dataclass(frozen=True)
class Curve:
    """Objective after each iteration, and seconds until then; the first entry is the start."""

    method: Method
    rho: float
    seconds: list[float]
    objective: list[float]

    def arrival(self, least: float) -> tuple[float, int]:
        """Seconds and iterations until the objective stays close to the least."""
        far = [i for i, v in enumerate(self.objective) if not v <= (1 + CLOSE) * least]
        first = far[-1] + 1 if far else 0
        if first >= len(self.objective):
            return math.inf, -1
        return self.seconds[first], first


def race(
    entries: Sequence[tuple[Method, float]],
    equations: LeastSquares,
    strength: float,
    iterations: int,
) -> list[Curve]:
    """Iterate in turns, so that other load slows all alike; only iterations are timed.

    Args:
        entries: methods and their rho, in mean eigenvalues of H^T H.
    """
    objective, unit = feasible_objective(equations, strength), equations.mean_eigenvalue()
    problems = [method.prepared(equations, strength, rho * unit) for method, rho in entries]
    curves = [
        Curve(method, rho, [0.0], [objective(problem.x)])
        for (method, rho), problem in zip(entries, problems, strict=True)
    ]
    for _ in range(iterations):
        for problem, curve in zip(problems, curves, strict=True):
            start = time.perf_counter()
            problem.iterate()
            curve.seconds.append(curve.seconds[-1] + time.perf_counter() - start)
            curve.objective.append(objective(problem.x))
    return curves


def feasible_objective(equations: LeastSquares, strength: float) -> Callable[[Tensor], float]:
    """Equation (4.42) at max(x, 0)."""
    gradient = Gradient(tuple(equations.right_hand_side.shape))

    def objective(x: Tensor) -> float:
        x = x.clamp_min(0)
        variation = float(lengths(gradient(x)).sum(dtype=torch.float64))
        return equations.misfit(x) + strength * variation

    return objective


def problem_of(source: str, box: int, seed: int) -> tuple[LeastSquares, Tensor]:
    """Normal equations of the projections under wrong orientations, and the true map."""
    coefficients = molecule(source, box)
    directions = spread_directions(PROJECTIONS)
    psi = 360 * torch.rand(PROJECTIONS, generator=stream(seed))
    turn = euler_to_matrix(torch.stack([0 * psi, 0 * psi, psi], dim=-1))
    true = turn @ directions
    images = WindowProjector(true, box, IMAGED)(coefficients)
    images = images / images.var((1, 2)).mean().sqrt()
    images = images + torch.randn(images.shape, generator=stream(seed + 1))
    sums = NormalAccumulator(box, IMAGED)
    sums.insert(images, misestimated(true, ERROR_DEG, seed + 2), None, None, 1.0)
    return LeastSquares.of_images(sums.equations()), expanded(coefficients, IMAGED, 1, box)


def best_power(equations: LeastSquares, truth: Tensor) -> tuple[float, dict[str, float]]:
    """The power of ten whose map agrees best with the truth, over shells to half Nyquist."""
    top, n = TotalVariation(0.0).strongest(equations), truth.shape[-1]
    shared = {}
    for power in POWERS:
        config, prior = (
            AdmmConfig(linear_step="cg", iterations=40),
            TotalVariation(top * 10.0**power),
        )
        curve = fsc(expanded(admm(equations, prior, config).volume, IMAGED, 1, n), truth)
        shared[power] = float(curve[1 : n // 4].mean())
        resolution = fsc_resolution(curve, 0.5, n, FIELD_ANGSTROM / n)
        print(f"lambda 1e{power}: FSC {shared[power]:.3f}, {resolution:.1f} Å", file=sys.stderr)
    best = max(shared, key=lambda power: shared[power])
    return best, {f"1e{power}": value for power, value in shared.items()}


def least_of(curves: Sequence[Curve]) -> float:
    """The least objective reached."""
    return min(min(v for v in curve.objective if math.isfinite(v)) for curve in curves)


def best_rhos(
    equations: LeastSquares, power: float, rhos: Sequence[float], iterations: int
) -> dict[str, float]:
    """For each method the rho, in mean eigenvalues, that is close to the least soonest."""
    strength = TotalVariation(0.0).strongest(equations) * 10.0**power
    entries = [(method, rho) for method in METHODS for rho in rhos]
    raced = race(entries, equations, strength, iterations)
    curves = {(curve.method.name, curve.rho): curve for curve in raced}
    least = least_of(raced)
    chosen = {}
    for method in METHODS:
        order = {
            rho: (
                curves[method.name, rho].arrival(least)[0],
                curves[method.name, rho].objective[-1],
            )
            for rho in rhos
        }
        chosen[method.name] = min(order, key=lambda rho: order[rho])
        told = {
            f"{rho:g}": [round(seconds, 2), f"{end:.7g}"] for rho, (seconds, end) in order.items()
        }
        print(f"{method.name}: {told}", file=sys.stderr, flush=True)
    return chosen


def draw(curves: Sequence[Curve], least: float, path: Path) -> None:
    """Relative excess of the objective against seconds and against iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for curve in curves:
        style = ":" if curve.method.from_thesis else "-"
        excess = [max(v / least - 1, 1e-7) for v in curve.objective]
        panels[0].semilogy(curve.seconds, excess, style, label=curve.method.name)
        panels[1].semilogy(range(len(excess)), excess, style, label=curve.method.name)
    for panel, label in zip(panels, ("seconds", "iterations"), strict=True):
        panel.axhline(CLOSE, color="0.6", linewidth=0.8)
        panel.set(xlabel=label, ylim=(1e-6, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("objective over the least, less 1")
    panels[0].set_xlim(0, max(c.seconds[-1] for c in curves if c.method.cg_iterations == 1))
    panels[1].legend()
    figure.savefig(path, dpi=90)


def rows_of(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The curves as a table."""
    return [
        {"method": c.method.name, "iteration": i, "seconds": s, "objective": f"{v:.9g}"}
        for c in curves
        for i, (s, v) in enumerate(zip(c.seconds, c.objective, strict=True))
    ]


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/5a1a.cif.gz")
    parser.add_argument("--model", help="another atomic model, or phantom:SEED")
    parser.add_argument("--output", type=Path, default=Path("bench-results"))
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rhos", type=float, nargs="+", default=RHOS)
    parser.add_argument("--grid-at-full-size", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def told(run: Curve, least: float) -> dict[str, float]:
    """What a run comes to."""
    seconds, iterations = run.arrival(least)
    return {
        "rho_over_mean_eigenvalue": run.rho,
        "seconds_per_iteration": run.seconds[-1] / (len(run.seconds) - 1),
        "seconds_to_1e-3": seconds,
        "iterations_to_1e-3": iterations,
        "applications_of_HtH_to_1e-3": run.method.applications * iterations,
        "excess_at_the_end": run.objective[-1] / least - 1,
    }


def main() -> int:
    """Choose lambda and rho, run, draw, print."""
    options = parsed()
    source = options.model or str(options.data / BETAGAL)
    small = options.box if options.grid_at_full_size else options.box // 2
    equations, truth = problem_of(source, small, options.seed)
    power, shared = best_power(equations, truth)
    rhos = best_rhos(equations, power, options.rhos, options.iterations // 2)
    if small != options.box:
        equations, truth = problem_of(source, options.box, options.seed)
    strength = TotalVariation(0.0).strongest(equations) * 10.0**power
    entries = [(method, rhos[method.name]) for method in METHODS]
    runs = race(entries, equations, strength, options.iterations)
    least = least_of(runs)
    methods = {run.method.name: told(run, least) for run in runs}
    soonest = {name: row["seconds_to_1e-3"] for name, row in methods.items()}
    ours = soonest[INNER_LOOP_FREE.name]
    opponents = [m.name for m in METHODS if m.from_thesis and m.linear_step == "cg"]
    held = {name: ours < soonest[name] for name in opponents}
    write_csv(options.output / "inner_loop_free.csv", rows_of(runs))
    draw(runs, least, options.output / "inner_loop_free.png")
    result = {
        "benchmark": "inner_loop_free",
        **where_and_when(),
        "box": options.box,
        "projections": PROJECTIONS,
        "lambda": {"power": power, "fsc_with_truth": shared},
        "rho_chosen_at_box": small,
        "least_objective": least,
        "methods": methods,
        "held": held,
    }
    print(json.dumps(result, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
