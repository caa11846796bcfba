r"""Regularised least squares by the alternating direction method of multipliers.

.. math::

    \min_x \tfrac12 \|H x - b\|^2 + \lambda R(L x)
    \quad \text{s.t. } x \ge 0, \text{ and } x = 0 \text{ outside a mask}.

Source: equations (2.10) and (4.42), algorithms 1, 2 and 6 of L. Donati's thesis (EPFL, 2020).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.linop.operator import LinearOperator
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.admm_constraints import (
    Constraint,
    PaddedConstraint,
    PriorConstraint,
    is_diagonal_in_fourier,
)
from vitreous.optim.admm_linear_step import (
    CgStep,
    CirculantStep,
    LinearStep,
    MajorisedStep,
    PaddedStep,
)
from vitreous.optim.least_squares import CirculantNormal, Convolution, LeastSquares
from vitreous.optim.loop import Callback, Stateful, Stats, run
from vitreous.optim.priors import FeasibleSet, Prior, operator_of


@dataclass(frozen=True)
class AdmmState:
    """A warm start: the variables of a run with which another run may begin."""

    x: Tensor  # volume, not yet projected
    # of the prior and of nonnegativity and mask; None for absent ones
    multipliers: tuple[Tensor | None, Tensor | None] = (None, None)
    # penalty parameters, one for each constraint, that of the data last
    rho: tuple[float | None, ...] = (None, None, None)


@dataclass(frozen=True)
class AdmmResult:
    """Solution of ADMM.

    Args:
        volume: ``(z, y, x)``, nonnegative and within the mask where that was asked.
        history: of each iteration, "objective" (at x as it is, which approaches the constraints as
            "primal" vanishes), "misfit" and "penalty" (its parts), "primal" and "dual" (relative
            residuals), "change" (of the objective, relative).
        converged: whether the stopping rule was met.
        state: for a warm start.

    >>> from vitreous.linop.operator import Identity
    >>> result = admm(Identity((1, 1, 2)), None, data=torch.ones(1, 1, 2))
    >>> result.converged, "objective" in result.history[-1]
    (True, True)
    """

    volume: Tensor
    history: tuple[Stats, ...]
    converged: bool
    state: AdmmState


class Admm(Stateful):
    """Solver of one problem; one step is one iteration of algorithms 1 and 6.

    Args:
        equations: H^T H, H^T b and |b|^2; the data themselves are not needed.
        prior: any object with a value and ``prox``, see :class:`~vitreous.optim.priors.Prior`;
            None for none.
        config: how to solve.
        start: volume ``(z, y, x)``, or the state of an earlier run, of whatever strength; zeros by
            default.
        mask: bool ``(z, y, x)``; the volume vanishes where it is false. None: no mask.

    Attributes:
        x: the volume, not yet projected.

    Raises:
        ValueError: "padded" steps without a convolution, or a prior that needs "cg".

    >>> from vitreous.linop.operator import Identity
    >>> from vitreous.optim.priors import SquaredNorm
    >>> solver = Admm(LeastSquares.of_data(Identity((1, 1, 2)), torch.ones(1, 1, 2)), None)
    >>> sorted(solver.step())
    ['change', 'dual', 'misfit', 'objective', 'penalty', 'primal']
    """

    STATE = ("x", "history", "linear", "constraints")

    @torch.no_grad()
    def __init__(
        self,
        equations: LeastSquares,
        prior: Prior | None,
        config: AdmmConfig | None = None,
        *,
        start: Tensor | AdmmState | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.equations = equations
        self.config = config = config or AdmmConfig()
        if not isinstance(start, AdmmState):
            zeros = torch.zeros_like(equations.right_hand_side)
            start = AdmmState(zeros if start is None else start)
        self.x = start.x
        self.history: list[Stats] = []
        usual = config.rho or max(equations.mean_eigenvalue(), 1e-30)
        rho = [usual if value is None else value for value in start.rho]
        linear_step = _linear_step(equations, prior, config)
        y_u, y_v = start.multipliers
        self.u = None if prior is None else PriorConstraint(prior, self.x, y_u, rho[0])
        self._feasible = FeasibleSet(config.nonnegative, mask)
        bounded = config.nonnegative or mask is not None
        self.v = PriorConstraint(self._feasible, self.x, y_v, rho[1]) if bounded else None
        self.w: PaddedConstraint | None = None
        self.linear: LinearStep
        if linear_step == "cg":
            self.linear = CgStep(equations, self.x, config.cg_iterations, config.cg_tolerance)
        elif linear_step == "circulant":
            assert isinstance(equations.operator, CirculantNormal)
            self.linear = CirculantStep(equations.operator, self.x)
        elif linear_step == "majorised":
            self.linear = MajorisedStep(equations, self.x)
        else:
            if not isinstance(equations.operator, Convolution):
                raise ValueError(
                    f"linear_step='padded' needs H^T H as a convolution, got "
                    f"{type(equations.operator).__name__}; take 'cg' or 'majorised'"
                )
            self.w = PaddedConstraint(equations.operator, self.x, rho[2])
            self.linear = PaddedStep(self.x)
        constraints: tuple[Constraint | None, ...] = (self.u, self.v, self.w)
        self.constraints = [one for one in constraints if one is not None]

    @torch.no_grad()
    def step(self) -> Stats:
        """Do one iteration, and return its row of the history.

        Raises:
            DivergedError: the objective became infinite or NaN.
        """
        self.iterate()
        stats = self._measure()
        self.history.append(stats)
        if self.config.adapt_rho and 2 * len(self.history) < self.config.iterations:
            for constraint in self.constraints:
                constraint.balance(stats["dual"])
        return stats

    def iterate(self) -> None:
        """Update x, then the variables and multipliers of all constraints."""
        rhs = self.equations.right_hand_side + sum(one.right_hand_side for one in self.constraints)
        self.x = self.linear.solve(self.x, rhs, self.constraints)
        for constraint in self.constraints:
            constraint.update(self.x)

    @property
    def converged(self) -> bool:
        """Whether the stopping rule is met."""
        if not self.history:
            return False
        last = self.history[-1]
        return max(last["primal"], last["dual"], last["change"]) <= self.config.tolerance

    @property
    def done(self) -> bool:
        """Whether the stopping rule is met, or the iterations are used up."""
        return self.converged or len(self.history) >= self.config.iterations

    @property
    def progress(self) -> float:
        """Share of the iterations that are done, 1 at the end."""
        return 1.0 if self.done else len(self.history) / self.config.iterations

    def result(self) -> AdmmResult:
        """Return the volume, projected, with its history."""
        y_u, y_v = (None if one is None else one.y for one in (self.u, self.v))
        rho = tuple(None if one is None else one.rho for one in (self.u, self.v, self.w))
        state = AdmmState(self.x, (y_u, y_v), rho)
        volume = self._feasible.prox(self.x, 1.0)
        return AdmmResult(volume, tuple(self.history), self.converged, state)

    def _measure(self) -> Stats:
        """Return objective and relative residuals; "dual" is the Lagrangian's gradient in x."""
        rhs = self.equations.right_hand_side
        data = self.linear.quadratic(self.x) + (self.w.penalty if self.w else 0.0)
        misfit = self.equations.misfit_from(self.x, 2 * data)
        penalty = self.u.penalty if self.u else 0.0
        objective = misfit + penalty
        before = self.history[-1]["objective"] if self.history else math.inf
        if not math.isfinite(objective):
            raise DivergedError("ADMM's objective is not finite: is H^T H free of NaN?")
        gradient = self.linear.applied - rhs
        gradient = gradient + sum(one.rho * one.adjoint_d for one in self.constraints)
        tiny = torch.finfo(torch.float64).tiny
        scale = math.hypot(*(one.primal_scale for one in self.constraints), tiny)
        return {
            "objective": objective,
            "misfit": misfit,
            "penalty": penalty,
            "primal": math.hypot(*(one.primal for one in self.constraints), 0.0) / scale,
            "dual": float(gradient.norm()) / max(float(rhs.norm()), tiny),
            "change": abs(objective - before) / max(abs(objective), tiny),
        }


def admm(
    problem: LeastSquares | LinearOperator,
    prior: Prior | None,
    config: AdmmConfig | None = None,
    *,
    data: Tensor | None = None,
    start: Tensor | AdmmState | None = None,
    mask: Tensor | None = None,
    callbacks: Iterable[Callback] = (),
) -> AdmmResult:
    """Minimise the misfit plus a prior.

    Args:
        problem: normal equations, or the operator H of ``data``.
        prior: any object with a value and ``prox``, see :class:`~vitreous.optim.priors.Prior`;
            None for none.
        config: how to solve.
        data: b, where ``problem`` is H.
        start, mask: see :class:`Admm`.
        callbacks: called with each iteration and its row of the history; a true answer stops.

    Raises:
        ValueError: an operator without data or equations with; see also :class:`Admm`.
        DivergedError: the objective became infinite or NaN.

    >>> from vitreous.linop.operator import Identity
    >>> from vitreous.optim.priors import SquaredNorm
    >>> b = torch.tensor([[[3.0, -1.0]]])
    >>> result = admm(Identity((1, 1, 2)), SquaredNorm(2.0), AdmmConfig(tolerance=1e-6), data=b)
    >>> [round(value, 3) for value in result.volume.flatten().tolist()], result.converged
    ([1.0, 0.0], True)
    """
    if isinstance(problem, LeastSquares) != (data is None):
        raise ValueError(
            f"`data` belong to an operator, got {'none' if data is None else 'some'} for "
            f"{type(problem).__name__}; give LeastSquares alone, or an operator and its data"
        )
    if not isinstance(problem, LeastSquares):
        assert data is not None
        problem = LeastSquares.of_data(problem, data)
    return run(Admm(problem, prior, config, start=start, mask=mask), callbacks)


def _linear_step(equations: LeastSquares, prior: Prior | None, config: AdmmConfig) -> str:
    """Return the linear step to take, checked."""
    shape = tuple(equations.right_hand_side.shape)
    diagonal = prior is None or is_diagonal_in_fourier(operator_of(prior, shape))
    if config.linear_step in ("majorised", "padded") and not diagonal:
        raise ValueError(
            f"linear_step={config.linear_step!r} needs a prior whose operator is diagonal in "
            f"Fourier space, got {prior}; take periodic boundaries or linear_step='cg'"
        )
    if config.linear_step != "auto":
        return config.linear_step
    if diagonal and isinstance(equations.operator, CirculantNormal):
        return "circulant"
    if not diagonal or not isinstance(equations.operator, Convolution):
        return "cg"
    spectrum = equations.operator.spectrum
    return "padded" if -2 * float(spectrum.min()) < float(spectrum.mean()) else "cg"
