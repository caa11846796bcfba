"""Finite differences of volumes, the operator L of total variation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vitreous.linop.operator import LinearOperator

Boundary = Literal["periodic", "neumann"]


class Gradient(LinearOperator):
    r"""Forward differences along z, y and x of volumes of a shape (z, y, x), any batch in front.

    :math:`(\nabla x)_a[k] = x[k + e_a] - x[k]`, where the last plane of axis a meets the first one
    (periodic) or has difference 0 (Neumann): ``(..., 3, z, y, x)``.

    Raises:
        ValueError: not three axes.

    Source: equation (2.11) of L. Donati's thesis (EPFL, 2020) and the text below it.

    >>> steps = Gradient((1, 1, 4))(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))
    >>> steps[2].flatten().tolist()
    [0.0, 1.0, 0.0, -1.0]
    """

    def __init__(self, shape: tuple[int, ...], boundary: Boundary = "periodic") -> None:
        if len(shape) != 3:
            raise ValueError(f"volumes have axes (z, y, x), got the shape {tuple(shape)}")
        self.boundary = boundary
        self.domain_shape = tuple(shape)
        self.range_shape = (3, *self.domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the differences ``(..., 3, z, y, x)`` of volumes ``(..., z, y, x)``."""
        steps = [self._inside(torch.roll(x, -1, dim) - x, dim) for dim in (-3, -2, -1)]
        return torch.stack(steps, -4)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return minus the divergence."""
        total = torch.zeros_like(y.select(-4, 0))
        for axis, dim in enumerate((-3, -2, -1)):
            flow = self._inside(y.select(-4, axis), dim)
            total = total + (torch.roll(flow, 1, dim) - flow)
        return total

    def normal(self, x: Tensor) -> Tensor:
        """Return minus the Laplacian, straight from the neighbours where the volume is periodic."""
        if self.boundary != "periodic":
            return super().normal(x)
        total = 6 * x
        for dim in (-3, -2, -1):
            total -= torch.roll(x, 1, dim)
            total -= torch.roll(x, -1, dim)
        return total

    def _inside(self, steps: Tensor, dim: int) -> Tensor:
        if self.boundary == "periodic":
            return steps
        kept = steps.clone()
        kept.narrow(dim, steps.shape[dim] - 1, 1).zero_()
        return kept

    def normal_spectrum(self, like: Tensor) -> Tensor:
        r"""Return the eigenvalues of :math:`L^T L`, ``(z, y, x // 2 + 1)`` in FFT order.

        :math:`\sum_a 2 - 2 \cos(2 \pi k_a / n_a)`, dtype and device of ``like``.

        Raises:
            ValueError: Neumann, which the FFT does not diagonalise.
        """
        if self.boundary != "periodic":
            raise ValueError(
                "only periodic differences are diagonal in Fourier space; "
                "take boundary='periodic' or conjugate gradients"
            )
        *_, n_x = self.domain_shape
        total = like.new_zeros(())
        for axis, n in enumerate(self.domain_shape):
            length = n_x // 2 + 1 if axis == 2 else n
            k = torch.arange(length, dtype=torch.float64, device=like.device)
            eigenvalues = 4 * torch.sin(math.pi * k / n).square()
            total = total + eigenvalues.to(like).reshape([-1 if a == axis else 1 for a in range(3)])
        return total
