"""The convolution against H^T H written out, H^T b, symmetry, and the sums of sets of images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts import check_operator, random_like
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.core.symmetry import point_group
from vitreous.linop.operator import LinearOperator
from vitreous.physics.ctf import CTF
from vitreous.physics.kaiser_bessel import normal_equations
from vitreous.physics.kaiser_bessel.normal_equations import (
    ConvolutionOperator,
    NormalAccumulator,
    NormalEquations,
)
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.kernels import slice_torch
from vitreous.physics.projector import SliceSum
from vitreous.physics.shift import Shift

PIXEL = 2.0
IMAGES = 12
WINDOW = KaiserBessel()


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(n: int, b: int = IMAGES) -> tuple[Tensor, Tensor, Tensor, Optics]:
    """Images, rotations, shifts in Å, optics."""
    return (
        torch.randn(b, n, n, generator=stream(1)),
        random_rotations(b, generator=stream(2)),
        4 * torch.randn(b, 2, generator=stream(3)),
        Optics.uniform(b, b_factor_angstrom2=40.0),
    )


def imaging(n: int, scale: int, rotations: Tensor, shift: Tensor, optics: Optics) -> LinearOperator:
    inner = WindowProjector(rotations, n, WINDOW, scale)
    return CTF(optics, n, PIXEL) @ Shift(shift, n, PIXEL) @ inner


def summed(n: int, scale: int, symmetry: str = "C1", batch: int = IMAGES) -> NormalEquations:
    images, rotations, shift, optics = case(n)
    sums = NormalAccumulator(n, WINDOW, scale, symmetry=symmetry)
    for rows in torch.split(torch.arange(IMAGES), batch):
        sums.insert(images[rows], rotations[rows], shift[rows], optics[rows], PIXEL)
    return sums.equations()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def symmetric_kernel(n: int) -> Tensor:
    kernel = random_like((2 * n - 1,) * 3, 9)
    return kernel + kernel.flip(0, 1, 2)


@pytest.mark.parametrize("n", [4, 5, 7])
def test_convolution_obeys_the_contracts(n: int) -> None:
    check_operator(ConvolutionOperator(symmetric_kernel(n)))


@pytest.mark.parametrize("n", [4, 7])
def test_convolution_is_the_sum_over_lags(n: int) -> None:
    kernel, x = symmetric_kernel(n), random_like((n, n, n), 1)
    index = torch.cartesian_prod(*[torch.arange(n)] * 3)
    lag = index[:, None] - index + n - 1
    dense = kernel[lag[..., 0], lag[..., 1], lag[..., 2]]
    operator = ConvolutionOperator(kernel)
    expected = (dense @ x.flatten()).reshape(n, n, n)
    assert torch.allclose(operator(x), expected, atol=1e-10)
    assert operator.diagonal == kernel[n - 1, n - 1, n - 1]
    twice = operator + ConvolutionOperator(kernel)
    assert torch.allclose(twice(x), 2 * expected, atol=1e-10)
    assert twice.diagonal == 2 * operator.diagonal
    twin = normal_equations._convolve(x, operator.spectrum)
    assert torch.allclose(twin, expected, atol=1e-10)
    assert operator(x.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("n", "scale"), [(16, 1), (17, 1), (24, 2), (25, 2), (24, 3), (25, 3), (32, 4), (33, 4)]
)
def test_convolution_is_the_imaging_matrix_squared(n: int, scale: int) -> None:
    """White coefficients; CTF, shifts and B factors included."""
    images, *conditions = case(n)
    explicit = imaging(n, scale, *conditions)
    ours = summed(n, scale, batch=5)
    coefficients = torch.randn((lattice_size(n, scale),) * 3, generator=stream(5))
    assert relative(ours.operator(coefficients), explicit.normal(coefficients)) < 1e-3
    assert relative(ours.right_hand_side, explicit.adjoint(images)) < 1e-5
    assert ours.images == IMAGES


def test_the_objective_is_that_of_the_images() -> None:
    n, scale = 16, 2
    images, *conditions = case(n)
    coefficients = torch.randn(8, 8, 8, generator=stream(5))
    residual = imaging(n, scale, *conditions)(coefficients) - images
    ours = summed(n, scale)
    expected = residual.double().square().sum() / 2
    assert ours.objective(coefficients).item() == pytest.approx(expected.item(), rel=1e-3)
    leaf = coefficients.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ours.objective(leaf), leaf)
    assert relative(ours.gradient(coefficients), slope) < 1e-5


@pytest.mark.parametrize("symmetry", ["C2", "D2", "C3", "D3", "T"])
@pytest.mark.parametrize("n", [16, 17])
def test_symmetry_is_the_mean_over_all_copies(symmetry: str, n: int) -> None:
    images, rotations, shift, optics = case(n, 3)
    sums = NormalAccumulator(n, WINDOW, 2, symmetry=symmetry)
    sums.insert(images, rotations, shift, optics, PIXEL)
    ours = sums.equations()
    group = point_group(symmetry)
    coefficients = torch.randn((lattice_size(n, 2),) * 3, generator=stream(5))
    normal, matched = torch.zeros_like(coefficients), torch.zeros_like(coefficients)
    for matrix in group.matrices.float():
        explicit = imaging(n, 2, rotations @ matrix, shift, optics)
        normal += explicit.normal(coefficients) / group.order
        matched += explicit.adjoint(images) / group.order
    assert relative(ours.operator(coefficients), normal) < 1e-3
    assert relative(ours.right_hand_side, matched) < 2e-3


def test_halves_add_up_to_the_whole() -> None:
    images, rotations, shift, optics = case(16)
    halves = []
    for rows in (slice(0, 7), slice(7, IMAGES)):
        sums = NormalAccumulator(16, WINDOW, 2)
        sums.insert(images[rows], rotations[rows], shift[rows], optics[rows], PIXEL)
        halves.append(sums.equations())
    both, whole = halves[0] + halves[1], summed(16, 2)
    coefficients = torch.randn(8, 8, 8, generator=stream(5))
    assert relative(both.operator(coefficients), whole.operator(coefficients)) < 1e-6
    assert relative(both.right_hand_side, whole.right_hand_side) < 1e-6
    assert both.images == whole.images
    assert both.sum_of_squares == pytest.approx(whole.sum_of_squares)


def test_weights_count_images() -> None:
    images, rotations, shift, optics = case(16, 2)
    weighted, repeated = (NormalAccumulator(16, WINDOW, 2) for _ in range(2))
    weight = torch.tensor([1.0, 3.0])
    weighted.insert(images, rotations, shift, optics, PIXEL, weight=weight)
    rows = torch.tensor([0, 1, 1, 1])
    repeated.insert(images[rows], rotations[rows], shift[rows], optics[rows], PIXEL)
    a, b = weighted.equations(), repeated.equations()
    coefficients = torch.randn(8, 8, 8, generator=stream(5))
    assert relative(a.right_hand_side, b.right_hand_side) < 1e-5
    assert a.objective(coefficients).item() == pytest.approx(b.objective(coefficients).item(), 1e-5)


@pytest.mark.parametrize(("n", "scale"), [(16, 2), (8, 1)])
def test_no_eigenvalue_is_further_below_zero_than_interpolation_explains(
    n: int, scale: int
) -> None:
    ours = summed(n, scale)
    basis = torch.eye(512).reshape(512, 8, 8, 8)
    dense = ours.operator(basis).reshape(512, 512).double()
    eigenvalues = torch.linalg.eigvalsh((dense + dense.mT) / 2)
    assert eigenvalues[0] > -1e-5 * eigenvalues[-1]
    assert (dense - dense.mT).abs().max() < 1e-6 * dense.abs().max()


@pytest.mark.gpu
def test_the_gpu_makes_the_same_equations() -> None:
    images, rotations, shift, optics = case(16)
    device = torch.device("cuda")
    sums = NormalAccumulator(16, WINDOW, 2, symmetry="D3", device=device)
    on_device = (images.to(device), rotations.to(device), shift.to(device), optics.to(device))
    sums.insert(*on_device, PIXEL)
    ours, expected = sums.equations(), summed(16, 2, "D3")
    coefficients = torch.randn(8, 8, 8, generator=stream(5))
    there = ours.operator(coefficients.to(device)).cpu()
    assert relative(there, expected.operator(coefficients)) < 1e-5
    assert relative(ours.right_hand_side.cpu(), expected.right_hand_side) < 1e-4


def test_the_torch_loops_add_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = torch.randn(3, 8, 5, dtype=torch.complex64, generator=stream(1))
    rotations = random_rotations(3, generator=stream(2))
    volumes = []
    for twin in (False, True):
        if twin:
            monkeypatch.setattr("vitreous.physics.projector.slice_cpu", slice_torch)
        total = SliceSum(8, 20)
        total.insert(slices, rotations)
        total.insert(2 * slices, rotations)
        volumes.append(total.volume())
    assert relative(volumes[0], volumes[1]) < 1e-5
    assert volumes[0].abs().max() > 0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="cube of odd edge"):
        ConvolutionOperator(torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match=r"coefficients must end in \(2, 2, 2\)"):
        ConvolutionOperator(torch.zeros(3, 3, 3))(torch.zeros(3, 3, 3))
    with pytest.raises(ValueError, match="cubes differ"):
        ConvolutionOperator(torch.zeros(3, 3, 3)) + ConvolutionOperator(torch.zeros(5, 5, 5))
    sums = NormalAccumulator(8, WINDOW, 2)
    with pytest.raises(ValueError, match=r"images must be \(b, 8, 8\), got \(1, 9, 9\)"):
        sums.insert(torch.zeros(1, 9, 9), torch.eye(3)[None], None, None, PIXEL)
    with pytest.raises(ValueError, match=r"rotations must be \(b, 3, 3\)"):
        sums.insert(torch.zeros(1, 8, 8), torch.eye(3), None, None, PIXEL)
