r"""Regularised least squares by the alternating direction method of multipliers.

.. math::

    \min_x \tfrac12 \|H x - b\|^2 + \lambda R(L x)
    \quad \text{s.t. } x \ge 0, \text{ and } x = 0 \text{ outside a mask}.

Source: equations (2.10) and (4.42), algorithms 1, 2 and 6 of L. Donati's thesis (EPFL, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.admm_constraints import PaddedSplit, Split, TermSplit, feasibility, regulariser
from vitreous.optim.admm_linear_step import CgStep, LinearStep, MajorisedStep, SplitStep
from vitreous.optim.least_squares import Convolution, LeastSquares
from vitreous.optim.loop import Callback, Stats, repeat
from vitreous.optim.prox import project


@dataclass(frozen=True)
class AdmmState:
    """What another run can go on from.

    Args:
        x: volume, not yet projected.
        multipliers: of the regulariser and of nonnegativity and mask; None for absent ones.
        rho: penalty parameters, one for each split, that of the data last.
    """

    x: Tensor
    multipliers: tuple[Tensor | None, Tensor | None]
    rho: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class AdmmResult:
    """Where ADMM ended.

    Args:
        volume: ``(z, y, x)``, nonnegative and within the mask where that was asked.
        history: of each iteration, "objective" (at x as it is, which approaches the constraints as
            "primal" vanishes), "misfit" and "penalty" (its parts), "primal" and "dual" (relative
            residuals), "change" (of the objective, relative).
        converged: whether the stopping rule was met.
        state: for a warm start.
    """

    volume: Tensor
    history: tuple[Stats, ...]
    converged: bool
    state: AdmmState


class _Admm:
    """Iterates of one problem."""

    def __init__(
        self,
        equations: LeastSquares,
        config: AdmmConfig,
        start: AdmmState,
        mask: Tensor | None,
    ) -> None:
        self.equations = equations
        self.config = config
        self.x = start.x
        self.iteration = 0
        self.objective = math.inf
        usual = config.rho or max(equations.mean_eigenvalue(), 1e-30)
        rho = [usual if value is None else value for value in start.rho]
        way = _linear_step(equations, config)
        y_u, y_v = start.multipliers
        self.u = regulariser(config, self.x, y_u, rho[0])
        self.v = feasibility(config, mask, self.x, y_v, rho[1])
        self.splits: list[Split] = [split for split in (self.u, self.v) if split is not None]
        self.w: PaddedSplit | None = None
        self.linear: LinearStep
        if way == "cg":
            self.linear = CgStep(equations, self.x, config.cg_iterations, config.cg_tolerance)
        elif way == "majorised":
            self.linear = MajorisedStep(equations, self.x)
        else:
            self.w = PaddedSplit(_convolution(equations), self.x, rho[2])
            self.splits.append(self.w)
            self.linear = SplitStep(self.x)

    def step(self) -> Stats:
        """One iteration of algorithms 1 and 6."""
        pull = self.equations.right_hand_side + sum(split.pull for split in self.splits)
        self.x = self.linear.solve(self.x, pull, self.splits)
        for split in self.splits:
            split.update(self.x)
        stats = self._measure()
        self.iteration += 1
        if self.config.adapt_rho and 2 * self.iteration < self.config.iterations:
            for split in self.splits:
                split.balance(stats["dual"])
        return stats

    def _measure(self) -> Stats:
        """Objective and relative residuals; "dual" is the Lagrangian's gradient in x."""
        data = self.linear.quadratic(self.x) + (self.w.cost if self.w else 0.0)
        misfit = self.equations.misfit_from(self.x, 2 * data)
        penalty = self.u.cost if self.u else 0.0
        objective, last = misfit + penalty, self.objective
        if not math.isfinite(objective):
            raise DivergedError("ADMM's objective is not finite: is H^T H free of NaN?")
        self.objective = objective
        gradient = self.linear.applied - self.equations.right_hand_side
        gradient = gradient + sum(split.rho * split.dual for split in self.splits)
        tiny = torch.finfo(torch.float64).tiny
        scale = math.hypot(*(split.primal_scale for split in self.splits), tiny)
        return {
            "objective": objective,
            "misfit": misfit,
            "penalty": penalty,
            "primal": math.hypot(*(split.primal for split in self.splits), 0.0) / scale,
            "dual": float(gradient.norm())
            / max(float(self.equations.right_hand_side.norm()), tiny),
            "change": abs(objective - last) / max(abs(objective), tiny),
        }

    def state(self) -> AdmmState:
        """What another run can go on from."""
        rho = (_rho(self.u), _rho(self.v), _rho(self.w))
        return AdmmState(self.x, (_y(self.u), _y(self.v)), rho)


@torch.no_grad()
def admm(
    equations: LeastSquares,
    config: AdmmConfig,
    *,
    start: Tensor | AdmmState | None = None,
    mask: Tensor | None = None,
    callbacks: Iterable[Callback] = (),
) -> AdmmResult:
    """Minimise the regularised misfit.

    Args:
        equations: H^T H, H^T b and |b|^2; the data themselves are not needed.
        config: the prior and how to solve.
        start: volume ``(z, y, x)``, or the state that an earlier run ended in, of whatever
            strength; zeros by default.
        mask: bool ``(z, y, x)``; the volume vanishes where it is false. None: no mask.
        callbacks: told the numbers of each iteration; a true answer stops.

    Raises:
        ValueError: "padded" steps without a convolution, or Neumann boundaries without "cg".
        DivergedError: the objective became infinite or NaN.

    >>> from vitreous.linop.operator import Identity
    >>> b = torch.tensor([[[3.0, -1.0]]])
    >>> equations = LeastSquares(Identity((1, 1, 2)), b, 10.0)
    >>> result = admm(equations, AdmmConfig("l2", strength=2.0, tolerance=1e-6))
    >>> [round(value, 3) for value in result.volume.flatten().tolist()], result.converged
    ([1.0, 0.0], True)
    """
    if not isinstance(start, AdmmState):
        x = torch.zeros_like(equations.right_hand_side) if start is None else start
        start = AdmmState(x, (None, None), (None, None, None))
    problem = _Admm(equations, config, start, mask)
    history: list[Stats] = []

    def watch(step: int, stats: Stats) -> bool:
        history.append(stats)
        return _settled(stats, config.tolerance)

    repeat(problem.step, 0, config.iterations, [watch, *callbacks])
    volume = project(problem.x, nonnegative=config.nonnegative, mask=mask)
    settled = _settled(history[-1], config.tolerance)
    return AdmmResult(volume, tuple(history), settled, problem.state())


def _settled(stats: Stats, tolerance: float) -> bool:
    return max(stats["primal"], stats["dual"], stats["change"]) <= tolerance


def _linear_step(equations: LeastSquares, config: AdmmConfig) -> str:
    if config.linear_step in ("majorised", "padded") and config.boundary != "periodic":
        raise ValueError(
            f"linear_step={config.linear_step!r} needs periodic boundaries, got "
            f"{config.boundary!r}; take boundary='periodic' or linear_step='cg'"
        )
    if config.linear_step != "auto":
        return config.linear_step
    if config.boundary != "periodic" or not isinstance(equations.operator, Convolution):
        return "cg"
    spectrum = equations.operator.spectrum
    return "padded" if -2 * float(spectrum.min()) < float(spectrum.mean()) else "cg"


def _convolution(equations: LeastSquares) -> Convolution:
    if not isinstance(equations.operator, Convolution):
        raise ValueError(
            f"linear_step='padded' needs H^T H as a convolution, got "
            f"{type(equations.operator).__name__}; take 'cg' or 'majorised'"
        )
    return equations.operator


def _y(split: TermSplit | None) -> Tensor | None:
    return None if split is None else split.y


def _rho(split: Split | None) -> float | None:
    return None if split is None else split.rho
