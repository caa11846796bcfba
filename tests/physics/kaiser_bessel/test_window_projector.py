"""H obeys the contracts and is the sum of projected windows that the thesis defines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts import check_operator, random_like
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.linop.operator import LinearOperator
from vitreous.physics.ctf import CTF
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.projector import project
from vitreous.physics.shift import Shift

PIXEL = 2.0


def rotations(b: int) -> Tensor:
    return random_rotations(b, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def imaging(n: int, window: KaiserBessel, scale: int, b: int = 2) -> LinearOperator:
    shift = 3 * random_like((b, 2), 4)
    optics = Optics.uniform(b, b_factor_angstrom2=30.0).to(torch.float64)
    return (
        CTF(optics, n, PIXEL)
        @ Shift(shift, n, PIXEL)
        @ WindowProjector(rotations(b), n, window, scale)
    )


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_contracts(n: int, scale: int) -> None:
    operator = imaging(n, KaiserBessel(), scale)
    assert type(operator) is WindowProjector  # CTF and shift are fused
    assert operator.domain_shape == (lattice_size(n, scale),) * 3
    check_operator(operator)


def sum_of_windows(
    coefficients: Tensor, matrices: Tensor, n: int, window: KaiserBessel, scale: int, finer: int
) -> Tensor:
    """Projected windows summed in real space at 1 / ``finer`` pixels, periodic beyond the edges."""
    size = len(coefficients)
    axis = (torch.arange(size, dtype=torch.float64) - size // 2) * scale
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    pixel = torch.arange(n * finer, dtype=torch.float64) / finer - n // 2
    images = []
    for matrix in matrices:
        moved = points @ matrix[:2].mT
        away = [pixel - moved[:, i, None] for i in (0, 1)]
        dx, dy = (a - n * (a / n).round() for a in away)
        distance = (dx[:, None] ** 2 + dy[:, :, None] ** 2).sqrt()
        footprint = torch.zeros_like(distance)
        near = distance < scale * window.support
        footprint[near] = scale * window.xray(distance[near] / scale)
        images.append(torch.einsum("k,kyx->yx", coefficients.flatten(), footprint))
    return torch.stack(images)


def inside_nyquist(fine: Tensor, n: int) -> Tensor:
    """Low-pass to the pixels' Nyquist circle and sample at whole pixels."""
    finer = fine.shape[-1] // n
    full = torch.fft.fftfreq(n * finer, 1 / (n * finer), dtype=torch.float64)
    kept = 4 * (full[:, None] ** 2 + full**2) < n**2
    return torch.fft.ifft2(torch.fft.fft2(fine) * kept).real[..., ::finer, ::finer]


@pytest.mark.parametrize(
    ("n", "scale", "window"),
    [
        (12, 1, KaiserBessel()),
        pytest.param(13, 1, KaiserBessel(), marks=pytest.mark.slow),
        (16, 2, KaiserBessel()),
        (17, 3, KaiserBessel()),
        pytest.param(20, 2, KaiserBessel(2, 19.0, 4.0), marks=pytest.mark.slow),
    ],
)
def test_images_are_sums_of_projected_windows(n: int, scale: int, window: KaiserBessel) -> None:
    """White coefficients to the corners of the cube: what is left is the projector's aliasing."""
    size, matrices = lattice_size(n, scale), rotations(3)
    coefficients = random_like((size,) * 3, 1)
    fine = sum_of_windows(coefficients, matrices, n, window, scale, 4 if scale == 1 else 2)
    expected = inside_nyquist(fine, n)
    ours = WindowProjector(matrices, n, window, scale)(coefficients)
    assert (ours - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("scale", [2, 3])
def test_dilated_windows_need_no_low_pass(scale: int) -> None:
    """From s = 2 on the window's spectrum ends inside the Nyquist circle, but for 5e-4 of it."""
    matrices, n = rotations(2), 16
    coefficients = random_like((lattice_size(n, scale),) * 3, 1)
    sampled = sum_of_windows(coefficients, matrices, n, KaiserBessel(), scale, 1)
    ours = WindowProjector(matrices, n, KaiserBessel(), scale)(coefficients)
    assert (ours - sampled).norm() < 1e-3 * sampled.norm()


def test_images_are_projections_of_the_expansion() -> None:
    n, scale, matrices = 32, 2, rotations(2)
    coefficients = torch.zeros(16, 16, 16, dtype=torch.float64)
    coefficients[6:11, 6:11, 6:11] = random_like((5, 5, 5), 1)
    ours = WindowProjector(matrices, n, KaiserBessel(), scale)(coefficients)
    expanded = project(KaiserBessel().expand(coefficients, n, scale), matrices)
    assert (ours - expanded).norm() < 2e-3 * expanded.norm()


def test_single_precision() -> None:
    n, scale = 16, 2
    x = random_like((8, 8, 8), 1)
    double = WindowProjector(rotations(2), n, KaiserBessel(), scale)(x)
    single = WindowProjector(rotations(2).float(), n, KaiserBessel(), scale)(x.float())
    assert single.dtype == torch.float32
    assert (single - double).norm() < 1e-5 * double.norm()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="whole number from 1, got 0"):
        WindowProjector(rotations(1), 8, KaiserBessel(), 0)
    operator = WindowProjector(rotations(1), 8, KaiserBessel(), 2)
    with pytest.raises(ValueError, match=r"coefficients must end in \(4, 4, 4\), got \(8, 8, 8\)"):
        operator(torch.zeros(8, 8, 8))
    with pytest.raises(ValueError, match=r"images must end in \(1, 8, 8\)"):
        operator.adjoint(torch.zeros(2, 8, 8))
    assert math.prod(operator.range_shape) == 64
