"""The slice generator: Hermitian, its slices those of its own volume, band-limited, one latent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.core.grid import radius_grid
from vitreous.core.rotation import random_rotations
from vitreous.nn.siren import SliceGenerator
from vitreous.physics.projector import central_slices, oversampled_spectrum, slices_to_images


def _made(n: int = 16, generator: torch.Generator | None = None, **settings: int) -> SliceGenerator:
    """A generator whose every part is at work: displacements and modulations are not zero."""
    generator = generator or torch.Generator().manual_seed(4)
    made = SliceGenerator(n, 5, 12, 2, grid=5, generator=generator, **settings)
    with torch.no_grad():
        assert made.displacement is not None
        made.displacement.copy_(0.05 * torch.randn(1, 3, 5, 5, 5, generator=generator))
        made.mapping[-1].weight.mul_(8)
    return made


def test_coefficients_are_hermitian_and_smooth(generator: torch.Generator) -> None:
    made = _made().double()
    frequency = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    latent = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    there, back = (made.coefficients(s * frequency, latent) for s in (1, -1))
    assert torch.allclose(there[..., 0], back[..., 0], atol=1e-12)
    assert torch.allclose(there[..., 1], -back[..., 1], atol=1e-12)
    assert there[..., 1].abs().max() > 1e-3
    near = made.coefficients(frequency + 1e-7, latent)
    assert (near - there).abs().max() < 1e-5


@pytest.mark.parametrize("n", [12, 15, 16])
def test_axis_aligned_slices_are_those_of_the_volume(n: int, generator: torch.Generator) -> None:
    made = _made(n)
    latent = torch.randn(1, 5, generator=generator)
    spectrum = rfft_centered(made.volume(latent[0]), 3)
    with torch.no_grad():
        along_z = made.slices(latent, torch.eye(3)[None])[0]
        turned = torch.tensor([[[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]])  # R^T (kx, 0, 0) = -kx z
        along_x = made.slices(latent, turned)[0]
    most = spectrum.abs().max()
    assert (along_z - spectrum[0]).abs().max() < 1e-4 * most
    half = n // 2 + 1
    expected = spectrum[(-torch.arange(half)) % n, :, 0].T
    inside = along_x.abs() > 0
    assert (along_x - expected)[inside].abs().max() < 1e-4 * most


def test_any_slice_is_an_exact_sum_over_the_volume(generator: torch.Generator) -> None:
    """At points between those of the volume's grid only a volume inside its box can agree.

    Places near its middle, smoothed, make such a volume but for the kinks of the amplitude.
    """
    n = 24
    made = SliceGenerator(n, 3, 12, 1, grid=0, particle_radius=0.1, generator=generator).double()
    with torch.no_grad():
        made.log_amplitude.copy_(-0.04 * torch.arange(n // 2 + 1) ** 2)
        made.hidden[0].weight.mul_(0.2)
    latent = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    volume = made.volume(latent[0])
    rotation = random_rotations(1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slices = made.slices(latent, rotation)[0]
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    place = torch.stack([x, y, z], -1).reshape(-1, 3)
    for ky, kx in [(0, 1), (2, 3), (-4, 5), (6, 0)]:
        k = rotation[0].T @ torch.tensor([kx, ky, 0.0], dtype=torch.float64)
        phase = place @ k * (-2 * math.pi / n)
        exact = (volume.flatten() * torch.exp(1j * phase)).sum()
        assert abs(exact - slices[ky, kx]) < 1e-2 * slices.detach().abs().max()


def test_images_are_the_projectors_of_the_volume(generator: torch.Generator) -> None:
    made = SliceGenerator(24, 3, 12, 1, grid=0, particle_radius=0.15, generator=generator)
    with torch.no_grad():
        made.log_amplitude.copy_(-0.04 * torch.arange(13) ** 2)
        made.hidden[0].weight.mul_(0.2)
    latent = torch.randn(1, 3, generator=generator)
    rotation = random_rotations(3, generator=generator)
    with torch.no_grad():
        ours = slices_to_images(made.slices(latent.expand(3, 3), rotation), 24)
        spectrum = oversampled_spectrum(made.volume(latent[0]))
        theirs = slices_to_images(central_slices(spectrum, rotation, 24), 24)
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_slices_end_at_the_radius() -> None:
    made = _made()
    latent = torch.zeros(1, 5)
    kx, ky = torch.arange(9.0)[None, :], torch.fft.fftfreq(16, 1 / 16)[:, None]
    for radius in (None, 5.0):
        beyond = (kx**2 + ky**2).sqrt() >= (8 if radius is None else radius)
        slices = made.slices(latent, torch.eye(3)[None], radius=radius)[0].abs()
        assert slices[beyond].max() == 0
        assert slices[~beyond].min() > 0


def test_a_smaller_box_has_the_same_volume(generator: torch.Generator) -> None:
    made = _made(16)
    latent = torch.randn(1, 5, generator=generator)
    rotation = random_rotations(1, generator=generator)
    with torch.no_grad():
        large = made.slices(latent, rotation, radius=4)[0] / 16**2
        made.set_box_size(8)
        small = made.slices(latent, rotation)[0] / 8**2
        assert made.volume(latent[0]).shape == (8, 8, 8)
    rows = torch.tensor([0, 1, 2, 3, -3, -2, -1])
    assert torch.allclose(small[rows, :4], large[rows, :4], atol=1e-6)


def test_each_image_has_its_own_latent(generator: torch.Generator) -> None:
    made = _made()
    latent = torch.randn(3, 5, generator=generator)
    rotation = random_rotations(3, generator=generator)
    together = made.slices(latent, rotation)
    alone = torch.cat([made.slices(latent[i : i + 1], rotation[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4 * together.detach().abs().max().item())
    same = made.slices(latent, rotation[:1].expand(3, 3, 3))
    assert (same[0] - same[1]).abs().max() > 1e-2 * same.abs().max()


def test_first_images_are_of_order_one(generator: torch.Generator) -> None:
    made = SliceGenerator(32, 10, generator=generator)
    rotation = random_rotations(16, generator=generator)
    with torch.no_grad():
        images = slices_to_images(
            made.slices(torch.randn(16, 10, generator=generator), rotation), 32
        )
    assert 0.2 < images.std().item() < 5


def test_gradients_reach_every_weight_and_the_poses(generator: torch.Generator) -> None:
    made = _made()
    rotation = random_rotations(4, generator=generator).requires_grad_()
    latent = torch.randn(4, 5, generator=generator, requires_grad=True)
    weight = torch.randn(16, 9, generator=generator)
    (made.slices(latent, rotation).abs() * weight).sum().backward()
    leaves: dict[str, Tensor] = dict(made.named_parameters())
    for name, leaf in (leaves | {"rotation": rotation, "latent": latent}).items():
        assert leaf.grad is not None, name
        assert leaf.grad.abs().max() > 0, name


def test_weights_come_from_the_generator_alone() -> None:
    made = [SliceGenerator(8, 3, 6, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    first, again, other = (one.state_dict() for one in made)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["place"], other["place"])


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="got 4"):
        SliceGenerator(8, 2, grid=4)
    with pytest.raises(ValueError, match="got 0"):
        SliceGenerator(8, 2, layers=0)
    with pytest.raises(ValueError, match="got None"):
        SliceGenerator(8, 2).slices(torch.zeros(1, 2), None)


def test_the_volume_is_real_and_centred_on_its_places() -> None:
    """One place at the middle of the box: a blob there."""
    made = SliceGenerator(16, 2, 4, 1, grid=0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.place.zero_()
        volume = made.volume(torch.zeros(2)).abs()
    assert radius_grid(16, 3)[volume == volume.max()].item() == 0
