"""Images that cannot be computed with, and odd ones that can."""

import pytest
import torch

from vitreous.data.bad_images import finite_and_constant

NOISE = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
X = torch.linspace(-6, 6, 40)
BLOB = torch.exp(-(X**2 + X[:, None] ** 2))


def with_pixel(value):
    image = NOISE.clone()
    image[20, 20] = value
    return image


@pytest.mark.parametrize("value", [1e6, -1e20, 1e38, torch.nan, -torch.inf])
def test_fault_28_a_pixel_far_beyond_all_others_is_damage(value):
    finite, constant = finite_and_constant(torch.stack([NOISE, with_pixel(value)]))
    assert (finite.tolist(), constant.tolist()) == ([True, False], [False, False])


def test_fault_28_an_image_at_the_end_of_single_precision_is_damage():
    assert not finite_and_constant(3e38 * torch.sin(NOISE)[None])[0]


@pytest.mark.parametrize(
    "image",
    [with_pixel(1e3), 1e18 * NOISE, 1e-25 * NOISE, 1e6 + NOISE, BLOB, BLOB > 0.9, with_pixel(0)],
)
def test_other_images_are_none(image):
    finite, constant = finite_and_constant(image.float()[None])
    assert (finite.tolist(), constant.tolist()) == ([True], [False])
