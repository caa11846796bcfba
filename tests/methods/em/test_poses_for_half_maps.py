"""Half maps without poses get the images' grey scale; images tell right ones from wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vitreous as vt
from vitreous.maps.fsc import fsc
from vitreous.maps.shell_filter import weight_shells
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.finer_shells_test import FinerShells, finer_shells_test
from vitreous.methods.em.poses_for_half_maps import with_poses
from vitreous.methods.em.refinement_result import RefinementResult

pytestmark = pytest.mark.usefixtures("one_thread")
BOX, PIXEL, RESOLUTION = 24, 8.0, 19.2  # ten shells
CONFIG = RefinementConfig(symmetry="D2", shift_range_angstrom=0.0)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return vt.phantom(BOX, PIXEL, seed=2, symmetry="D2")


def asked(volume: Tensor, truth: Tensor) -> tuple[RefinementResult, FinerShells]:
    particles = vt.simulate(truth, 160, PIXEL, snr_db=0.0, seed=3).with_half_sets(seed=1)
    given = (
        particles.images(invert=False, normalise=False),
        particles.optics,
        particles.half_set,
        RESOLUTION,
        CONFIG,
    )
    stream = torch.Generator().manual_seed(4)
    noise = 0.2 * float(volume.std()) * torch.randn(2, *volume.shape, generator=stream)
    posed = with_poses((volume + noise[0], volume + noise[1]), *given, pixel_size_angstrom=PIXEL)
    return posed, finer_shells_test(posed, *given, pixel_size_angstrom=PIXEL)


def test_a_true_map_of_any_grey_scale_is_shown(truth: Tensor) -> None:
    blurred = weight_shells(truth, torch.linspace(40.0, 10.0, BOX // 2 + 1))
    posed, found = asked(blurred, truth)
    assert found.shown
    assert found.ratio == pytest.approx(1, abs=0.3)
    assert found.standing_out == pytest.approx(1, abs=0.3)
    assert float((posed.half1 * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.2)
    assert float(fsc(posed.half1, truth)[1:9].min()) > 0.9  # still the map that was given


def test_another_map_is_not_shown(truth: Tensor) -> None:
    other = vt.phantom(BOX, PIXEL, seed=7, symmetry="D2")
    assert not asked(other, truth)[1].shown
