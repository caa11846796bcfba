"""Linear operators with exact adjoints, their composition, and the filters of image formation.

``A = CTF(optics, n, pixel) @ Shift(t, n, pixel) @ Projector(rotations, n)`` reads like the forward
model; neighbours that are diagonal in Fourier space fuse into one multiplication.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class LinearOperator(ABC):
    """A linear map with its exact adjoint.

    ``domain_shape`` and ``range_shape`` are the shapes of one argument and of one result. More
    leading dimensions of the argument are a batch, where an operator says that it takes one.

    >>> class Twice(LinearOperator):
    ...     domain_shape = range_shape = (3,)
    ...     def forward(self, x): return 2 * x
    ...     def adjoint(self, y): return 2 * y
    >>> (Twice() @ Twice())(torch.ones(3)).tolist()
    [4.0, 4.0, 4.0]
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: the adjoint itself, never a weighted inverse."""

    def normal(self, x: Tensor) -> Tensor:
        """Return A^T A x; operators that know a shorter way override this."""
        return self.adjoint(self.forward(x))

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self.forward(x)

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """Return the composition that applies ``inner`` first, fused where ``inner`` knows how.

        Raises:
            ValueError: shapes that do not meet.
        """
        if not isinstance(inner, LinearOperator):
            return NotImplemented
        _composed_shapes(self, inner)
        fused = inner._fuse_left(self)
        return Composition(self, inner) if fused is None else fused

    def _fuse_left(self, left: LinearOperator) -> LinearOperator | None:
        """Return an operator that equals ``left @ self``, None where none is shorter."""
        return None


def on_each(
    function: Callable[[Tensor], Tensor], x: Tensor, shape: tuple[int, ...], name: str
) -> Tensor:
    """Apply a function of arrays of a shape to each of a batch ``(..., *shape)``.

    Raises:
        ValueError: ``x``, whose name is for the text, has another shape.

    >>> on_each(torch.sum, torch.ones(2, 5, 3), (3,), "vectors").shape
    torch.Size([2, 5])
    """
    if tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(f"{name} must end in {shape}, got {tuple(x.shape)}")
    results = [function(one) for one in x.reshape(-1, *shape)]
    stacked = results[0][None] if len(results) == 1 else torch.stack(results)
    return stacked.reshape(*x.shape[: -len(shape)], *stacked.shape[1:])


def _composed_shapes(
    outer: LinearOperator, inner: LinearOperator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return domain and range of ``outer @ inner``; leading dimensions of either are a batch."""
    wanted, given = outer.domain_shape, inner.range_shape
    common = min(len(wanted), len(given))
    if wanted[len(wanted) - common :] != given[len(given) - common :]:
        raise ValueError(
            f"cannot compose: {type(outer).__name__} takes {wanted}, "
            f"{type(inner).__name__} gives {given}"
        )
    domain = wanted[: len(wanted) - common] + inner.domain_shape
    return domain, given[: len(given) - common] + outer.range_shape


class Identity(LinearOperator):
    """Identity I, of any shape.

    >>> Identity((2,)).normal(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.domain_shape = self.range_shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the argument itself."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the argument itself."""
        return y

    def normal_spectrum(self, like: Tensor) -> Tensor:
        """Return the eigenvalues, to be broadcast; dtype and device of ``like``."""
        return like.new_ones(())


class Composition(LinearOperator):
    """``outer @ inner``; made by ``@``, kept nested to the right so that neighbours can fuse."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer = outer
        self.inner = inner
        self.domain_shape, self.range_shape = _composed_shapes(outer, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Apply ``inner``, then ``outer``."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint of ``outer``, then of ``inner``."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        """Return inner^T (outer^T outer) inner x, with the outer operator's own short way."""
        return self.inner.adjoint(self.outer.normal(self.inner.forward(x)))

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """Compose from the right, so that ``self.inner`` may fuse with the newcomer."""
        if not isinstance(inner, LinearOperator):
            return NotImplemented
        return self.outer @ (self.inner @ inner)

    def _fuse_left(self, left: LinearOperator) -> LinearOperator | None:
        fused = self.outer._fuse_left(left)
        return None if fused is None else fused @ self.inner


class FourierFilter(LinearOperator):
    r"""Circular convolution of real images: a multiplication of their Hermitian half-spectra.

    :math:`A x = F^{-1} (M \cdot F x)`; the adjoint multiplies by the conjugate of M.

    Takes any batch in front of its domain.

    Args:
        multiplier: M, ``(..., n, n // 2 + 1)`` in FFT order, real or complex. For filters to fuse
            exactly, column 0 and, in even boxes, column n / 2 must be Hermitian in ky,
            ``M[-ky] == conj(M[ky])``, as those of any real kernel are.
        n: box size in pixels, which the half-spectrum alone does not tell.

    Raises:
        ValueError: a multiplier that is no half-spectrum of that box.

    >>> double = FourierFilter(torch.full((4, 3), 2.0), 4)
    >>> triple = FourierFilter(torch.full((4, 3), 3.0), 4)
    >>> both = double @ triple
    >>> type(both).__name__, both(torch.ones(4, 4)).mean().item()
    ('FourierFilter', 6.0)
    """

    def __init__(self, multiplier: Tensor, n: int) -> None:
        if tuple(multiplier.shape[-2:]) != (n, n // 2 + 1):
            raise ValueError(
                f"multiplier must end in {(n, n // 2 + 1)} for boxes of {n} px, "
                f"got {tuple(multiplier.shape)}"
            )
        self.multiplier = multiplier
        self.n = n
        self.domain_shape = (*multiplier.shape[:-2], n, n)
        self.range_shape = self.domain_shape

    def _apply(self, multiplier: Tensor, x: Tensor) -> Tensor:
        if tuple(x.shape[x.ndim - len(self.domain_shape) :]) != self.domain_shape:
            raise ValueError(
                f"images must end in {self.domain_shape} for this filter, got {tuple(x.shape)}"
            )
        # A circular convolution does not depend on where the origin is: no centring is needed.
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * multiplier, s=(self.n, self.n))
        return filtered

    def forward(self, x: Tensor) -> Tensor:
        """Filter images ``(..., n, n)``."""
        return self._apply(self.multiplier, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Correlate instead of convolve: filter with the conjugate multiplier."""
        return self._apply(self.multiplier.conj(), y)

    def normal(self, x: Tensor) -> Tensor:
        """Filter with the squared magnitude, one pair of transforms instead of two."""
        return self._apply((self.multiplier * self.multiplier.conj()).real, x)

    def _fuse_left(self, left: LinearOperator) -> LinearOperator | None:
        if not isinstance(left, FourierFilter):
            return None
        return FourierFilter(left.multiplier * self.multiplier, self.n)
