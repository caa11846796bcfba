"""Constraints z = K x of ADMM: the penalty of each variable z, and its multipliers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import LinearOperator
from vitreous.optim.conjugate_gradient import mean_eigenvalue
from vitreous.optim.least_squares import Convolution
from vitreous.optim.loop import Stateful
from vitreous.optim.priors import Prior, operator_of

_IMBALANCE, _FACTOR = 2.0, 1.5  # rho moves by the factor where residuals are further apart
_LEAST_SCALE = 1e-2  # of |x|, as |K x| vanishes where nothing but the prior is left


class Constraint(Stateful, ABC):
    r"""One constraint :math:`z = K x`, with scaled multipliers :math:`d = y / \rho`.

    ``update`` does :math:`z \leftarrow \mathrm{prox}(K x + d)` and
    :math:`d \leftarrow d + K x - z`, and sets the attributes that the solver reads.

    Args:
        rho: penalty parameter at the start.
        adjoint_z, adjoint_d: :math:`K^T z` and :math:`K^T d`.
        spectrum: eigenvalues of :math:`K^T K` on the volume's half-spectrum; for conjugate
            gradients those of a circulant matrix close to it will do.

    Attributes:
        penalty: of z's term, at K x.
        primal, primal_scale: :math:`\|K x - z\|`, and the larger of :math:`\|K x\|`,
            :math:`\|z\|` and 0.01 :math:`\|x\|`.
        change: norm of the last change of :math:`K^T z`.
    """

    lowest_rho = 0.0
    penalty = primal = primal_scale = change = 0.0

    def __init__(self, rho: float, adjoint_z: Tensor, adjoint_d: Tensor, spectrum: Tensor) -> None:
        self.rho = rho
        self.spectrum = spectrum
        self.adjoint_z = adjoint_z
        self.adjoint_d = adjoint_d

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """Return K^T K x."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""

    @abstractmethod
    def _scale_multipliers(self, factor: float) -> None:
        """Multiply d."""

    @property
    def right_hand_side(self) -> Tensor:
        """rho K^T (z - d), this constraint's share of the right-hand side of the step for x."""
        return self.rho * (self.adjoint_z - self.adjoint_d)

    def balance(self, stationarity: float) -> None:
        """Change rho where relative primal and dual residual are out of balance; y stays.

        A stationarity, the relative residual of the whole problem in x, above the primal residual
        forbids to stiffen a system that is not solved well as it is.

        Source: Wohlberg, arXiv:1704.06209, equations (26) and (27).
        """
        scale = float(self.adjoint_d.norm())
        if self.primal == 0 or scale == 0:  # the constraint does nothing
            return
        primal, dual = self.primal / self.primal_scale, self.change / scale
        factor = 1.0
        if primal > _IMBALANCE * max(dual, stationarity):
            factor = _FACTOR
        elif dual > _IMBALANCE * primal:
            factor = 1 / _FACTOR
        factor = max(factor, self.lowest_rho / self.rho)
        if factor != 1.0:
            self.rho *= factor
            self._scale_multipliers(1 / factor)
            self.adjoint_d = self.adjoint_d / factor

    def _record(self, adjoint_z: Tensor, adjoint_d: Tensor) -> None:
        self.change = float((adjoint_z - self.adjoint_z).norm())
        self.adjoint_z, self.adjoint_d = adjoint_z, adjoint_d


class PriorConstraint(Constraint):
    """The variable z = L x of a prior, from a volume x and multipliers ``y``, zero by default."""

    STATE = ("rho", "z", "d", "adjoint_d")

    def __init__(self, prior: Prior, x: Tensor, y: Tensor | None, rho: float) -> None:
        self._prior = prior
        self._operator = operator_of(prior, tuple(x.shape))
        self.z = self._operator(x)
        self.d = torch.zeros_like(self.z) if y is None else y / rho
        adjoint = self._operator.adjoint
        super().__init__(rho, adjoint(self.z), adjoint(self.d), _spectrum(self._operator, x))

    @property
    def y(self) -> Tensor:
        """Multipliers: a subgradient of the prior at z."""
        return self.rho * self.d

    def normal(self, x: Tensor) -> Tensor:
        """Return L^T L x."""
        return self._operator.normal(x)

    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""
        kx = self._operator(x)
        self.z = self._prior.prox(kx + self.d, 1 / self.rho)
        gap = kx - self.z
        self.d = self.d + gap
        self.penalty = self._prior(kx)
        self.primal = float(gap.norm())
        scales = kx.norm(), self.z.norm(), _LEAST_SCALE * x.norm()
        self.primal_scale = max(map(float, scales))
        self._record(self._operator.adjoint(self.z), self._operator.adjoint(self.d))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, which does not hold K^T z."""
        super().load_state_dict(state)
        self.adjoint_z = self._operator.adjoint(self.z)

    def _scale_multipliers(self, factor: float) -> None:
        self.d = self.d * factor


class PaddedConstraint(Constraint):
    r"""The variable :math:`z = P x`, the padded volume, with the data term :math:`\frac12 z^T C z`.

    Its proximal map divides by :math:`C / \rho + 1` in Fourier space, and :math:`P^T P = I`, so
    that nothing is left to solve. ``penalty`` is :math:`\frac12 x^T H^T H x`.

    Only the spectrum of d is kept: two transforms of the padded grid an iteration.
    """

    STATE = ("rho", "d_hat", "adjoint_z", "adjoint_d")

    def __init__(self, operator: Convolution, x: Tensor, rho: float) -> None:
        self._operator = operator
        self._c = operator.spectrum.to(x)
        # Where C is slightly indefinite only a stiff constraint keeps the whole problem convex.
        self.lowest_rho = max(0.0, -2 * float(self._c.min()))
        rho = max(rho, self.lowest_rho)
        self._shape = operator.padded_shape
        self.d_hat = torch.fft.rfftn(operator.pad(x)) * (self._c / rho)
        adjoint_d = operator.crop(torch.fft.irfftn(self.d_hat, s=self._shape))
        super().__init__(rho, x, adjoint_d, x.new_ones(()))

    def normal(self, x: Tensor) -> Tensor:
        """Return P^T P x, which is x."""
        return x

    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""
        x_hat = torch.fft.rfftn(self._operator.pad(x))
        u_hat = x_hat + self.d_hat
        z_hat = u_hat / (1 + self._c / self.rho)
        self.d_hat = u_hat - z_hat
        self.penalty = 0.5 * self._dot(x_hat, self._c * x_hat)
        self.primal = self._dot(x_hat - z_hat, x_hat - z_hat) ** 0.5
        self.primal_scale = max(float(x.norm()), self._dot(z_hat, z_hat) ** 0.5)
        adjoint_z = self._operator.crop(torch.fft.irfftn(z_hat, s=self._shape))
        self._record(adjoint_z, self.adjoint_d + x - adjoint_z)

    def _dot(self, a: Tensor, b: Tensor) -> float:
        """Return the inner product of two volumes by their half-spectra."""
        products = torch.sum((a * b.conj()).real, dim=(0, 1), dtype=torch.float64)
        twice = products[1:-1] if self._shape[2] % 2 == 0 else products[1:]
        total = float(products.sum() + twice.sum())
        return max(total, 0.0) / torch.Size(self._shape).numel()

    def _scale_multipliers(self, factor: float) -> None:
        self.d_hat = self.d_hat * factor


def is_diagonal_in_fourier(operator: LinearOperator) -> bool:
    """Return whether L^T L is circulant and its eigenvalues are known."""
    neumann = isinstance(operator, Gradient) and operator.boundary != "periodic"
    return hasattr(operator, "normal_spectrum") and not neumann


def _spectrum(operator: LinearOperator, x: Tensor) -> Tensor:
    """Return the eigenvalues of the circulant matrix that L^T L is, or is close to."""
    if isinstance(operator, Gradient):
        return Gradient(tuple(x.shape)).normal_spectrum(x)
    if is_diagonal_in_fourier(operator):
        spectrum: Tensor = operator.normal_spectrum(x)  # type: ignore[attr-defined]  # just asked
        return spectrum
    return x.new_tensor(mean_eigenvalue(operator.normal, x))
