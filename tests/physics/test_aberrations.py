"""Aberrations beyond the CTF: images made by the formula are undone, and the CTF has even terms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import frequency_grid
from vitreous.core.params import Optics
from vitreous.physics.aberrations import (
    Distortion,
    distorted_shift,
    odd_phase,
    undistorted_shift,
    undo_distortion,
)
from vitreous.physics.ctf import ctf, ctf_half, electron_wavelength_angstrom
from vitreous.physics.insertion import weighted_slices

PIXEL = 2.0
MATRIX = torch.tensor([[1.021, 0.006], [-0.004, 0.985]], dtype=torch.float64)
ODD = torch.tensor([3.0, -5.0, 90.0, 140.0, -60.0, 80.0], dtype=torch.float64)
SHIFT = torch.tensor([[4.1, -2.3]], dtype=torch.float64)


def blobs(kx: Tensor, ky: Tensor) -> Tensor:
    """Spectrum of a few Gaussians, negligible beyond Nyquist and outside the box."""
    total = torch.zeros_like(kx + ky, dtype=torch.complex128)
    for x, y, width in ((9.0, -4.0, 3.4), (-7.0, 8.0, 4.0), (2.0, 13.0, 3.6)):
        decay = torch.exp(-2 * (math.pi * width) ** 2 * (kx**2 + ky**2))
        total = total + decay * torch.polar(
            torch.ones_like(decay), -2 * math.pi * (kx * x + ky * y)
        )
    return total


def image(n: int, spectrum: Tensor) -> Tensor:
    """Image whose origin is the middle pixel."""
    kx, ky = frequency_grid(n, PIXEL, dtype=torch.float64)
    start = (n // 2) * PIXEL
    ramp = -2 * math.pi * start * (kx + ky)
    return torch.fft.irfft2(spectrum * torch.polar(torch.ones_like(ramp), ramp), s=(n, n))[None]


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize("kind", ["matrix", "odd", "both"])
def test_images_by_the_formula_become_plain_ones(n: int, kind: str) -> None:
    matrix = torch.eye(2, dtype=torch.float64) if kind == "odd" else MATRIX
    odd = torch.zeros(6, dtype=torch.float64) if kind == "matrix" else ODD
    kx, ky = frequency_grid(n, PIXEL, dtype=torch.float64)
    kx, ky = kx + 0 * ky, ky + 0 * kx
    qx, qy = (matrix @ torch.stack([kx.flatten(), ky.flatten()])).reshape(2, *kx.shape)
    ramp = -2 * math.pi * (kx * SHIFT[0, 0] + ky * SHIFT[0, 1])
    phase = odd_phase(qx, qy, odd) + ramp
    made = image(n, blobs(qx, qy) * torch.polar(torch.ones_like(phase), phase))
    plain_shift = undistorted_shift(SHIFT, matrix[None])
    ramp = -2 * math.pi * (kx * plain_shift[0, 0] + ky * plain_shift[0, 1])
    want = image(n, blobs(kx, ky) * torch.polar(torch.ones_like(ramp), ramp))
    undone = undo_distortion(made.float(), matrix, odd, PIXEL)
    assert (made - want).abs().max() > 0.02 * want.abs().max()
    assert (undone - want).abs().max() < 2e-3 * want.abs().max()
    assert torch.allclose(distorted_shift(plain_shift, matrix[None]), SHIFT)


def test_groups_hold_the_images_of_equal_distortion() -> None:
    matrices = torch.stack([torch.eye(2), torch.eye(2) * 1.01, torch.eye(2)])
    groups = Distortion(matrices, torch.zeros(3, 6)).groups()
    assert sorted(rows.tolist() for rows in groups) == [[0, 2], [1]]


def test_even_terms_are_a_part_of_gamma() -> None:
    """Terms of second order are a defocus, the spherical one is a Cs; the others turn the rings."""
    plain = Optics.uniform(1, defocus_angstrom=9000.0)
    wavelength = electron_wavelength_angstrom(torch.tensor([300.0], dtype=torch.float64)).item()
    even = torch.zeros(1, 9, dtype=torch.float64)
    even[0, :2] = -wavelength / 2 * 400.0
    even[0, 3] = wavelength**3 / 4 * 0.3e7
    want = Optics.uniform(1, defocus_angstrom=9400.0, cs_mm=3.0)
    got = ctf_half(32, PIXEL, Optics(**{**vars(plain), "even_turns": even}))
    assert torch.allclose(got, ctf_half(32, PIXEL, want), atol=1e-4)
    even = torch.zeros(1, 9, dtype=torch.float64)
    even[0, 5:] = torch.tensor([30.0, 0.0, 60.0, 0.0])
    k, zero = torch.tensor([[0.2]]), torch.tensor([[0.0]])
    optics = Optics(**{**vars(plain), "even_turns": even})
    along, across = ctf(k, zero, optics), ctf(zero, k, optics)
    gamma = torch.asin(-ctf(k, zero, plain))
    assert not torch.allclose(along, across)
    for value, turns in ((along, 90 * 0.2**4), (across, 30 * 0.2**4)):
        low = gamma + 2 * math.pi * turns
        high = math.pi - gamma + 2 * math.pi * turns
        assert min((value + torch.sin(low)).abs(), (value + torch.sin(high)).abs()) < 1e-4


def test_insertion_knows_the_fourth_order() -> None:
    optics = Optics.uniform(2)
    even = torch.zeros(2, 9, dtype=torch.float64)
    images = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    kernel = weighted_slices(images, None, optics, PIXEL)
    same = weighted_slices(images, None, Optics(**{**vars(optics), "even_turns": even}), PIXEL)
    assert torch.allclose(kernel, same, atol=1e-3)
    even[:, 7] = 40.0
    other = weighted_slices(images, None, Optics(**{**vars(optics), "even_turns": even}), PIXEL)
    assert not torch.allclose(kernel, other, atol=0.1)
