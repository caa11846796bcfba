"""Finite differences and wavelets obey the contracts; spectra and oracles agree with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import pywt
import torch

from contracts import check_operator, random_like
from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import Identity, LinearOperator
from vitreous.linop.wavelet import Wavelet

SHAPES = [(8, 8, 8), (4, 6, 10), (5, 7, 3)]
BUILDERS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    "periodic": lambda shape: Gradient(shape, "periodic"),
    "neumann": lambda shape: Gradient(shape, "neumann"),
    "haar": lambda shape: Wavelet(shape, "haar", 1),
    "db2": lambda shape: Wavelet(shape, "db2", 2),
    "identity": Identity,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BUILDERS)
def test_contracts(name: str, shape: tuple[int, ...]) -> None:
    check_operator(BUILDERS[name](shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["periodic", "db2", "identity"])
def test_the_normal_operator_is_diagonal_in_fourier_space(
    name: str, shape: tuple[int, ...]
) -> None:
    operator, x = BUILDERS[name](shape), random_like(shape, 1)
    spectrum = operator.normal_spectrum(x)  # type: ignore[attr-defined]
    filtered = torch.fft.irfftn(torch.fft.rfftn(x) * spectrum, s=shape)
    assert torch.allclose(filtered, operator.normal(x), atol=1e-10)


def test_differences_at_the_boundary() -> None:
    ramp = torch.arange(4.0).reshape(4, 1, 1).expand(4, 3, 2)
    periodic, neumann = Gradient((4, 3, 2))(ramp), Gradient((4, 3, 2), "neumann")(ramp)
    assert periodic[0, :, 0, 0].tolist() == [1, 1, 1, -3]
    assert neumann[0, :, 0, 0].tolist() == [1, 1, 1, 0]
    assert periodic[1:].abs().max() == neumann[1:].abs().max() == 0
    with pytest.raises(ValueError, match="only periodic"):
        Gradient((4, 3, 2), "neumann").normal_spectrum(ramp)


@pytest.mark.filterwarnings("ignore:Level value")
@pytest.mark.parametrize(
    ("wavelet", "levels", "shape"),
    [("haar", 2, (8, 4, 12)), ("db2", 3, (8, 16, 24)), ("sym4", 2, (8, 8, 16))],
)
def test_wavelets_are_those_of_pywavelets(
    wavelet: str, levels: int, shape: tuple[int, ...]
) -> None:
    x = random_like(shape, 2)
    theirs = pywt.wavedecn(x.numpy(), wavelet, mode="periodization", level=levels)
    wanted = torch.from_numpy(pywt.coeffs_to_array(theirs)[0])
    assert torch.allclose(Wavelet(shape, wavelet, levels)(x), wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wavelets_keep_the_norm_and_invert(dtype: torch.dtype) -> None:
    operator, x = Wavelet((5, 8, 9), "db3", 2), torch.randn(5, 8, 9, dtype=dtype)
    w = operator(x)
    assert w.dtype == dtype
    assert w.norm().item() == pytest.approx(x.norm().item(), rel=1e-5)
    assert torch.allclose(operator.adjoint(w), x, atol=1e-5)
    assert operator.details(w).sum() == w.numel() - 2 * 2 * 3


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"axes \(z, y, x\)"):
        Gradient((4, 4))
    with pytest.raises(ValueError, match=r"axes \(z, y, x\)"):
        Wavelet((4, 4))
    with pytest.raises(ValueError, match=r"bior2\.2 is no orthogonal wavelet"):
        Wavelet((4, 4, 4), "bior2.2")
    with pytest.raises(ValueError, match="levels must be 1 or more, got 0"):
        Wavelet((4, 4, 4), "haar", 0)
