import math

import pytest
import torch

from vitreous.core.rotation import euler_to_matrix, random_rotations
from vitreous.metrics.sampling import fibonacci_hemisphere, fourier_sampling


def turned(tilt: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Views at one tilt, turned about z and in the plane at random."""
    rot, psi = 360 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    return euler_to_matrix(torch.stack([rot, torch.full_like(rot, tilt), psi], dim=-1))


def test_uniform_views_are_complete(generator: torch.Generator) -> None:
    found = fourier_sampling(random_rotations(20_000, generator=generator))
    assert found.scf > 0.99
    assert found.empty == 0
    assert found.sampling.mean().item() == pytest.approx(1.0)


def test_side_views_are_as_in_the_paper(generator: torch.Generator) -> None:
    """S = 2 / (pi sin theta), so that SCF = 8 / pi^2."""
    found = fourier_sampling(turned(90.0, 20_000, generator), half_width_deg=1.0)
    assert found.scf == pytest.approx(8 / math.pi**2, abs=0.01)


def test_a_single_view_is_nothing_and_in_plane_turns_do_not_help(
    generator: torch.Generator,
) -> None:
    psi = 360 * torch.rand(5000, generator=generator, dtype=torch.float64)
    angles = torch.stack([torch.full_like(psi, 30.0), torch.full_like(psi, 50.0), psi], dim=-1)
    found = fourier_sampling(euler_to_matrix(angles))
    assert found.scf < 0.01
    assert found.empty > 0.9


def test_a_missing_cone_is_counted(generator: torch.Generator) -> None:
    """Views tilted by 40 degrees never see what is within 50 degrees of the axis."""
    found = fourier_sampling(turned(40.0, 20_000, generator), half_width_deg=0.5, points=4000)
    assert found.empty == pytest.approx(1 - math.cos(math.radians(49.5)), abs=0.01)
    assert found.scf < 0.1


def test_directions_are_even() -> None:
    points = fibonacci_hemisphere(1000)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(1000, dtype=torch.float64))
    nearest = (points @ points.mT - 2 * torch.eye(1000)).max(1).values.acos()
    assert nearest.max() < 2 * nearest.min()
    with pytest.raises(ValueError, match="rotations must be"):
        fourier_sampling(torch.zeros(0, 3, 3))
