r"""Priors of regularised least squares: a value R(x) and its proximal map.

A prior of your own is any object with a value and ``prox``; where it speaks of L x instead of x
(a gradient, wavelet coefficients), it also gives L by a method ``operator``.

Source: equations (2.10), (2.11), (2.18) and (2.19) of L. Donati's thesis (EPFL, 2020).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import Identity, LinearOperator
from vitreous.linop.wavelet import Wavelet
from vitreous.optim.admm_config import STRICT
from vitreous.optim.conjugate_gradient import dot, invert_circulant, largest_eigenvalue
from vitreous.optim.prox import lengths, project, prox_l1, prox_l21

if TYPE_CHECKING:
    from vitreous.optim.least_squares import LeastSquares


@runtime_checkable
class Prior(Protocol):
    """A penalty R(z) of a volume z = x or, with a method ``operator``, of z = L x.

    A prior with ``operator(shape) -> LinearOperator`` takes L x of volumes ``(z, y, x)`` of this
    shape; without one it takes the volume.

    >>> class Sparsity:
    ...     def __call__(self, z): return float(z.abs().sum())
    ...     def prox(self, z, step): return z.sign() * (z.abs() - step).clamp_min(0)
    >>> isinstance(Sparsity(), Prior)
    True
    """

    def __call__(self, z: Tensor) -> float:
        """Return R(z)."""

    def prox(self, z: Tensor, step: float) -> Tensor:
        r"""Return the u that minimises :math:`\frac12 \|u - z\|^2 + \text{step} \cdot R(u)`."""


@validated(frozen=True, config=STRICT)
class WeightedPrior(ABC):
    r"""A prior :math:`\lambda R(L x)` whose strength :math:`\lambda` can be chosen from the data.

    Args:
        strength: lambda of eq. (2.10), in units of the misfit per unit of R.

    Attributes:
        power_of_scale: minus the power of the lattice's spacing that R of one volume grows with.
        is_norm: whether R is a norm, so that lambda grows with the root of the number of images.
    """

    strength: NonNegativeFloat
    power_of_scale: ClassVar[float]
    is_norm: ClassVar[bool] = True

    @abstractmethod
    def operator(self, shape: tuple[int, ...]) -> LinearOperator:
        """Return L for volumes of this shape."""

    @abstractmethod
    def __call__(self, z: Tensor) -> float:
        """Return lambda R(z)."""

    @abstractmethod
    def prox(self, z: Tensor, step: float) -> Tensor:
        """Return the proximal map of ``step`` times lambda R."""

    @abstractmethod
    def strongest(self, equations: "LeastSquares") -> float:
        """Return a strength from which on nothing but the prior is left of the map."""


@validated(frozen=True, config=STRICT)
class TotalVariation(WeightedPrior):
    """Total variation, eq. (2.11): the summed length of the gradient's vectors.

    Args:
        strength: lambda.
        boundary: of the gradient; "neumann" needs the linear step "cg".

    >>> x = torch.zeros(4, 4, 4); x[2:] = 1.0
    >>> prior = TotalVariation(0.5)
    >>> prior(prior.operator((4, 4, 4))(x))
    16.0
    """

    boundary: Literal["periodic", "neumann"] = "periodic"
    power_of_scale = 2.0

    def operator(self, shape: tuple[int, ...]) -> Gradient:
        """Return the gradient."""
        return Gradient(shape, self.boundary)

    def __call__(self, z: Tensor) -> float:
        """Return lambda times the summed length of vectors ``(3, z, y, x)``."""
        return self.strength * float(lengths(z).sum(dtype=torch.float64))

    def prox(self, z: Tensor, step: float) -> Tensor:
        """Shorten every vector by ``step`` times lambda."""
        return prox_l21(z, self.strength * step)

    def strongest(self, equations: "LeastSquares") -> float:
        """Return the longest vector of the gradient field whose divergence is H^T b."""
        rhs = equations.right_hand_side
        gradient = Gradient(tuple(rhs.shape))
        spectrum = gradient.normal_spectrum(rhs)
        spectrum[0, 0, 0] = 1.0
        return _positive(lengths(gradient(invert_circulant(spectrum, rhs - rhs.mean()))))


@validated(frozen=True, config=STRICT)
class WaveletSparsity(WeightedPrior):
    """The summed magnitude of all but the coarsest wavelet coefficients.

    Args:
        strength: lambda.
        wavelet, levels: see :class:`~vitreous.linop.wavelet.Wavelet`.

    >>> WaveletSparsity(0.1).prox(torch.ones(8, 8, 8), 1.0).flatten()[-1].item()
    0.8999999761581421
    """

    wavelet: str = "db2"
    levels: PositiveInt = 3
    power_of_scale = 1.5

    def operator(self, shape: tuple[int, ...]) -> Wavelet:
        """Return the wavelet transform.

        Raises:
            ValueError: an unknown wavelet.
        """
        return Wavelet(shape, self.wavelet, self.levels)

    def __call__(self, z: Tensor) -> float:
        """Return lambda times the summed magnitude of detail coefficients."""
        details = self._details(z)
        return self.strength * float((details * z.abs()).sum(dtype=torch.float64))

    def prox(self, z: Tensor, step: float) -> Tensor:
        """Soft-threshold the detail coefficients."""
        return prox_l1(z, self.strength * step * self._details(z))

    def strongest(self, equations: "LeastSquares") -> float:
        """Return the largest detail coefficient of H^T b."""
        rhs = equations.right_hand_side
        z = self.operator(tuple(rhs.shape))(rhs)
        return _positive(z.abs() * self._details(z))

    def _details(self, z: Tensor) -> Tensor:
        """Return 1 for detail coefficients and 0 for the coarsest averages."""
        return self.operator(tuple(z.shape)).details(z)


@validated(frozen=True, config=STRICT)
class SquaredNorm(WeightedPrior):
    """Half the squared norm of the volume.

    >>> SquaredNorm(2.0)(torch.ones(1, 1, 3)), SquaredNorm(2.0).prox(torch.ones(1), 1.0).item()
    (3.0, 0.3333333432674408)
    """

    power_of_scale = 3.0
    is_norm = False

    def operator(self, shape: tuple[int, ...]) -> Identity:
        """Return the identity."""
        return Identity(shape)

    def __call__(self, z: Tensor) -> float:
        """Return lambda / 2 times the squared norm."""
        return 0.5 * self.strength * dot(z, z)

    def prox(self, z: Tensor, step: float) -> Tensor:
        """Shrink all values by the same factor."""
        return z / (1 + self.strength * step)

    def strongest(self, equations: "LeastSquares") -> float:
        """Return the largest eigenvalue of H^T H, with which every value is at least halved."""
        return largest_eigenvalue(equations.operator, equations.right_hand_side)


@dataclass(frozen=True)
class FeasibleSet:
    """The indicator of volumes that are nonnegative and vanish outside a mask.

    Args:
        nonnegative: whether values below 0 are forbidden.
        mask: bool ``(z, y, x)``; the volume vanishes where it is false. None: no mask.

    >>> FeasibleSet().prox(torch.tensor([-1.0, 2.0]), 1.0).tolist()
    [0.0, 2.0]
    """

    nonnegative: bool = True
    mask: Tensor | None = None

    def __call__(self, z: Tensor) -> float:
        """Return 0: a solver tells by its primal residual how far a volume is from the set."""
        return 0.0

    def prox(self, z: Tensor, step: float) -> Tensor:
        """Return the nearest volume of the set."""
        return project(z, nonnegative=self.nonnegative, mask=self.mask)


WEIGHTED: Mapping[str, type[WeightedPrior]] = {
    "tv": TotalVariation,
    "wavelet": WaveletSparsity,
    "l2": SquaredNorm,
}
"""Priors by the names that options have for them."""


def operator_of(prior: Prior, shape: tuple[int, ...]) -> LinearOperator:
    """Return L of a prior: its ``operator`` or, where it has none, the identity."""
    make = getattr(prior, "operator", None)
    operator: LinearOperator = Identity(shape) if make is None else make(shape)
    return operator


def penalty(prior: Prior | None, x: Tensor) -> float:
    """Return R(L x) of a volume, 0 without a prior.

    >>> penalty(SquaredNorm(2.0), torch.ones(1, 1, 3)), penalty(None, torch.ones(1, 1, 3))
    (3.0, 0.0)
    """
    return 0.0 if prior is None else prior(operator_of(prior, tuple(x.shape))(x))


def _positive(values: Tensor) -> float:
    return max(float(values.max()), torch.finfo(values.dtype).tiny)
