"""Conjugate gradients against a dense solve; warm starts and preconditioners save steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.optim.conjugate_gradient import conjugate_gradient, largest_eigenvalue

N = 24


def system(condition: float = 1e4) -> tuple[Tensor, Tensor]:
    """A positive matrix with a wide spectrum, and a right-hand side."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), N).double()
    return (basis * eigenvalues) @ basis.mT, torch.randn(N, generator=generator).double()


def test_against_a_dense_solve() -> None:
    matrix, b = system()
    result = conjugate_gradient(lambda v: matrix @ v, b, iterations=200, tolerance=1e-12)
    assert torch.allclose(result.x, torch.linalg.solve(matrix, b), rtol=1e-7)
    true = float((b - matrix @ result.x).norm() / b.norm())
    assert result.residuals[-1] == pytest.approx(true, abs=1e-12)


def test_any_shape() -> None:
    matrix, b = system(10.0)
    shaped = b.reshape(2, 3, 4)
    result = conjugate_gradient(lambda v: (matrix @ v.flatten()).reshape(2, 3, 4), shaped)
    assert torch.allclose(result.x.flatten(), torch.linalg.solve(matrix, b), atol=1e-4)


def test_steps_and_tolerance_are_kept() -> None:
    matrix, b = system()
    assert len(conjugate_gradient(lambda v: matrix @ v, b, iterations=3).residuals) == 4
    result = conjugate_gradient(lambda v: matrix @ v, b, iterations=500, tolerance=1e-2)
    assert result.residuals[-1] <= 1e-2 < result.residuals[-2]


def test_a_warm_start_needs_no_step_and_is_not_changed() -> None:
    matrix, b = system()
    x = torch.linalg.solve(matrix, b)
    kept = x.clone()
    assert len(conjugate_gradient(lambda v: matrix @ v, b, x, tolerance=1e-9).residuals) == 1
    result = conjugate_gradient(lambda v: matrix @ v, b, 0.9 * x, iterations=5)
    assert result.residuals[0] == pytest.approx(0.1)
    known = conjugate_gradient(
        lambda v: matrix @ v, b, 0.9 * x, applied=matrix @ (0.9 * x), iterations=5
    )
    assert torch.equal(known.x, result.x)
    assert torch.equal(x, kept)


def test_a_preconditioner_saves_steps() -> None:
    scale = torch.logspace(0, 5, N, dtype=torch.float64)
    matrix, b = system(10.0)
    matrix = scale[:, None].sqrt() * matrix * scale.sqrt()
    plain = conjugate_gradient(lambda v: matrix @ v, b, iterations=500, tolerance=1e-8)
    better = conjugate_gradient(
        lambda v: matrix @ v, b, preconditioner=lambda v: v / scale, iterations=500, tolerance=1e-8
    )
    assert len(better.residuals) < 0.5 * len(plain.residuals)
    assert torch.allclose(better.x, torch.linalg.solve(matrix, b), rtol=1e-3)


def test_zero_and_singular_systems() -> None:
    matrix, b = system()
    assert conjugate_gradient(lambda v: matrix @ v, 0 * b).x.abs().max() == 0
    assert conjugate_gradient(lambda v: 0 * v, b).x.isfinite().all()


def test_largest_eigenvalue() -> None:
    matrix, b = system()
    value = largest_eigenvalue(lambda v: matrix @ v, b, 100)
    assert value == pytest.approx(1.0, rel=0.01)
    assert value <= 1 + 1e-12
