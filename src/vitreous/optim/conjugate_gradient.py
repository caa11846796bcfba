"""Conjugate gradients for self-adjoint positive systems, and their eigenvalues."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CgResult:
    """Solution of conjugate gradients."""

    x: Tensor  # the solution
    residuals: tuple[float, ...]  # :math:`\\|b - A x\\| / \\|b\\|` at the start and after each step
    residual: Tensor  # :math:`b - A x`, by the recurrence


def dot(x: Tensor, y: Tensor) -> float:
    """Return the inner product of real tensors, summed in double precision.

    >>> dot(torch.ones(3), torch.ones(3))
    3.0
    """
    return float(torch.sum(x * y, dtype=torch.float64))


@torch.no_grad()
def conjugate_gradient(
    operator: Linear,
    b: Tensor,
    x: Tensor | None = None,
    *,
    applied: Tensor | None = None,
    preconditioner: Linear | None = None,
    iterations: int = 50,
    tolerance: float = 1e-6,
) -> CgResult:
    r"""Solve :math:`A x = b`, A self-adjoint and positive (semi)definite.

    Args:
        operator: x to A x.
        b: right-hand side, real, of any shape.
        x: start; zero by default.
        applied: A x at the start, where it is known: saves one application.
        preconditioner: approximates the inverse of A; self-adjoint and positive.
        iterations: most steps, one application of A each.
        tolerance: stop at :math:`\|b - A x\| \le` this times :math:`\|b\|`.

    Source: Hestenes and Stiefel (1952); the inner loop of algorithm 1 of L. Donati's thesis
    (EPFL, 2020).

    >>> scale = torch.tensor([1.0, 2.0, 4.0])
    >>> result = conjugate_gradient(lambda v: scale * v, torch.ones(3))
    >>> [round(v, 4) for v in result.x.tolist()], len(result.residuals)
    ([1.0, 0.5, 0.25], 4)
    """
    solve = preconditioner or (lambda v: v)
    norm = max(dot(b, b) ** 0.5, torch.finfo(torch.float64).tiny)
    if x is None:
        x, r = torch.zeros_like(b), b.clone()
    else:
        r = b - (operator(x) if applied is None else applied)
    residuals = [dot(r, r) ** 0.5 / norm]
    z = solve(r)
    p, rz = z, dot(r, z)
    for _ in range(iterations):
        if residuals[-1] <= tolerance:
            break
        q = operator(p)
        curvature = dot(p, q)
        if not curvature > 0:
            break
        alpha = rz / curvature
        x = x + alpha * p
        r = r - alpha * q
        residuals.append(dot(r, r) ** 0.5 / norm)
        z = solve(r)
        rz, old = dot(r, z), rz
        p = z + (rz / old) * p
    return CgResult(x, tuple(residuals), r)


@torch.no_grad()
def largest_eigenvalue(operator: Linear, like: Tensor, iterations: int = 30) -> float:
    r"""Return the largest eigenvalue of a self-adjoint positive operator by power iteration.

    The result is too small: k steps on N unknowns leave a relative error of :math:`0.87 \ln N / (k
    - 1)` at most on average, commonly much less. ``like`` gives shape, dtype and device.

    Source: Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094, for the error.

    >>> scale = torch.tensor([1.0, 2.0, 4.0])
    >>> round(largest_eigenvalue(lambda v: scale * v, scale), 4)
    4.0
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    value = 0.0
    for _ in range(iterations):
        x = operator(x / x.norm().clamp_min(torch.finfo(x.dtype).tiny))
        value = float(x.norm())
    return value


def mean_eigenvalue(operator: Linear, like: Tensor) -> float:
    """Estimate the trace over the number of unknowns from one random vector like ``like``."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    return dot(probe, operator(probe)) / dot(probe, probe)


def invert_circulant(spectrum: Tensor, x: Tensor) -> Tensor:
    """Divide the half-spectrum of a volume by the eigenvalues of a circulant matrix."""
    solved: Tensor = torch.fft.irfftn(torch.fft.rfftn(x) / spectrum, s=tuple(x.shape))
    return solved
