"""Images of two structures, sorted under blurred maps of both, from poses that are a bit off."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from matching_case import BOX, PIXEL, Case, case
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Pose
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.hetero.classification3d import (
    Classification,
    ClassificationConfig,
)
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 200
POSES = RefinementConfig(start_resolution_angstrom=45.0, shift_range_angstrom=9.0)
CONFIG = ClassificationConfig(POSES, rounds=3, radius=9, search=False)


def mixed() -> tuple[Case, Tensor, Tensor]:
    """Images, every third without a piece of the molecule; both maps; classes."""
    whole = case(COUNT)
    piece = radius_grid(BOX, 3).roll((5, 4, 2), (0, 1, 2)) < 7
    maps = torch.stack([whole.volume, whole.volume * ~piece])
    classes = (torch.arange(COUNT) % 3 == 0).long()
    less = simulate(maps[1], whole.rotation, whole.shift, whole.optics, PIXEL)
    images = torch.where(classes.bool()[:, None, None], less, whole.images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(6))
    return replace(whole, images=images + images.std() * noise), maps, classes


def task(config: ClassificationConfig = CONFIG) -> tuple[Classification, Case, Tensor, Tensor]:
    data, maps, classes = mixed()
    stream = torch.Generator().manual_seed(2)
    off = axis_angle_to_matrix(0.05 * torch.randn(COUNT, 3, generator=stream))
    poses = Pose(off @ data.rotation, data.shift + torch.randn(COUNT, 2, generator=stream))
    blurred = fourier_resize(fourier_resize(maps, 12, 3), BOX, 3)
    run = Classification(
        ImagesInMemory(data.images), data.optics, poses, blurred, config, pixel_size_angstrom=PIXEL
    )
    return run, data, maps, classes


def test_classes_poses_and_maps_settle() -> None:
    run, data, maps, classes = task()
    before = data.errors_deg(run.poses.rotation[:, None]).median()
    while not run.done:
        stats = run.step()
    assert (run.classes == classes).float().mean() > 0.97
    assert stats["changed"] < 0.05
    assert stats["share_2"] == pytest.approx(1 / 3, abs=0.03)
    assert data.errors_deg(run.poses.rotation[:, None]).median() < 0.7 * before
    for found, truth in zip(run.maps, maps, strict=True):
        assert fsc(found, truth)[1:7].min() > 0.9
    mine, other = fsc(run.maps[1], maps[1])[1:7].mean(), fsc(run.maps[1], maps[0])[1:7].mean()
    assert mine > other + 0.01
    assert run.half_maps.shape == (2, 2, BOX, BOX, BOX)


@pytest.mark.slow
def test_a_first_search_finds_poses_that_were_lost() -> None:
    run, data, _, _ = task(replace(CONFIG, search=True, rounds=1))
    run._candidates.rotation[::2] = torch.eye(3)
    run.step()
    assert data.errors_deg(run.poses.rotation[:, None])[::2].median() < 6.0


def test_each_image_may_have_a_scale_of_its_own() -> None:
    run, _, _, classes = task(replace(CONFIG, poses=replace(POSES, scale="image"), rounds=1))
    run.step()
    assert (run.classes == classes).float().mean() > 0.9
    # poses and scales are those under the map of the class
    torch.testing.assert_close(
        run._candidates.log_likelihood_ratio[:, 0] / 2, run.likelihood.amax(1)
    )
    assert float(run.scale.std()) > 0.01


def test_resumes_bitwise() -> None:
    straight, broken = (task()[0] for _ in range(2))
    straight.step()
    broken.step()
    stored = io.BytesIO()
    torch.save(broken.state_dict(), stored)
    stored.seek(0)
    resumed = task()[0]
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert straight.step() == resumed.step()
    assert torch.equal(straight.maps, resumed.maps)
    assert torch.equal(straight.classes, resumed.classes)
    assert torch.equal(straight.poses.rotation, resumed.poses.rotation)


def test_a_map_without_images_stays() -> None:
    run, _, _, _ = task(replace(CONFIG, rounds=1))
    run.maps[1] = -run.maps[1]
    before = run.maps[1].clone()
    stats = run.step()
    assert stats["share_2"] == 0.0
    assert torch.equal(run.maps[1], before)


def test_maps_must_be_of_the_images_box() -> None:
    data, maps, _ = mixed()
    poses = Pose(data.rotation, data.shift)
    with pytest.raises(ValueError, match="maps must be"):
        Classification(
            ImagesInMemory(data.images), None, poses, maps[0], CONFIG, pixel_size_angstrom=PIXEL
        )


@pytest.mark.slow
def test_a_map_of_images_that_were_lost_together_is_dropped() -> None:
    """A third map: of the whole structure, turned, so of another frame."""
    run, *_ = task(replace(CONFIG, search=True, rounds=1))
    turn = axis_angle_to_matrix(torch.tensor([0.4, -1.0, 0.3]))
    maps = torch.cat([rotate_volume(run.maps[:1], turn), run.maps])
    again = Classification(
        run.images, run.optics, run.poses, maps, run.config, pixel_size_angstrom=PIXEL
    )
    assert again.step()["dropped"] == 1.0
    assert again.dropped == [0]
    assert again.maps.shape[0] == again.likelihood.shape[1] == 2
    assert (again.likelihood.argmax(1) == again.classes).all()
    assert set(again.classes.tolist()) == {0, 1}
