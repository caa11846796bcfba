"""The image generator: spectra of its own images, turned in their plane, at every box."""

from __future__ import annotations

import pytest
import torch

from vitreous.core.rotation import euler_to_matrix, random_rotations
from vitreous.nn.image_generator import ImageGenerator
from vitreous.physics.projector import central_slices, oversampled_spectrum, slices_to_images


def _made(n: int = 16, seed: int = 1) -> ImageGenerator:
    return ImageGenerator(n, 3, 4, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.mark.parametrize("n", [12, 16, 30, 32])
def test_slices_are_the_spectra_of_its_images(n: int, generator: torch.Generator) -> None:
    made = _made(n)
    latent = torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        images = slices_to_images(made.slices(latent, None), n)
    assert images.shape == (2, n, n)
    for image, z in zip(images, latent, strict=True):
        assert torch.allclose(image, made.volume(z), atol=1e-4)
    assert (images[0] - images[1]).norm() > 0.05 * images[0].norm()


def test_it_turns_as_the_projector_does(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation about z turns the projection of a volume, and an image, alike."""
    made = _made(16)
    image = torch.zeros(1, 16, 16)
    image[0, 6:11, 8:12] = torch.rand(5, 4, generator=generator)
    monkeypatch.setattr(made, "forward", lambda latent: image)
    rotation = euler_to_matrix(torch.tensor([[0.0, 0.0, 35.0]]))
    volume = torch.zeros(16, 16, 16)
    volume[8] = image[0]
    projected = central_slices(oversampled_spectrum(volume), rotation, 16)
    ours = made.slices(torch.zeros(1, 3), rotation)
    low = torch.zeros(16, 9)
    low[:5, :5] = low[-4:, :5] = 1.0
    assert ((ours - projected) * low).norm() < 0.05 * (projected * low).norm()


def test_a_smaller_box_shows_the_same(generator: torch.Generator) -> None:
    made = _made(16)
    latent = torch.randn(1, 3, generator=generator)
    with torch.no_grad():
        large = made.slices(latent, None, radius=4)[0] / 16**2
        made.set_box_size(8)
        small = made.slices(latent, None)[0] / 8**2
    rows = torch.tensor([0, 1, 2, 3, -3, -2, -1])
    assert torch.allclose(small[rows, :4], large[rows, :4], atol=1e-6)


def test_gradients_reach_every_weight(generator: torch.Generator) -> None:
    made = _made().train()
    latent = torch.randn(6, 3, generator=generator, requires_grad=True)
    weight = torch.randn(16, 9, generator=generator)
    (made.slices(latent, random_rotations(6, generator=generator)).abs() * weight).sum().backward()
    for name, leaf in [*made.named_parameters(), ("latent", latent)]:
        if name.endswith("bias") and name != "last.bias":
            continue  # batch norm takes a constant away again
        assert leaf.grad is not None, name
        assert leaf.grad.abs().max() > 0, name


def test_small_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 6"):
        ImageGenerator(6, 2)
