"""Slices with derivatives: against the projector and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.core.rotation import axis_angle_to_matrix, random_rotations
from vitreous.physics.projector import central_slices, oversampled_spectrum
from vitreous.physics.slice_jets import _on_any, band, slice_jets


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("n", [12, 13])
def test_slices_are_the_projectors_and_derivatives_those_of_turning(n: int) -> None:
    volume = torch.randn(n, n, n, generator=stream(), dtype=torch.float64)
    spectrum = oversampled_spectrum(volume)
    rotations = random_rotations(4, generator=stream(), dtype=torch.float64)
    jets = slice_jets(spectrum, rotations, n, 4.5)
    kx, ky, place = (torch.as_tensor(t) for t in band(n, 4.5))

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


def test_compiled_loop_and_torch_agree() -> None:
    spectrum = oversampled_spectrum(torch.randn(12, 12, 12, generator=stream()))
    rotations = random_rotations(3, generator=stream())
    one, other = (f(spectrum, rotations, 12, 5.0) for f in (slice_jets, _on_any))
    assert (one - other).abs().max() < 1e-4 * one.abs().max()


def test_bands_beyond_nyquist_and_foreign_spectra_are_refused() -> None:
    spectrum = oversampled_spectrum(torch.zeros(8, 8, 8))
    with pytest.raises(ValueError, match="below half of the box, got 4"):
        slice_jets(spectrum, torch.eye(3)[None], 8, 4)
    with pytest.raises(ValueError, match="not packed"):
        slice_jets(spectrum[:-1], torch.eye(3)[None], 8, 3)
