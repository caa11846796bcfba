"""The laws that every linear operator obeys; ``check_operator`` raises AssertionError otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitreous.linop.operator import LinearOperator


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference relative to the largest magnitude of ``b``."""
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    scale = max(b.abs().max().item(), 1e-300)
    return (a - b).abs().max().item() / scale


def random_like(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check_operator(
    op: LinearOperator,
    *,
    make_domain: Callable[[int], Tensor] | None = None,
    make_range: Callable[[int], Tensor] | None = None,
    rtol: float = 1e-10,
    batched: bool = True,
    differentiable_adjoint: bool = True,
    seed: int = 0,
) -> None:
    """Check all laws of ``op``, which must have been built in float64.

    Args:
        op: the operator.
        make_domain, make_range: draw an element of the domain or range from a seed; standard
            normal of ``domain_shape`` and ``range_shape`` by default.
        rtol: relative tolerance.
        batched: whether ``op`` takes one more leading dimension.
        differentiable_adjoint: whether gradients flow through ``adjoint`` too.
        seed: varies the random elements.
    """
    draw_x = make_domain or (lambda s: random_like(op.domain_shape, s))
    draw_y = make_range or (lambda s: random_like(op.range_shape, s))
    x, other = draw_x(10 * seed + 1), draw_x(10 * seed + 2)
    y = draw_y(10 * seed + 3)
    assert x.dtype == y.dtype == torch.float64, "the laws are checked in float64"

    check_shapes_and_purity(op, x, y)
    check_linearity(op, x, other, y, draw_y(10 * seed + 4), rtol)
    check_adjoint(op, x, y, rtol)
    check_normal(op, x, rtol)
    check_gradient("forward", op.forward, x, y, op.adjoint(y), rtol)
    if differentiable_adjoint:
        check_gradient("adjoint", op.adjoint, y, x, op.forward(x), rtol)
    if batched:
        check_batch(op, torch.stack([x, other, x - other]), y, rtol)


def check_shapes_and_purity(op: LinearOperator, x: Tensor, y: Tensor) -> None:
    x_before, y_before = x.clone(), y.clone()
    forward, adjoint = op.forward(x), op.adjoint(y)
    assert tuple(x.shape) == tuple(op.domain_shape), "make_domain disagrees with domain_shape"
    assert tuple(forward.shape) == tuple(op.range_shape), "forward leaves range_shape"
    assert tuple(adjoint.shape) == tuple(op.domain_shape), "adjoint leaves domain_shape"
    assert forward.dtype == torch.float64, f"forward casts float64 to {forward.dtype}"
    assert adjoint.dtype == torch.float64, f"adjoint casts float64 to {adjoint.dtype}"
    op.normal(x)
    assert torch.equal(x, x_before), "forward or normal changes its argument"
    assert torch.equal(y, y_before), "adjoint changes its argument"
    assert torch.equal(op.forward(x), forward), "forward is not repeatable"
    assert torch.equal(op(x), forward), "__call__ is not forward"


def check_linearity(
    op: LinearOperator, x: Tensor, other: Tensor, y: Tensor, other_y: Tensor, rtol: float
) -> None:
    a, b = 0.7, -1.9
    for name, function, u, v in (
        ("forward", op.forward, x, other),
        ("adjoint", op.adjoint, y, other_y),
    ):
        difference = relative_difference(function(a * u + b * v), a * function(u) + b * function(v))
        assert difference < rtol, f"{name} is not linear: {difference:.2e}"


def check_adjoint(op: LinearOperator, x: Tensor, y: Tensor, rtol: float) -> None:
    """<A x, y> = <x, A^T y>, relative to |A x| |y|, which never vanishes by cancellation."""
    forward = op.forward(x)
    left, right = (forward * y).sum().item(), (x * op.adjoint(y)).sum().item()
    scale = max((forward.norm() * y.norm()).item(), 1e-300)
    difference = abs(left - right) / scale
    assert difference < rtol, f"adjoint is not the adjoint: {left} and {right}, {difference:.2e}"


def check_normal(op: LinearOperator, x: Tensor, rtol: float) -> None:
    difference = relative_difference(op.normal(x), op.adjoint(op.forward(x)))
    assert difference < rtol, f"normal is not adjoint(forward): {difference:.2e}"


def check_gradient(
    name: str,
    function: Callable[[Tensor], Tensor],
    u: Tensor,
    v: Tensor,
    value: Tensor,
    rtol: float,
) -> None:
    """The vector-Jacobian product with ``v`` of a linear function is its adjoint's value at v."""
    leaf = u.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((function(leaf) * v).sum(), leaf)
    difference = relative_difference(gradient, value)
    assert difference < rtol, f"gradient of {name} is wrong: {difference:.2e}"


def check_batch(op: LinearOperator, xs: Tensor, y: Tensor, rtol: float) -> None:
    looped = torch.stack([op.forward(x) for x in xs])
    difference = relative_difference(op.forward(xs), looped)
    assert difference < rtol, f"batched forward differs from a loop: {difference:.2e}"
    ys = torch.stack([y, 2 * y, y.flip(-1)])
    looped = torch.stack([op.adjoint(one) for one in ys])
    difference = relative_difference(op.adjoint(ys), looped)
    assert difference < rtol, f"batched adjoint differs from a loop: {difference:.2e}"
