"""Polyphase down-sampling and Gabor functions against loops, and what a shift does to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vitreous.core.resample import dihedral_images
from vitreous.nn.layers import GaborLayer, PolyphaseDown, initialise, polar_view


def _slow_polyphase(x: Tensor) -> Tensor:
    """The definition, image by image."""
    kept = []
    for image in x:
        best, most = image[:, ::2, ::2], -1.0
        for i in (0, 1):
            for j in (0, 1):
                component = image[:, i::2, j::2]
                norm = sum(float(value) ** 2 for value in component.flatten())
                if norm > most:
                    best, most = component, norm
        kept.append(best)
    return torch.stack(kept)


def test_polyphase_against_the_slow_reference(generator: torch.Generator) -> None:
    x = torch.randn(6, 3, 8, 10, generator=generator, dtype=torch.float64)
    assert torch.equal(PolyphaseDown()(x), _slow_polyphase(x))


def test_of_equal_components_the_first_is_kept() -> None:
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0]])[None, None]
    assert PolyphaseDown()(x).tolist() == [[[[2.0]]]]
    assert PolyphaseDown()(torch.ones(1, 1, 2, 2) * torch.tensor([1.0, -1.0])).item() == 1.0


def test_a_shift_before_polyphase_is_a_shift_after_it(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.float64)
    down = PolyphaseDown()(x)
    for y in range(8):
        for z in range(8):
            moved = PolyphaseDown()(x.roll((y, z), (-2, -1)))
            shifted = [down.roll((a, b), (-2, -1)) for a in range(4) for b in range(4)]
            assert any(torch.equal(moved, one) for one in shifted), (y, z)


def test_polyphase_refuses_odd_edges() -> None:
    with pytest.raises(ValueError, match="5 x 4"):
        PolyphaseDown()(torch.zeros(1, 1, 5, 4))


def _slow_gabor(layer: GaborLayer, x: Tensor) -> Tensor:
    b, inputs, h, w = x.shape
    r = layer.size // 2
    each = len(layer.omega) // inputs
    out = torch.zeros(b, len(layer.omega), h, w, dtype=x.dtype)
    parameters = [layer.omega, layer.theta, layer.psi, layer.sigma]
    for k in range(len(layer.omega)):
        omega, theta, psi, sigma = (float(p[k]) for p in parameters)
        kernel = {}
        for v in range(-r, r + 1):
            for u in range(-r, r + 1):
                along = u * math.cos(theta) + v * math.sin(theta)
                across = -u * math.sin(theta) + v * math.cos(theta)
                fall = math.exp(-(along**2 + across**2) / (2 * sigma**2))
                kernel[v, u] = math.cos(omega * along + psi) * fall
        norm = math.sqrt(sum(value**2 for value in kernel.values()))
        for (v, u), value in kernel.items():
            out[:, k] += value / norm * x[:, k // each].roll((-v, -u), (-2, -1))
    return out


@pytest.mark.parametrize("inputs", [1, 2])
def test_gabor_against_the_slow_reference(inputs: int, generator: torch.Generator) -> None:
    layer = GaborLayer(inputs, 3, 5, generator=generator).double()
    x = torch.randn(2, inputs, 6, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(layer(x), _slow_gabor(layer, x), atol=1e-6)


def test_every_number_of_a_gabor_function_is_trained(generator: torch.Generator) -> None:
    layer = GaborLayer(1, 4, 7, generator=generator)
    layer(torch.randn(2, 1, 8, 8, generator=generator)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all(), name


def test_gabor_refuses_kernels_without_a_middle() -> None:
    with pytest.raises(ValueError, match="got 4"):
        GaborLayer(1, 2, 4)


def test_weights_come_from_the_generator() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))
        layer = nn.Linear(400, 50)
        initialise(layer, torch.Generator().manual_seed(seed))
        made.append(layer.weight.detach())
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 1.01 / 400), rel=0.03)
        assert layer.bias.abs().max() == 0
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_quarter_turns_are_shifts_of_angle(generator: torch.Generator) -> None:
    images = torch.randn(2, 16, 16, generator=generator, dtype=torch.float64)
    turned = dihedral_images(images, 5)  # mirrors x, then swaps the axes
    moved = [polar_view(images).roll(rows, 1) for rows in (4, -4)]
    assert min((polar_view(turned) - one).abs().max().item() for one in moved) < 1e-12
    assert (polar_view(turned) - polar_view(images)).abs().max() > 0.1


def test_radii_and_angles_are_where_they_are_said_to_be() -> None:
    """A ramp along x is radius times cosine."""
    ramp = (torch.arange(16.0) - 8).expand(1, 16, 16)
    angle = torch.arange(16.0)[:, None] * (2 * math.pi / 16)
    expected = torch.linspace(0, 7, 16) * angle.cos()
    assert torch.allclose(polar_view(ramp)[0], expected, atol=1e-5)
