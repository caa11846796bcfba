r"""Ways to do ADMM's linear step.

.. math::

    \Big(H^T H + \sum_j \rho_j K_j^T K_j\Big) x = H^T b + \sum_j \rho_j K_j^T (z_j - d_j).

Source: equations (2.17), (4.44) and (4.55) of L. Donati's thesis (EPFL, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vitreous.optim.admm_constraints import Split
from vitreous.optim.conjugate_gradient import Linear, conjugate_gradient, dot, largest_eigenvalue
from vitreous.optim.least_squares import Convolution, LeastSquares, NearCirculant, optimal_circulant

_MARGIN = 1.05  # power iteration approaches the norm from below
_FLOOR = 3.0  # of the mean eigenvalue: far below it the nearest circulant matrix is only near
_REFRESH = 20  # steps after which H^T H x is computed afresh, against rounding


class LinearStep(Protocol):
    """Finds x for given splits, and keeps H^T H x.

    Args:
        applied: the data term's gradient at x, but for H^T b.
    """

    applied: Tensor

    def solve(self, x: Tensor, pull: Tensor, splits: Sequence[Split]) -> Tensor:
        """The next x; ``pull`` is the right-hand side."""
        ...

    def quadratic(self, x: Tensor) -> float:
        """1/2 x^T H^T H x at the x found last, but for what a split of the data costs."""
        ...


def invert_circulant(spectrum: Tensor, x: Tensor) -> Tensor:
    """Divide the volume's half-spectrum by the eigenvalues of a circulant matrix."""
    solved: Tensor = torch.fft.irfftn(torch.fft.rfftn(x) / spectrum, s=tuple(x.shape))
    return solved


def _filtered(spectrum: Tensor, x: Tensor) -> Tensor:
    """Multiply the volume's half-spectrum."""
    product: Tensor = torch.fft.irfftn(torch.fft.rfftn(x) * spectrum, s=tuple(x.shape))
    return product


def stiffness(splits: Sequence[Split]) -> Tensor:
    """Eigenvalues of sum rho K^T K, or of a circulant matrix close to it."""
    return torch.as_tensor(sum(split.rho * split.spectrum for split in splits))


class CgStep:
    """A few conjugate gradients from the last x: algorithms 1 and 2.

    The circulant matrix nearest to the whole system preconditions them where H^T H is a
    convolution, one close to it where H^T H knows that; otherwise H^T H counts as a multiple of
    the identity in it.
    """

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
        self._solved = 0

    def solve(self, x: Tensor, pull: Tensor, splits: Sequence[Split]) -> Tensor:
        """The next x."""

        def stiff(v: Tensor) -> Tensor:
            return sum((s.rho * s.normal(v) for s in splits), torch.zeros_like(v))

        applied = self.applied + stiff(x)
        start = float((pull - applied).norm() / pull.norm().clamp_min(torch.finfo(x.dtype).tiny))
        result = conjugate_gradient(
            lambda v: self._normal(v) + stiff(v),
            pull,
            x,
            applied=applied,
            preconditioner=self._preconditioner(splits),
            iterations=self._iterations,
            tolerance=self._tolerance * start,
        )
        self._solved += 1
        fresh = self._solved % _REFRESH == 0
        self.applied = self._normal(result.x) if fresh else pull - result.residual - stiff(result.x)
        return result.x

    def _preconditioner(self, splits: Sequence[Split]) -> Linear:
        spectrum = self._circulant + stiffness(splits)
        return lambda v: invert_circulant(spectrum, v)

    def quadratic(self, x: Tensor) -> float:
        """1/2 x^T H^T H x."""
        return 0.5 * dot(x, self.applied)


class MajorisedStep:
    r"""One division in Fourier space: algorithm 6.

    The constraint :math:`w = T x` with :math:`T = (A - H^T H)^{1/2}` turns the linear step into
    eq. (4.55), without H^T H on its left-hand side. The thesis sets :math:`A = \|H\|^2 I`. Where
    H^T H is a convolution a circulant matrix lies closer above it: the nearest one, its eigenvalues
    not below thrice their mean, times the least factor that puts it above.

    Args:
        equations: the data.
        x: gives shape, dtype and device.
        circulant: false for the thesis' A even where H^T H is a convolution.
    """

    def __init__(self, equations: LeastSquares, x: Tensor, *, circulant: bool = True) -> None:
        self._normal = equations.operator
        self._bound = x.new_ones(())
        if circulant and isinstance(equations.operator, Convolution):
            nearest = optimal_circulant(equations.operator, tuple(x.shape)).to(x)
            self._bound = nearest.clamp_min(_FLOOR * max(float(nearest.mean()), 1e-30))
        root = self._bound.rsqrt()

        def relative(v: Tensor) -> Tensor:
            return _filtered(root, self._normal(_filtered(root, v)))

        self._bound = self._bound * (_MARGIN * largest_eigenvalue(relative, x))
        self._last, self._hat = x, torch.fft.rfftn(x)  # the last x, and its half-spectrum
        self.applied = self._normal(x)

    def solve(self, x: Tensor, pull: Tensor, splits: Sequence[Split]) -> Tensor:
        """The next x."""
        hat = self._hat if x is self._last else torch.fft.rfftn(x)
        pulled = torch.fft.rfftn(pull - self.applied) + self._bound * hat
        self._hat = pulled / (self._bound + stiffness(splits))
        self._last = torch.fft.irfftn(self._hat, s=tuple(x.shape))
        self.applied = self._normal(self._last)
        return self._last

    def quadratic(self, x: Tensor) -> float:
        """1/2 x^T H^T H x."""
        return 0.5 * dot(x, self.applied)


class SplitStep:
    """One division in Fourier space, where the data have a split of their own."""

    def __init__(self, x: Tensor) -> None:
        self.applied = torch.zeros_like(x)

    def solve(self, x: Tensor, pull: Tensor, splits: Sequence[Split]) -> Tensor:
        """The next x."""
        return invert_circulant(stiffness(splits), pull)

    def quadratic(self, x: Tensor) -> float:
        """Nothing is left."""
        return 0.0
