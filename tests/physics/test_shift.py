"""Shifts: whole pixels are rolls, sub-pixel ones move a smooth blob to where it should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.physics.shift import Shift, shift_phases


def shift_images(images: Tensor, shift_angstrom: Tensor, pixel_size_angstrom: float) -> Tensor:
    shift = Shift(shift_angstrom, images.shape[-1], pixel_size_angstrom)
    moved: Tensor = shift(images)
    return moved


def blob(n: int, x: float, y: float, sigma: float = 1.6) -> Tensor:
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["f64", "f32"]
)
def test_whole_pixels_are_circular_rolls(n: int, dtype: torch.dtype, tolerance: float) -> None:
    image = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for x, y in [(1, 0), (0, 1), (-3, 2), (n, -n), (5 * n + 1, 4)]:
        moved = shift_images(image, torch.tensor([x, y], dtype=dtype) * 1.5, 1.5)
        assert moved.dtype == dtype
        assert (moved - image.roll((y, x), (0, 1))).abs().max().item() < tolerance * 8


@pytest.mark.parametrize("n", [32, 33])
def test_sub_pixel_shift_moves_a_blob_by_plus_t(n: int) -> None:
    x, y = 2.37, -1.81
    moved = shift_images(blob(n, 0, 0), torch.tensor([x, y], dtype=torch.float64) * 2.0, 2.0)
    torch.testing.assert_close(moved, blob(n, x, y), atol=2e-6, rtol=0)


def test_shifts_compose_and_invert_in_odd_boxes() -> None:
    a = torch.tensor([1.3, -2.2], dtype=torch.float64)
    b = torch.tensor([0.4, 3.7], dtype=torch.float64)
    product = shift_phases(9, a, 1.0) * shift_phases(9, b, 1.0)
    torch.testing.assert_close(product, shift_phases(9, a + b, 1.0), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        shift_phases(9, -a, 1.0), shift_phases(9, a, 1.0).conj().resolve_conj()
    )


def test_even_box_multiplier_belongs_to_a_real_kernel() -> None:
    phases = shift_phases(8, torch.tensor([[0.3, -1.7]], dtype=torch.float64), 1.0)[0]
    for column in (0, 4):
        values = phases[:, column]
        torch.testing.assert_close(values, values.flip(0).roll(1, 0).conj().resolve_conj())
    assert phases[4, 0].imag.item() == 0


def test_batches_and_gradient() -> None:
    shifts = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = shift_images(images, shifts, 1.2)
    for b in range(3):
        torch.testing.assert_close(together[b], shift_images(images[b], shifts[b], 1.2))
    assert torch.autograd.gradcheck(
        lambda x, t: shift_images(x, t, 1.2), (images.requires_grad_(), shifts.requires_grad_())
    )
    zero = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: shift_images(images[:1], t, 1.2), (zero,))


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="shift_angstrom"):
        shift_phases(8, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="must end in"):
        shift_images(torch.zeros(4, 5), torch.zeros(2), 1.0)
