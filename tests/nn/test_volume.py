"""Voxel volumes: symmetric by construction, nothing outside the sphere, any start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.phantoms import protein_phantom
from vitreous.nn.volume import VoxelVolume


def _fit(volume: VoxelVolume, target: Tensor, steps: int) -> Tensor:
    """The volume after gradient steps towards a target, none of which knows of symmetry."""
    optimiser = torch.optim.Adam(volume.parameters(), 0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (volume() - target).square().sum().backward()
        optimiser.step()
    return volume().detach()


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("name", ["C1", "C2", "C4", "D2", "O"])
def test_symmetric_after_any_gradient_step(name: str, n: int, generator: torch.Generator) -> None:
    group = point_group(name)
    volume = VoxelVolume(n, name, 0.45 * n)
    stepped = _fit(volume, torch.randn(n, n, n, generator=generator), 1)
    assert stepped.abs().max() > 0.04
    assert torch.allclose(symmetrise(stepped, group), stepped, atol=1e-6)
    share = volume.free.numel() / n**3
    assert share < 1.5 / group.order + 0.1 if group.order > 1 else share == 1


@pytest.mark.parametrize("name", ["C3", "D3"])
def test_interpolated_groups_are_nearly_symmetric(name: str) -> None:
    """Axes that the grid does not know: a fit to a lopsided molecule is close to its symmetrised
    image, within what the interpolation damps (2 %)."""
    n, group = 20, point_group(name)
    target = protein_phantom(n, 8.0, seed=3, diameter_angstrom=100.0, resolution_angstrom=40.0)
    target = target / target.max()
    fitted = _fit(VoxelVolume(n, name, 0.45 * n), target, 60)
    wanted = symmetrise(target, group)

    def correlation(a: Tensor, b: Tensor) -> float:
        return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()

    assert correlation(target, wanted) < 0.85
    assert correlation(fitted, wanted) > 0.97
    assert correlation(fitted, symmetrise(fitted, group)) > 0.97


def test_nothing_outside_the_sphere(generator: torch.Generator) -> None:
    n, radius = 13, 4.5
    volume = VoxelVolume(n, "C1", radius, start=torch.randn(n, n, n, generator=generator))
    outside = radius_grid(n, 3) > radius
    assert volume()[outside].abs().max() == 0
    assert volume()[~outside].abs().min() > 0
    volume().sum().backward()
    gradient = volume.free.grad
    assert gradient is not None
    assert torch.equal(gradient.reshape(n, n, n) != 0, ~outside)


def test_starts_from_zero_and_from_other_boxes(generator: torch.Generator) -> None:
    assert VoxelVolume(16, "D2", 7.0)().abs().max() == 0
    small = fourier_resize(torch.randn(8, 8, 8, generator=generator), 12, 3)
    small = symmetrise(small, point_group("D2")) + 2.0
    volume = VoxelVolume(24, "D2", 11.0, start=small)
    inside = volume.mask > 0
    wanted = fourier_resize(small, 24, 3)
    assert torch.allclose(volume()[inside], wanted[inside], atol=1e-5)
    assert volume()[inside].mean().item() == pytest.approx(2.0, abs=0.2)


def test_start_is_copied_not_kept() -> None:
    start = torch.ones(8, 8, 8)
    volume = VoxelVolume(8, "C1", 3.5, start=start)
    with torch.no_grad():
        volume.free.zero_()
    assert torch.equal(start, torch.ones(8, 8, 8))


@pytest.mark.parametrize("name", ["C1", "D2"])
def test_radius_belongs_to_each_free_voxel(name: str) -> None:
    """Expanding the radii gives the distance from the centre, which no rotation changes."""
    volume = VoxelVolume(14, name, 6.0)
    expanded = volume(volume.radius_px)
    assert torch.allclose(expanded, radius_grid(14, 3) * volume.mask, atol=1e-5)


def test_other_values_do_not_touch_the_parameters(generator: torch.Generator) -> None:
    volume = VoxelVolume(10, "C2", 4.5)
    values = torch.randn(volume.free.shape, generator=generator)
    assert volume(values).abs().max() > 0
    assert volume().abs().max() == 0
