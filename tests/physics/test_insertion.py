"""Insertion against brute force over every frequency, its torch twin, and conservation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.core.symmetry import point_group
from vitreous.physics.ctf import ctf_half
from vitreous.physics.insertion import Accumulator, Gridding, weighted_slices
from vitreous.physics.kernels import insertion_torch
from vitreous.physics.kernels.insertion_points import half_disc
from vitreous.physics.shift import axis_phases

PIXEL = 2.5


def stream(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def optics(b: int, b_factor: float = 30.0) -> Optics:
    u = 8000 + 12000 * torch.rand(b, generator=stream(4))
    angle = 180 * torch.rand(b, generator=stream(5))
    plain = Optics.uniform(b, b_factor_angstrom2=b_factor)
    return replace(plain, defocus_u_angstrom=u, defocus_v_angstrom=u - 900, defocus_angle_deg=angle)


def case(b: int, n: int) -> tuple[Tensor, Tensor, Tensor, Optics, Tensor]:
    images = torch.randn(b, n, n, generator=stream(1))
    rotations = random_rotations(b, generator=stream(2))
    shift = 6 * torch.randn(b, 2, generator=stream(3))
    return images, rotations, shift, optics(b), 0.5 + torch.rand(b, generator=stream(6))


def gridded(
    values: Tensor, rotations: Tensor, n: int, symmetry: str = "C1", threads: int = 1
) -> Gridding:
    sums = Accumulator(n, sets=1, symmetry=symmetry, threads=threads)
    sums.insert(values, rotations)
    return sums.gridding(0)


def brute_force(
    images: Tensor, rotations: Tensor, shift: Tensor, ctf: Tensor, weight: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Every frequency of every image, both of each opposite pair, onto the whole fine grid."""
    n = images.shape[-1]
    c = n // 2
    numerator = np.zeros((2 * n + 3,) * 3, complex)
    denominator = np.zeros((2 * n + 3,) * 3)
    position = np.arange(n) - c
    for image, r, t, transfer, w in zip(images, rotations, shift, ctf, weight, strict=True):
        for ky, kx in itertools.product(range(-c, n - c), repeat=2):
            if 4 * (kx**2 + ky**2) >= n**2:
                continue
            wave = np.exp(-2j * np.pi * (ky * position[:, None] + kx * position) / n)
            y = (image.double().numpy() * wave).sum()
            ramp = np.exp(2j * np.pi * (kx * t[0].item() + ky * t[1].item()) / (n * PIXEL))
            half = (ky % n, kx) if kx >= 0 else (-ky % n, -kx)
            value = transfer[half].item()
            k = 2 * (kx * r[0].double() + ky * r[1].double()).numpy()
            base = np.floor(k).astype(int)
            for corner in itertools.product((0, 1), repeat=3):
                at = base + corner
                share = np.prod(1 - np.abs(k - at)) * w.item()
                x, yy, z = at + n + 1
                numerator[x, yy, z] += share * value * ramp * y
                denominator[x, yy, z] += share * value**2
    kept = slice(2, 2 * n + 1)
    return numerator[n + 1 : 2 * n + 1, kept, kept], denominator[n + 1 : 2 * n + 1, kept, kept]


@pytest.mark.parametrize("n", [6, 7])
def test_sums_are_those_over_every_frequency(n: int) -> None:
    images, rotations, shift, optic, weight = case(4, n)
    values = weighted_slices(images, shift, optic, PIXEL, weight=weight)
    ours = gridded(values, rotations, n)
    numerator, denominator = brute_force(
        images, rotations, shift, ctf_half(n, PIXEL, optic), weight
    )
    assert np.abs(ours.numerator.numpy() - numerator).max() < 1e-4 * np.abs(numerator).max()
    assert np.abs(ours.weight.numpy() - denominator).max() < 1e-4 * denominator.max()


@pytest.mark.parametrize("n", [16, 17])
def test_torch_twin_agrees(n: int) -> None:
    images, rotations, shift, optic, weight = case(5, n)
    values = weighted_slices(images, shift, optic, PIXEL, weight=weight)
    phases = axis_phases(n, shift + (n // 2) * PIXEL, PIXEL)
    spectra, transfer = torch.fft.rfft2(images), ctf_half(n, PIXEL, optic)
    twin = insertion_torch.weight(spectra, transfer, phases, weight, n)
    twin[:, 0] *= 0.5
    assert torch.allclose(twin, values, atol=2e-5 * float(values.abs().max()))

    sums = Accumulator(n, sets=2, symmetry="C3", threads=1)
    sums._loop = insertion_torch.insert
    sets = torch.tensor([0, 1, 1, 5, 0])
    sums.insert(values, rotations, sets)
    compiled = Accumulator(n, sets=2, symmetry="C3", threads=1)
    compiled.insert(values, rotations, sets)
    for s in (0, 1):
        a, b = sums.gridding(s), compiled.gridding(s)
        assert (a.numerator - b.numerator).abs().max() < 1e-4 * b.numerator.abs().max()
        assert (a.weight - b.weight).abs().max() < 1e-4 * b.weight.max()


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize("b_factor", [0.0, 80.0])
def test_the_fused_ctf_is_the_ctf(n: int, b_factor: float) -> None:
    b = 6
    points = half_disc(n)
    optic = optics(b, b_factor)
    impulse = torch.zeros(b, n, n)
    impulse[:, n // 2, n // 2] = 1.0
    values = weighted_slices(impulse, None, optic, PIXEL)
    expected = ctf_half(n, PIXEL, optic)[:, points.ky, points.kx]
    expected[:, 0] *= 0.5
    assert (values[..., 0] - expected).abs().max() < 3e-6
    assert values[..., 1].abs().max() < 3e-6
    expected[:, 0] *= math.sqrt(2)
    assert (values[..., 2] - expected.square()).abs().max() < 6e-6


def test_the_half_disc_holds_one_of_each_pair() -> None:
    for n in (8, 9):
        points = half_disc(n)
        both = {(x, y) for x, y in zip(points.kx.tolist(), points.ky.tolist(), strict=True)}
        both |= {(-x, -y) for x, y in both}
        inside = [
            (x, y)
            for x, y in itertools.product(range(-n, n + 1), repeat=2)
            if 4 * (x * x + y * y) < n * n
        ]
        assert both == set(inside)
        assert len(points.kx) == (len(inside) + 1) // 2


@pytest.mark.parametrize("n", [20, 21])
def test_the_number_of_threads_changes_rounding_only(n: int) -> None:
    images, rotations, shift, optic, _ = case(40, n)
    values = weighted_slices(images, shift, optic, PIXEL, threads=1)
    assert torch.equal(values, weighted_slices(images, shift, optic, PIXEL, threads=3))
    one = gridded(values, rotations, n)
    for threads in (2, 3, 5, 16):
        other = gridded(values, rotations, n, threads=threads)
        scale = float(one.numerator.abs().max())
        assert (one.numerator - other.numerator).abs().max() < 1e-6 * scale
        assert (one.weight - other.weight).abs().max() < 1e-6 * float(one.weight.max())


@pytest.mark.parametrize("turn", [0.0, 90.0, 45.0])
def test_slabs_meet_on_axes(turn: float) -> None:
    """Slices that lie in the planes where slabs and mirrored halves meet."""
    n = 16
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    rotations = torch.stack(
        [
            torch.tensor([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1.0]]),
            torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]),
            torch.tensor([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]),
        ]
    )
    values = weighted_slices(torch.randn(3, n, n, generator=stream()), None, None, PIXEL)
    one, many = gridded(values, rotations, n), gridded(values, rotations, n, threads=4)
    assert torch.allclose(one.weight, many.weight, atol=1e-6)
    assert torch.allclose(one.numerator, many.numerator, atol=1e-4)


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "D2", "D3", "T", "O", "I1"])
def test_symmetry_equals_inserting_all_copies(name: str) -> None:
    n = 9
    images, rotations, shift, optic, _ = case(3, n)
    values = weighted_slices(images, shift, optic, PIXEL)
    matrices = point_group(name).matrices
    copies = (rotations.double()[:, None] @ matrices).reshape(-1, 3, 3)
    brute = gridded(values.repeat_interleave(len(matrices), 0), copies, n)
    ours = gridded(values, rotations, n, name)
    scale = float(brute.numerator.abs().max())
    assert (ours.numerator - brute.numerator).abs().max() < 2e-5 * scale
    assert (ours.weight - brute.weight).abs().max() < 2e-5 * float(brute.weight.max())


def test_a_smaller_box_takes_the_inner_frequencies() -> None:
    images, _, shift, optic, _ = case(3, 16)
    inner = weighted_slices(images, shift, optic, PIXEL, box_size=9)
    whole = weighted_slices(images, shift, optic, PIXEL)
    large, small = half_disc(16), half_disc(9)
    place = {(x, y): i for i, (x, y) in enumerate(zip(large.kx, large.ky, strict=True))}
    same = torch.tensor([place[x, y] for x, y in zip(small.kx, small.ky, strict=True)])
    expected = whole[:, same] * torch.tensor([(9 / 16) ** 3, (9 / 16) ** 3, 1.0])
    assert torch.allclose(inner, expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_rotation_is_left_out() -> None:
    values = weighted_slices(torch.ones(3, 8, 8), None, None, PIXEL)
    rotations = torch.stack([torch.full((3, 3), torch.nan), 7 * torch.eye(3), torch.eye(3)])
    kept = gridded(values, rotations, 8)
    assert kept.numerator.isfinite().all()
    assert kept.numerator[0, 7, 7].real == 128.0  # zero frequency of the last two


def test_wrong_arguments_are_named() -> None:
    sums = Accumulator(8)
    values = weighted_slices(torch.ones(2, 8, 8), None, None, PIXEL)
    with pytest.raises(ValueError, match=r"rotations must be \(2, 3, 3\), got \(3, 3\)"):
        sums.insert(values, torch.eye(3))
    with pytest.raises(ValueError, match="boxes differ: 8 and 10"):
        sums.gridding(0) + Accumulator(10).gridding(0)
