"""Phantoms: deterministic, compact, symmetric, protein-like, the same at any sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitreous.core.fourier import fourier_resize
from vitreous.core.symmetry import PointGroup, point_group
from vitreous.data import phantoms
from vitreous.data.phantoms import phantom_points, protein_phantom, render_points


def cyclic(order: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(order) / order
    return np.stack(
        [
            np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
            for a in angles
        ]
    )


D2 = np.stack([np.diag(d) for d in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])]).astype(
    float
)


@pytest.fixture
def local_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """C and D2 matrices made here, so that this file tests phantoms alone."""
    table = {"C1": np.eye(3)[None], "C2": cyclic(2), "C3": cyclic(3), "D2": D2}
    groups = {name: PointGroup(name, torch.from_numpy(g)) for name, g in table.items()}
    monkeypatch.setattr(phantoms.symmetry, "point_group", groups.__getitem__)


def test_same_seed_same_molecule_other_seed_another() -> None:
    first = protein_phantom(24, 5.0, seed=5)
    assert torch.equal(first, protein_phantom(24, 5.0, seed=5))
    other = protein_phantom(24, 5.0, seed=6)
    assert torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1] < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_points_stay_in_the_sphere_and_are_centred(seed: int) -> None:
    points = phantom_points(seed, 120.0)
    assert points.norm(dim=1).max() <= 60.0 + 1e-9
    assert points.norm(dim=1).max() > 40.0
    assert points.mean(dim=0).norm() < 1e-6


@pytest.mark.parametrize("name", ["C2", "C3", "D2"])
def test_symmetric_points_map_onto_themselves_and_leave_the_axis_free(
    name: str, local_groups: None
) -> None:
    points = phantom_points(3, 140.0, point_group=name)
    assert points.norm(dim=1).max() <= 70.0 + 1e-9
    for matrix in phantoms.symmetry.point_group(name).matrices.numpy():
        turned = points @ torch.from_numpy(matrix).T
        assert torch.cdist(turned, points).min(dim=1).values.max() < 1e-4
    near_axis = (points[:, :2].norm(dim=1) < 5.0).float().mean()
    assert near_axis < 0.05


def test_rendered_symmetry_is_exact_on_the_grid(local_groups: None) -> None:
    volume = protein_phantom(25, 6.0, seed=2, point_group="D2")
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert torch.allclose(volume.flip(axes), volume, atol=2e-3 * float(volume.max()))
    assert not torch.allclose(volume.flip(0), volume, atol=0.1 * float(volume.max()))


@pytest.mark.parametrize("name", ["C5", "D3", "T", "O", "I"])
def test_every_kind_of_point_group(name: str) -> None:
    points = phantom_points(8, 160.0, point_group=name)
    some = points[:: max(1, len(points) // 300)]
    for matrix in point_group(name).matrices:
        assert torch.cdist(some @ matrix.T, points).min(dim=1).values.max() < 1e-4


def test_asymmetric_by_default() -> None:
    volume = protein_phantom(32, 6.0, seed=1)
    for axes in ((0, 1), (0, 2), (1, 2)):
        pair = torch.stack([volume.flatten(), volume.flip(axes).flatten()])
        assert torch.corrcoef(pair)[0, 1] < 0.8


@pytest.mark.parametrize("box", [24, 25])
def test_one_blob_is_the_analytic_band_limited_gaussian(box: int) -> None:
    pixel, where = 4.0, torch.tensor([[5.3, -7.1, 2.2]], dtype=torch.float64)
    got = render_points(where, box, pixel).double()
    k = torch.fft.fftfreq(box, pixel, dtype=torch.float64)
    kz, ky, kx = torch.meshgrid(k, k, k, indexing="ij")
    k2 = kx**2 + ky**2 + kz**2
    phase = torch.exp(-2j * torch.pi * (kx * where[0, 0] + ky * where[0, 1] + kz * where[0, 2]))
    window = 0.5 + 0.5 * torch.cos(torch.pi * ((k2.sqrt() * 2 * pixel - 1.0) / 0.1).clamp(0, 1))
    if box % 2 == 0:  # the Nyquist planes of an even box are dropped
        window[box // 2], window[:, box // 2], window[:, :, box // 2] = 0, 0, 0
    spectrum = phase * window * torch.exp(-2 * torch.pi**2 * k2) * 68.0 / pixel**3
    want = torch.fft.fftshift(torch.fft.ifftn(spectrum).real)
    assert (got - want).abs().max() < 1e-3 * want.max()


def test_same_molecule_at_two_samplings() -> None:
    points = phantom_points(4, 100.0)
    fine = render_points(points, 48, 3.0, resolution_angstrom=14.0)
    coarse = render_points(points, 24, 6.0, resolution_angstrom=14.0)
    assert (fourier_resize(fine, 24, 3) - coarse).abs().max() < 2e-3 * coarse.abs().max()


def test_spectrum_falls_like_a_protein() -> None:
    from vitreous.core.grid import shell_index

    volume = protein_phantom(64, 2.0, seed=7)
    power = torch.fft.rfftn(volume).abs() ** 2
    shells = shell_index(64, 3).flatten()
    curve = torch.bincount(shells, power.flatten()) / torch.bincount(shells)
    assert curve[1] > 30 * curve[6]  # 128 Å against 21 Å: compact
    assert curve[6] > 2 * curve[26]  # 5 Å: still falling
    assert curve[26] > 1e-6 * curve[1]  # but a tail to high resolution


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a box"):
        protein_phantom(16, 4.0, seed=0, diameter_angstrom=64.0)
    with pytest.raises(ValueError, match="outside half the box"):
        render_points(torch.tensor([[50.0, 0, 0]]), 16, 4.0)
    with pytest.raises(ValueError, match="positive diameter"):
        phantom_points(0, 0.0)
