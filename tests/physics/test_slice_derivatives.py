"""Slices with derivatives: against the projector and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.core.rotation import axis_angle_to_matrix, random_rotations
from vitreous.physics.projector import central_slices, oversampled_spectrum
from vitreous.physics.slice_derivatives import _on_any, band_points, slice_derivatives


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("n", [12, 13])
def test_slices_are_the_projectors_and_derivatives_those_of_turning(n: int) -> None:
    volume = torch.randn(n, n, n, generator=stream(), dtype=torch.float64)
    spectrum = oversampled_spectrum(volume)
    rotations = random_rotations(4, generator=stream(), dtype=torch.float64)
    jets = slice_derivatives(spectrum, rotations, n, 4.5)
    kx, ky, place = (torch.as_tensor(t) for t in band_points(n, 4.5))

    def slices(turn: Tensor) -> Tensor:
        turned = axis_angle_to_matrix(turn) @ rotations
        return central_slices(spectrum, turned, n).flatten(1)[:, place]

    torch.testing.assert_close(jets[..., 0], slices(torch.zeros(3, dtype=torch.float64)))
    expected = (-ky * jets[..., 1], kx * jets[..., 1], jets[..., 2])
    for axis, derivative in enumerate(expected):
        turn = torch.zeros(3, dtype=torch.float64)
        turn[axis] = 1e-5
        error = ((slices(turn) - slices(-turn)) / 2e-5 - derivative).abs()
        # windows end in a small jump, which few points meet
        assert (error < 1e-6 * derivative.abs().max()).double().mean() > 0.98


def test_the_misfits_gradient_is_autograds_through_the_projector() -> None:
    """Theorem 3's gradient, as Gauss-Newton has it: over rotation vectors, with CTF and shift."""
    n, radius, length = 12, 4.5, 12 * 2.0
    draw = stream()
    volume = torch.randn(n, n, n, generator=draw, dtype=torch.float64)
    spectrum, rotations = oversampled_spectrum(volume), random_rotations(4, generator=draw).double()
    kx, ky, place = (torch.as_tensor(t) for t in band_points(n, radius))
    transfer = torch.randn(4, len(kx), generator=draw, dtype=torch.float64)
    values = torch.randn(4, len(kx), 2, generator=draw, dtype=torch.float64)
    turn = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(4, 2, generator=draw, dtype=torch.float64).requires_grad_()

    def rest(slices: Tensor) -> Tensor:
        angle = -2 * torch.pi / length * (shift[:, :1] * kx + shift[:, 1:] * ky)
        return torch.view_as_complex(values) - transfer * torch.exp(1j * angle) * slices

    turned = axis_angle_to_matrix(turn) @ rotations
    misfit = rest(central_slices(spectrum, turned, n).flatten(1)[:, place]).abs().square().sum() / 2
    to_turn, to_shift = torch.autograd.grad(misfit, [turn, shift])

    jets = slice_derivatives(spectrum, rotations, n, radius)
    with torch.no_grad():
        left = rest(jets[..., 0])
        imaging = torch.view_as_complex(values) - rest(torch.ones_like(left))
    moved = imaging * jets[..., 0] * (-2j * torch.pi / length)
    columns = (-ky * jets[..., 1], kx * jets[..., 1], jets[..., 2])
    found = [-(left.conj() * imaging * one).real.sum(1) for one in columns]
    torch.testing.assert_close(torch.stack(found, 1), to_turn, rtol=1e-5, atol=1e-9)
    found = [-(left.conj() * moved * k).real.sum(1) for k in (kx, ky)]
    torch.testing.assert_close(torch.stack(found, 1), to_shift, rtol=1e-5, atol=1e-9)


def test_compiled_loop_and_torch_agree() -> None:
    spectrum = oversampled_spectrum(torch.randn(12, 12, 12, generator=stream()))
    rotations = random_rotations(3, generator=stream())
    one, other = (f(spectrum, rotations, 12, 5.0) for f in (slice_derivatives, _on_any))
    assert (one - other).abs().max() < 1e-4 * one.abs().max()


def test_bands_beyond_nyquist_and_foreign_spectra_are_refused() -> None:
    spectrum = oversampled_spectrum(torch.zeros(8, 8, 8))
    with pytest.raises(ValueError, match="below half of the box, got 4"):
        slice_derivatives(spectrum, torch.eye(3)[None], 8, 4)
    with pytest.raises(ValueError, match="not packed"):
        slice_derivatives(spectrum[:-1], torch.eye(3)[None], 8, 3)
