"""The global search: its gains are those of the images, and it finds every pose."""

from __future__ import annotations

import pytest
import torch

from matching_case import BOX, PIXEL, case
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.core.symmetry import point_group
from vitreous.methods.em import polar_search as circle_search
from vitreous.methods.em.frequency_band import FrequencyBand, shift_grid
from vitreous.methods.em.global_search import GlobalSearch, views
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.physics.projector import oversampled_spectrum, project_spectrum

pytestmark = pytest.mark.usefixtures("one_thread")
BAND = FrequencyBand(BOX, PIXEL, 8)
FLAT = torch.ones(9)


@pytest.mark.parametrize("scaled", [True, False])
def test_gains_are_those_of_the_images_own_frequencies(scaled: bool) -> None:
    data = case(24)
    scale = torch.full((24,), 0.7) if scaled else None
    images = BAND.images(data.images)
    search = GlobalSearch(data.volume, BAND, FLAT, shift_range_angstrom=6.0, candidates=3)
    found = search(images, data.optics, scale)
    refiner = PoseRefiner(data.volume, BAND, FLAT)
    measured = refiner.measure(images, data.optics)
    for rank in range(3):
        pose = found.rotation[:, rank], found.shift_angstrom[:, rank]
        exact = refiner.evaluate(measured, *pose, scale)[0].log_likelihood_ratio
        # of the best, another quadrature of the same integral
        assert (found.log_likelihood_ratio[:, rank] / exact - 1).abs().median() < 0.1
        error = (found.log_likelihood_ratio[:, rank] - exact).abs() / exact.abs().max()
        assert error.max() < 0.1


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2"])
def test_noiseless_images_find_their_pose_within_the_grid(symmetry: str) -> None:
    data = case(60, symmetry)
    search = GlobalSearch(
        data.volume, BAND, FLAT, symmetry=symmetry, shift_range_angstrom=9.0, candidates=4
    )
    found = search(BAND.images(data.images), data.optics)
    assert len(search.rotations) < 1.1 * 4 * torch.pi * 64 / point_group(symmetry).order
    nearest = data.errors_deg(found.rotation).amin(1)
    # of a grid of 7.2 degrees, in three directions
    assert nearest.quantile(0.95) < 10.0
    assert nearest.median() < 5.0
    error = (found.shift_angstrom[:, 0] - data.shift).norm(dim=1)
    assert error.median() < 0.6 * BAND.shift_step_angstrom
    again = search(BAND.images(data.images), data.optics, centre=data.shift)
    assert (again.shift_angstrom[:, 0] - data.shift).norm(dim=1).median() < 0.1


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    data = case(6)
    search = GlobalSearch(data.volume, BAND, FLAT, shift_range_angstrom=4.0, candidates=2)
    images = BAND.images(data.images)
    whole = search(images, data.optics)
    monkeypatch.setattr(circle_search, "BLOCK", 12_000)
    pieces = search(images, data.optics)
    torch.testing.assert_close(pieces.log_likelihood_ratio, whole.log_likelihood_ratio)
    torch.testing.assert_close(pieces.rotation, whole.rotation)


@pytest.mark.slow
def test_short_numbers_find_what_single_precision_does() -> None:
    data = case(60, noise=1.0)
    found = []
    for short in (False, True):
        search = GlobalSearch(
            data.volume, BAND, FLAT, shift_range_angstrom=9.0, candidates=4, short=short
        )
        found.append(search(BAND.images(data.images), data.optics))
    assert (found[1].log_likelihood_ratio[:, 0] > 0.99 * found[0].log_likelihood_ratio[:, 0]).all()
    assert (
        found[1].log_likelihood_ratio[:, 0] == found[0].log_likelihood_ratio[:, 0]
    ).float().mean() > 0.9


def test_without_a_ctf_and_turned_by_hand() -> None:
    data = case(1)
    turn = axis_angle_to_matrix(torch.tensor([[0.0, 0.0, 1.0]]))
    search = GlobalSearch(data.volume, BAND, FLAT, candidates=1, short=False)
    view = search.rotations[100:101]
    image = project_spectrum(oversampled_spectrum(data.volume), turn @ view, BOX)
    found = search(BAND.images(image), None)
    cosine = ((found.rotation[0, 0] * (turn @ view)[0]).sum() - 1) / 2
    assert torch.rad2deg(torch.acos(cosine.clamp(max=1))) < 4.0  # half a step in plane


def test_views_of_a_group_reach_every_direction() -> None:
    group = point_group("D2")
    grid = views(0.2, group)[:, 2].double()
    probe = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=1)
    closest = torch.stack([probe @ (grid @ g.mT).mT for g in group.matrices]).amax((0, 2))
    assert torch.acos(closest.clamp(max=1)).max() < 0.2


def test_shift_grids_start_at_the_centre() -> None:
    grid = shift_grid(5.0, 2.0)
    assert grid[0].tolist() == [0.0, 0.0]
    assert 5.0 < grid.norm(dim=1).max() <= 6.0
    with pytest.raises(ValueError, match="radius must be from 1 to 15 for a box of 32"):
        FrequencyBand(32, 6.0, 16)
