import io

import numpy as np
import pytest
from PIL import Image

from vitreous.report import figures


def test_png_is_what_another_decoder_reads():
    gray = np.random.default_rng(0).integers(0, 256, (7, 11), dtype=np.uint8)
    decoded = Image.open(io.BytesIO(figures.png_bytes(gray)))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), gray)


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros(4, np.uint8)])
def test_png_refuses_other_arrays(bad):
    with pytest.raises(ValueError, match="2-D uint8"):
        figures.png_bytes(bad)


def test_constant_and_nan_pictures_have_limits():
    assert figures.contrast_limits(np.full((3, 3), 2.0)) == (2.0, 3.0)
    assert figures.contrast_limits(np.full(3, np.nan)) == (0.0, 1.0)
    assert figures.to_gray(np.array([[np.nan, 1.0]]), (0.0, 1.0)).tolist() == [[0, 255]]


def test_montage_puts_images_where_they_belong():
    sheet = figures.montage(np.stack([np.full((2, 2), float(i)) for i in range(3)]), 2, gap_px=1)
    assert [sheet[0, 0], sheet[0, 3], sheet[3, 0]] == [0.0, 1.0, 2.0]
    assert np.isnan(sheet[2]).all()
    assert np.isnan(sheet[3:, 3:]).all()


def test_slices_and_projections_name_the_right_axes():
    volume = np.zeros((5, 5, 5))
    volume[2, 2, 4] = 1.0  # at +x
    slices, sums = figures.central_slices(volume), figures.projections(volume)
    assert slices["xy"][2, 4] == slices["xz"][2, 4] == 1.0
    assert slices["yz"].sum() == 0.0
    assert sums["along x"][2, 2] == sums["along z"][2, 4] == 1.0
