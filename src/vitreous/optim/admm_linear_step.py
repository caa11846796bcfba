r"""Linear steps of ADMM: the update of x.

.. math::

    \Big(H^T H + \sum_j \rho_j K_j^T K_j\Big) x = H^T b + \sum_j \rho_j K_j^T (z_j - d_j).

Source: equations (2.17), (4.44) and (4.55) of L. Donati's thesis (EPFL, 2020).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from vitreous.optim.admm_constraints import Constraint
from vitreous.optim.conjugate_gradient import (
    conjugate_gradient,
    dot,
    invert_circulant,
    largest_eigenvalue,
)
from vitreous.optim.least_squares import (
    CirculantNormal,
    Convolution,
    LeastSquares,
    NearCirculant,
    optimal_circulant,
)
from vitreous.optim.loop import Stateful

_MARGIN = 1.05  # power iteration approaches the norm from below
_FLOOR = 3.0  # of the mean eigenvalue: far below it the nearest circulant matrix is only near
_REFRESH = 20  # steps after which H^T H x is computed afresh, against rounding


class LinearStep(Stateful, ABC):
    """Update x for given constraints, and keep H^T H x.

    Attributes:
        applied: H^T H x, without what a constraint of the data holds.
    """

    STATE: ClassVar[tuple[str, ...]] = ("applied",)
    applied: Tensor

    @abstractmethod
    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x after ``x``, for a right-hand side and constraints besides H^T H."""

    def quadratic(self, x: Tensor) -> float:
        """Return 1/2 x^T H^T H x of the last x, without what a constraint of the data holds."""
        return 0.5 * dot(x, self.applied)


def filter_volume(spectrum: Tensor, x: Tensor) -> Tensor:
    """Multiply the half-spectrum of a volume."""
    product: Tensor = torch.fft.irfftn(torch.fft.rfftn(x) * spectrum, s=tuple(x.shape))
    return product


def stiffness(constraints: Sequence[Constraint]) -> Tensor:
    """Return the eigenvalues of sum rho K^T K, or of a circulant matrix close to it."""
    return torch.as_tensor(sum(one.rho * one.spectrum for one in constraints))


class CgStep(LinearStep):
    """A few conjugate gradients from the last x: algorithms 1 and 2.

    The circulant matrix nearest to the whole system preconditions them where H^T H is a
    convolution, one close to it where H^T H has one; otherwise H^T H counts as a multiple of the
    identity in it.
    """

    STATE = ("applied", "solved")

    def __init__(
        self, equations: LeastSquares, x: Tensor, iterations: int, tolerance: float
    ) -> None:
        self._normal = equations.operator
        self._iterations = iterations
        self._tolerance = tolerance
        self.applied = self._normal(x)
        if isinstance(equations.operator, Convolution):
            nearest = optimal_circulant(equations.operator, tuple(x.shape)).to(x)
        elif isinstance(equations.operator, NearCirculant):
            nearest = equations.operator.circulant.to(x)
        else:
            nearest = x.new_tensor(equations.mean_eigenvalue())
        self._circulant = nearest.clamp_min(1e-6 * float(nearest.mean()))
        self.solved = 0

    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x."""

        def stiff(v: Tensor) -> Tensor:
            return sum((one.rho * one.normal(v) for one in constraints), torch.zeros_like(v))

        applied = self.applied + stiff(x)
        start = float((rhs - applied).norm() / rhs.norm().clamp_min(torch.finfo(x.dtype).tiny))
        result = conjugate_gradient(
            lambda v: self._normal(v) + stiff(v),
            rhs,
            x,
            applied=applied,
            preconditioner=partial(invert_circulant, self._circulant + stiffness(constraints)),
            iterations=self._iterations,
            tolerance=self._tolerance * start,
        )
        self.solved += 1
        fresh = self.solved % _REFRESH == 0
        self.applied = self._normal(result.x) if fresh else rhs - result.residual - stiff(result.x)
        return result.x


class MajorisedStep(LinearStep):
    r"""One division in Fourier space: algorithm 6.

    The constraint :math:`w = T x` with :math:`T = (A - H^T H)^{1/2}` turns the linear step into eq.
    (4.55), without H^T H on its left-hand side. The thesis sets :math:`A = \|H\|^2 I`, as do we
    where ``circulant`` is false. Where H^T H is a convolution a circulant matrix lies closer above
    it: the nearest one, its eigenvalues not below thrice their mean, times the least factor that
    puts it above.
    """

    STATE = ("applied", "x_hat")

    def __init__(self, equations: LeastSquares, x: Tensor, *, circulant: bool = True) -> None:
        self._normal = equations.operator
        self._bound = x.new_ones(())
        if circulant and isinstance(equations.operator, Convolution):
            nearest = optimal_circulant(equations.operator, tuple(x.shape)).to(x)
            self._bound = nearest.clamp_min(_FLOOR * max(float(nearest.mean()), 1e-30))
        root = self._bound.rsqrt()

        def relative(v: Tensor) -> Tensor:
            return filter_volume(root, self._normal(filter_volume(root, v)))

        self._bound = self._bound * (_MARGIN * largest_eigenvalue(relative, x))
        self.x_hat = torch.fft.rfftn(x)  # of the last x
        self.applied = self._normal(x)

    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x."""
        rhs_hat = torch.fft.rfftn(rhs - self.applied) + self._bound * self.x_hat
        self.x_hat = rhs_hat / (self._bound + stiffness(constraints))
        x = torch.fft.irfftn(self.x_hat, s=tuple(x.shape))
        self.applied = self._normal(x)
        return x


class CirculantStep(LinearStep):
    """One division in Fourier space, exact where H^T H and every constraint are circulant."""

    def __init__(self, operator: CirculantNormal, x: Tensor) -> None:
        self._spectrum = operator.circulant
        self.applied = operator(x)

    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x."""
        x_hat = torch.fft.rfftn(rhs) / (self._spectrum + stiffness(constraints))
        self.applied = torch.fft.irfftn(self._spectrum * x_hat, s=tuple(x.shape))
        solved: Tensor = torch.fft.irfftn(x_hat, s=tuple(x.shape))
        return solved


class PaddedStep(LinearStep):
    """One division in Fourier space, where the data have a constraint of their own."""

    def __init__(self, x: Tensor) -> None:
        self.applied = torch.zeros_like(x)

    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x."""
        return invert_circulant(stiffness(constraints), rhs)
