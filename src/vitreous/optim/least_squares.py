r"""Least squares by their normal equations, which replace the data.

.. math::

    \tfrac12 \|H x - b\|^2 = \tfrac12 x^T H^T H x - x^T H^T b + \tfrac12 \|b\|^2.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vitreous.linop.operator import LinearOperator
from vitreous.optim.conjugate_gradient import dot, mean_eigenvalue
from vitreous.physics.kaiser_bessel.normal_equations import NormalEquations


@runtime_checkable
class Convolution(Protocol):
    r"""An :math:`H^T H = P^T C P` that convolves the padded volume.

    P pads with zeros, :math:`P^T` crops, and C multiplies the padded grid's spectrum.
    """

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape ``(z, y, x)`` of the padded grid, at least twice the volume's less one."""

    @property
    def spectrum(self) -> Tensor:
        """Eigenvalues of C, real ``(z, y, x // 2 + 1)`` of the padded grid, in FFT order."""

    def pad(self, x: Tensor) -> Tensor:
        """Return P x."""

    def crop(self, w: Tensor) -> Tensor:
        """Return P^T w."""


@runtime_checkable
class NearCirculant(Protocol):
    """An H^T H with a circulant matrix close to it, which preconditions it."""

    @property
    def circulant(self) -> Tensor:
        """Eigenvalues of that matrix, broadcast to ``(z, y, x // 2 + 1)``, in FFT order."""


class CirculantNormal(LinearOperator):
    """An H^T H that is a circulant matrix: it multiplies the volume's own spectrum.

    Args:
        circulant: eigenvalues, real ``(z, y, x // 2 + 1)``, in FFT order.
        shape: of the volume, ``(z, y, x)``.

    >>> CirculantNormal(torch.full((2, 2, 2), 3.0), (2, 2, 2))(torch.ones(2, 2, 2))[0, 0].tolist()
    [3.0, 3.0]
    """

    def __init__(self, circulant: Tensor, shape: tuple[int, ...]) -> None:
        self.circulant = circulant
        self.domain_shape = self.range_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return H^T H x."""
        product: Tensor = torch.fft.irfftn(torch.fft.rfftn(x) * self.circulant, s=self.domain_shape)
        return product

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: H^T H is self-adjoint."""
        return self.forward(y)


class Normal(LinearOperator):
    """H^T H of an operator H.

    >>> from vitreous.linop.operator import Identity
    >>> Normal(Identity((2,)))(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self.domain_shape = self.range_shape = tuple(operator.domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return H^T H x."""
        return self._operator.normal(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same: H^T H is self-adjoint."""
        return self._operator.normal(y)


@dataclass(frozen=True)
class LeastSquares:
    """Normal equations of one set of images: H^T H, H^T b and |b|^2.

    Args:
        operator: self-adjoint, x to H^T H x, on volumes ``(z, y, x)``; also a
            :class:`Convolution` where "padded" steps are to be taken.
        right_hand_side: H^T b.
        sum_of_squares: |b|^2, summed over all measurements.

    Raises:
        ValueError: a right-hand side whose shape is not the operator's.

    >>> from vitreous.linop.operator import Identity
    >>> equations = LeastSquares(Identity((1, 1, 2)), torch.tensor([[[3.0, 4.0]]]), 25.0)
    >>> equations.misfit(equations.right_hand_side), equations.misfit(0 * equations.right_hand_side)
    (0.0, 12.5)
    """

    operator: LinearOperator
    right_hand_side: Tensor
    sum_of_squares: float

    def __post_init__(self) -> None:
        if tuple(self.right_hand_side.shape) != tuple(self.operator.domain_shape):
            raise ValueError(
                f"the operator takes {tuple(self.operator.domain_shape)}, "
                f"but H^T b is {tuple(self.right_hand_side.shape)}"
            )

    @classmethod
    def of_images(cls, equations: NormalEquations) -> "LeastSquares":
        """Take over the sums of a pass over images."""
        return cls(equations.operator, equations.right_hand_side, equations.sum_of_squares)

    @classmethod
    def of_data(cls, operator: LinearOperator, data: Tensor) -> "LeastSquares":
        """Make the normal equations of an operator H and its measurements b.

        >>> from vitreous.linop.operator import Identity
        >>> LeastSquares.of_data(Identity((1, 1, 2)), torch.ones(1, 1, 2)).sum_of_squares
        2.0
        """
        return cls(Normal(operator), operator.adjoint(data), dot(data, data))

    def misfit(self, x: Tensor) -> float:
        """Return 1/2 |H x - b|^2."""
        return self.misfit_from(x, dot(x, self.operator(x)))

    def misfit_from(self, x: Tensor, quadratic: float) -> float:
        """Return 1/2 |H x - b|^2, where x^T H^T H x is known."""
        return 0.5 * quadratic - dot(x, self.right_hand_side) + 0.5 * self.sum_of_squares

    def mean_eigenvalue(self) -> float:
        """Return the trace of H^T H over the number of voxels, from one random volume."""
        return mean_eigenvalue(self.operator, self.right_hand_side)


def optimal_circulant(operator: Convolution, shape: tuple[int, ...]) -> Tensor:
    r"""Return the spectrum of the circulant matrix nearest to :math:`P^T C P`, for preconditioning.

    Along each axis :math:`c_j = ((n - j) r_j + j r_{j - n}) / n`, r the kernel of C. Nonnegative
    where :math:`P^T C P` is. ``shape (z, y, x)`` is the volume's; the result is real ``(z, y, x //
    2 + 1)``.

    Source: T. F. Chan, SIAM J. Sci. Stat. Comput. 9 (1988) 766.
    """
    return nearest_circulant(torch.fft.irfftn(operator.spectrum, s=operator.padded_shape), shape)


def nearest_circulant(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the spectrum of the circulant matrix nearest to a convolution.

    See :func:`optimal_circulant`; ``shape (z, y, x)`` is the volume's. The periodic grid of the
    kernel, lag 0 first, has at least ``2 n - 1`` points along each axis of more than one voxel.

    >>> nearest_circulant(torch.eye(4)[0].reshape(1, 1, 4), (1, 1, 2)).flatten().tolist()
    [1.0, 1.0]
    """
    for dim, n in enumerate(shape):
        share = torch.arange(n, device=kernel.device).to(kernel) / n
        share = share.reshape([-1 if axis == dim else 1 for axis in range(3)])
        ahead = kernel.narrow(dim, 0, n)
        behind = torch.roll(kernel, n, dim).narrow(dim, 0, n)
        kernel = (1 - share) * ahead + share * behind
    return torch.fft.rfftn(kernel).real
