"""The linear generator: slices of its own volumes by the package's projector, boxes, gradients."""

from __future__ import annotations

import pytest
import torch

from vitreous.core.fourier import fourier_resize
from vitreous.core.rotation import random_rotations
from vitreous.nn.basis import BasisGenerator
from vitreous.physics.projector import central_slices, oversampled_spectrum


def _made(n: int = 16) -> BasisGenerator:
    generator = torch.Generator().manual_seed(2)
    made = BasisGenerator(n, 3, 2, gain=10.0, generator=generator)
    with torch.no_grad():
        made.voxels.copy_(torch.randn(made.voxels.shape, generator=generator))
    return made


def test_slices_are_those_of_each_images_own_volume(generator: torch.Generator) -> None:
    made = _made()
    latent = torch.randn(3, 3, generator=generator)
    rotation = random_rotations(3, generator=generator)
    with torch.no_grad():
        slices = made.slices(latent, rotation)
    for i in range(3):
        spectrum = oversampled_spectrum(made.volume(latent[i]))
        alone = central_slices(spectrum, rotation[i : i + 1], 16)[0]
        assert (slices[i] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_volumes_differ_and_end_at_the_mask(generator: torch.Generator) -> None:
    made = _made()
    one, other = (made.volume(torch.randn(3, generator=generator)) for _ in range(2))
    assert (one - other).norm() > 0.1 * one.norm()
    assert one[0, 0, 0] == 0
    assert ((one != 0) == made.inside).all()


def test_another_box_has_the_same_maps(generator: torch.Generator) -> None:
    made = _made(16)
    latent = torch.randn(3, generator=generator)
    before = made.volume(latent) / 4 * 16
    made.set_box_size(24)
    after = made.volume(latent) / 4 * 24
    expected = fourier_resize(before, 24, 3) * made.inside
    assert torch.allclose(after, expected, atol=1e-4 * expected.abs().max().item())
    assert made.voxels.requires_grad
    assert made.voxels.shape[1] == int(made.inside.sum())


def test_a_radius_limits_slices_and_volumes(generator: torch.Generator) -> None:
    made = _made()
    latent = torch.randn(1, 3, generator=generator)
    with torch.no_grad():
        slices = made.slices(latent, torch.eye(3)[None], radius=4.0)[0]
    assert slices[0, 3].abs() > 0
    assert slices[0, 4:].abs().max() == 0
    spectrum = torch.fft.rfftn(made.volume(latent[0], radius=4.0)).abs()
    assert spectrum[0, 0, 4:].max() < 1e-3 * spectrum.max()


def test_gradients_reach_every_weight(generator: torch.Generator) -> None:
    made = _made()
    latent = torch.randn(4, 3, generator=generator, requires_grad=True)
    made.slices(latent, random_rotations(4, generator=generator)).abs().sum().backward()
    for name, leaf in [*made.named_parameters(), ("latent", latent)]:
        assert leaf.grad is not None, name
        assert leaf.grad.abs().max() > 0, name


def test_rotations_are_needed() -> None:
    with pytest.raises(ValueError, match="got None"):
        _made().slices(torch.zeros(1, 3), None)


def test_a_mixture_has_shares_with_a_sum_of_one(generator: torch.Generator) -> None:
    made = BasisGenerator(16, 3, 4, mixture=True, generator=generator)
    shares = made._shares(torch.randn(50, 3, generator=generator)) * (16 / 4)
    assert torch.allclose(shares[:, 0], torch.ones(50))
    assert (shares[:, 1:] > 0).all()
    assert torch.allclose(shares[:, 1:].sum(1), torch.ones(50))
    with pytest.raises(ValueError, match="at least 2 maps"):
        BasisGenerator(16, 3, 1, mixture=True)


def test_maps_that_are_held_do_not_count_until_they_vary(generator: torch.Generator) -> None:
    made = _made()
    made.freeze_variation()
    places = torch.randn(2, 3, generator=generator)
    assert torch.equal(made.volume(places[0]), made.volume(places[1]))
    mean = made.volume(places[0])
    made.slices(places, random_rotations(2, generator=generator)).abs().sum().backward()
    slope = made.voxels.grad
    assert slope is not None
    assert slope[0].abs().max() > 0
    assert slope[1:].abs().max() == 0
    made.start_variation(generator)
    assert (made.volume(places[0]) - made.volume(places[1])).norm() > 0.05 * mean.norm()
    parts = made.voxels[1:].detach() / made.voxels[0].detach()
    assert 0.2 < parts.std() < 1.0  # a share of the mean at every voxel
