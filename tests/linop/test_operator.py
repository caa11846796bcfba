"""Image-formation operators obey the contracts, fuse, and the contracts catch wrong operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import check_operator, random_like
from vitreous.core.params import Optics
from vitreous.linop.operator import Composition, FourierFilter, LinearOperator
from vitreous.physics.ctf import CTF
from vitreous.physics.shift import Shift


def draw_optics(b: int) -> Optics:
    generator = torch.Generator().manual_seed(b)
    jitter = torch.rand(3, b, generator=generator, dtype=torch.float64)
    optics = Optics.uniform(b, phase_shift_deg=20.0, b_factor_angstrom2=30.0).to(torch.float64)
    return Optics(
        *(8000 + 4000 * jitter[:2]),
        180 * jitter[2],
        optics.phase_shift_deg,
        optics.voltage_kv,
        optics.cs_mm,
        optics.amplitude_contrast,
        optics.b_factor_angstrom2,
    )


def draw_shift(b: int) -> Tensor:
    return 5 * torch.randn(b, 2, generator=torch.Generator().manual_seed(b), dtype=torch.float64)


class Dense(LinearOperator):
    """A matrix as an operator: stands for whatever cannot fuse."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        self.matrix = matrix
        self.domain_shape = self.range_shape = shape

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(*x.shape[: x.ndim - len(self.domain_shape)], -1)
        return (flat @ self.matrix.mT).reshape(x.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        flat = y.reshape(*y.shape[: y.ndim - len(self.range_shape)], -1)
        return (flat @ self.matrix).reshape(y.shape)


BUILDERS: dict[str, Callable[[int], LinearOperator]] = {
    "ctf": lambda n: CTF(draw_optics(2), n, 2.0),
    "ctf of one image": lambda n: CTF(draw_optics(1)[0], n, 2.0),
    "ctf with aperture": lambda n: CTF(draw_optics(2), n, 2.0, aperture_inv_angstrom=0.2),
    "shift": lambda n: Shift(draw_shift(2), n, 2.0),
    "fused": lambda n: CTF(draw_optics(2), n, 2.0) @ Shift(draw_shift(2), n, 2.0),
    "composition": lambda n: Composition(CTF(draw_optics(2), n, 2.0), Shift(draw_shift(2), n, 2.0)),
    "dense in between": lambda n: (
        Shift(draw_shift(2), n, 2.0)
        @ Dense(random_like((n * n, n * n), 5), (n, n))
        @ CTF(draw_optics(2), n, 2.0)
    ),
}


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("name", BUILDERS)
def test_contracts(name: str, n: int) -> None:
    check_operator(BUILDERS[name](n))


@pytest.mark.parametrize("n", [8, 9])
def test_ctf_is_self_adjoint(n: int) -> None:
    operator = CTF(draw_optics(2), n, 2.0)
    x = random_like(operator.domain_shape, 1)
    torch.testing.assert_close(operator.forward(x), operator.adjoint(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [8, 9])
def test_filters_fuse_to_exactly_what_they_do_apart(n: int) -> None:
    ctf, shift = CTF(draw_optics(2), n, 2.0), Shift(draw_shift(2), n, 2.0)
    fused, apart = ctf @ shift, Composition(ctf, shift)
    assert type(fused) is FourierFilter
    x = random_like(fused.domain_shape, 1)
    torch.testing.assert_close(fused(x), apart(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(fused.adjoint(x), apart.adjoint(x), atol=1e-12, rtol=0)


def test_chains_fuse_however_they_are_bracketed() -> None:
    ctf, shift = CTF(draw_optics(2), 8, 2.0), Shift(draw_shift(2), 8, 2.0)
    dense = Dense(random_like((64, 64), 5), (8, 8))
    x = random_like((2, 8, 8), 1)
    for chain in (ctf @ (shift @ dense), (ctf @ shift) @ dense, ctf @ shift @ dense):
        assert isinstance(chain, Composition)
        assert type(chain.outer) is FourierFilter
        assert chain.inner is dense
        torch.testing.assert_close(chain(x), ctf(shift(dense(x))))
    tail = dense @ ctf @ shift
    assert isinstance(tail, Composition)
    assert type(tail.inner) is FourierFilter
    torch.testing.assert_close(tail(x), dense(ctf(shift(x))))


def test_composition_of_one_filter_with_a_batch() -> None:
    common, many = CTF(draw_optics(1)[0], 8, 2.0), Shift(draw_shift(3), 8, 2.0)
    for operator in (common @ many, many @ common, Composition(common, many)):
        assert operator.domain_shape == operator.range_shape == (3, 8, 8)
        check_operator(operator)
    check_operator(Composition(many, common))


def test_gradient_reaches_the_parameters() -> None:
    shift = draw_shift(2).requires_grad_()
    operator = CTF(draw_optics(2), 8, 2.0) @ Shift(shift, 8, 2.0)
    (gradient,) = torch.autograd.grad(operator(random_like((2, 8, 8), 0)).square().sum(), shift)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    ctf = CTF(draw_optics(2), 8, 2.0)
    with pytest.raises(ValueError, match="cannot compose"):
        ctf @ CTF(draw_optics(3), 8, 2.0)
    with pytest.raises(ValueError, match="cannot compose"):
        ctf @ CTF(draw_optics(2), 9, 2.0)
    with pytest.raises(ValueError, match="images must end in"):
        ctf(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="multiplier must end in"):
        FourierFilter(torch.ones(8, 8), 8)
    with pytest.raises(TypeError):
        ctf @ torch.ones(8)  # type: ignore[operator]  # that it is refused is the test


class Good(LinearOperator):
    """A rectangular matrix; the subclasses below break one law each."""

    domain_shape = (3,)
    range_shape = (4,)

    def __init__(self) -> None:
        self.matrix = random_like((4, 3), 7)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


class WrongAdjoint(Good):
    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) * (1 + 1e-8)


class Inverse(Good):
    def adjoint(self, y: Tensor) -> Tensor:
        return y @ torch.linalg.pinv(self.matrix).mT


class Affine(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6


class WrongNormal(Good):
    def normal(self, x: Tensor) -> Tensor:
        return 1.00001 * super().normal(x)


class Mutating(Good):
    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x)
        x.data.mul_(1.5)
        return result


class SinglePrecision(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class WrongShape(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., None]


class MixesTheBatch(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(0) if x.ndim > 1 else x)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class WrongGradient(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Double.apply(x))


class WrongGradientOfTheAdjoint(Good):
    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(Double.apply(y))


def test_contracts_accept_a_good_operator() -> None:
    check_operator(Good())


@pytest.mark.parametrize(
    ("operator", "complaint"),
    [
        (WrongAdjoint, "not the adjoint"),
        (Inverse, "not the adjoint"),
        (Affine, "not linear"),
        (WrongNormal, "normal"),
        (Mutating, "changes its argument"),
        (SinglePrecision, "casts float64"),
        (WrongShape, "range_shape"),
        (MixesTheBatch, "loop"),
        (WrongGradient, "gradient of forward"),
        (WrongGradientOfTheAdjoint, "gradient of adjoint"),
    ],
)
def test_contracts_catch(operator: type[Good], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_operator(operator())
