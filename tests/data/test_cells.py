"""The built-in cell: a law of its seed, any shape, dense matter in empty resin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitreous.data.cells import cell_phantom


def test_the_seed_decides() -> None:
    shape = (24, 40, 36)
    first = cell_phantom(shape, 200.0, seed=3)
    assert torch.equal(first, cell_phantom(shape, 200.0, seed=3))
    assert not torch.equal(first, cell_phantom(shape, 200.0, seed=4))
    assert first.shape == shape
    assert float(first.min()) >= 0
    assert 0.5 < float(first.max()) <= 1
    assert float(first[0, 0, 0]) == 0
    assert 0.02 < float(first.mean()) < 0.5


def test_finer_voxels_show_the_same_cell() -> None:
    """Granules are drawn anew, as their places are voxels; the large parts are the same."""
    coarse = cell_phantom((16, 32, 32), 320.0, seed=1)
    fine = F.avg_pool3d(cell_phantom((32, 64, 64), 160.0, seed=1)[None], 2)[0]
    both = torch.stack([coarse.flatten(), fine.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.7


@pytest.mark.parametrize(("shape", "pixel"), [((4, 64, 64), 40.0), ((64, 64, 64), 0.0)])
def test_what_is_refused(shape: tuple[int, int, int], pixel: float) -> None:
    with pytest.raises(ValueError, match=r"shape must|pixel size"):
        cell_phantom(shape, pixel, seed=0)
