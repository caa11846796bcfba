"""Centred images: no cyclic shift of the input changes them, and gradients come through."""

from __future__ import annotations

import torch

from vitreous.methods.em.centring import centred, centring_template


def _images(generator: torch.Generator) -> torch.Tensor:
    axis = torch.arange(16.0) - 8
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / 8)
    return blob + 0.2 * torch.randn(5, 16, 16, generator=generator)


def test_cyclic_shifts_of_the_input_change_nothing(generator: torch.Generator) -> None:
    images = _images(generator)
    template = centring_template(images)
    still = centred(images, template)
    for shift in ((1, 0), (0, 5), (-3, 7), (8, 8)):
        assert torch.equal(centred(images.roll(shift, (-2, -1)), template), still)


def test_shifted_particles_come_to_the_middle(generator: torch.Generator) -> None:
    images = _images(generator)
    moved = images.roll((4, -3), (-2, -1))
    assert torch.equal(centred(moved, centring_template(images)), images)


def test_the_template_is_round_and_has_no_mean(generator: torch.Generator) -> None:
    template = centring_template(_images(generator))
    assert abs(float(template.mean())) < 1e-6
    assert torch.allclose(template[1:, 1:], template[1:, 1:].T)
    assert torch.allclose(template[1:, 1:], template[1:, 1:].flip(0))
    assert template.argmax() == 8 * 16 + 8


def test_the_gradient_of_a_pixel_goes_where_it_came_from(generator: torch.Generator) -> None:
    images = _images(generator).roll((2, 1), (-2, -1)).requires_grad_()
    out = centred(images, centring_template(_images(generator)))
    weight = torch.randn(out.shape, generator=generator)
    (slope,) = torch.autograd.grad((weight * out).sum(), images)
    assert torch.equal(slope, weight.roll((2, 1), (-2, -1)))
