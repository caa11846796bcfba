"""Tilt series: angle files good and bad, schemes, masks, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.data.tilts import (
    linear_tilts,
    random_downsampling,
    read_angles,
    read_tilt_series,
    saxton_tilts,
    tilt_downsampling,
    write_angles,
)
from vitreous.io.mrc import write_mrc

MDOC = """PixelSpacing = 3.42
ImageFile = a.mrc
[T = SerialEM: Digitized on x]

[ZValue = 1]
TiltAngle = 3.0
StagePosition = 1 2

[ZValue = 0]
TiltAngle = -3.5
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_angles_of_every_format(tmp_path: Path) -> None:
    plain = write(tmp_path, "a.rawtlt", "  -3.5\n\n3.0  \n")
    assert read_angles(plain).tolist() == [-3.5, 3.0]
    assert read_angles(write(tmp_path, "a.mdoc", MDOC)).tolist() == [-3.5, 3.0]
    written = tmp_path / "b.tlt"
    write_angles(written, torch.tensor([-60.12341, 0.0]))
    assert read_angles(written).tolist() == [-60.1234, 0.0]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.tlt", "1.0\nnan\n", "line 2"),
        ("a.tlt", "1.0\n95\n", "between -89 and 89"),
        ("a.tlt", "1.0 2.0\n", "line 1"),
        ("a.tlt", "\n", "no tilt angles"),
        ("a.mdoc", MDOC.replace("TiltAngle = 3.0", "Defocus = 1"), "ZValue = 1"),
        ("a.mdoc", MDOC.replace("[ZValue = 1]", "[ZValue = 2]"), "count from 0"),
        ("a.mdoc", MDOC.replace("-3.5", "x"), "is no tilt"),
        ("a.mdoc", "PixelSpacing = 1\n", "no tilt angles"),
    ],
)
def test_bad_angles(tmp_path: Path, name: str, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_angles(write(tmp_path, name, text))
    with pytest.raises(InputError, match="no such file"):
        read_angles(tmp_path / "missing.tlt")


def series(folder: Path, images: np.ndarray, angles: str = "0\n10\n") -> tuple[Path, Path]:
    write_mrc(folder / "t.mrc", images, 5.0, is_stack=True)
    return folder / "t.mrc", write(folder, "t.tlt", angles)


def test_nan_and_mask_are_not_scanned(tmp_path: Path) -> None:
    images = np.arange(24.0).reshape(2, 3, 4)
    images[0, 0, 1] = np.nan
    mask = np.ones((2, 3, 4))
    mask[1, 2, 3] = 0
    write_mrc(tmp_path / "m.mrc", mask, 5.0, is_stack=True, mode=0)
    read = read_tilt_series(*series(tmp_path, images), tmp_path / "m.mrc")
    assert read.dose == pytest.approx(22 / 24)
    assert not read.scanned[0, 0, 1]
    assert not read.scanned[1, 2, 3]
    assert read.images[0, 0, 1] == 0 == read.images[1, 2, 3]
    assert read.images[1, 1, 1] == 17
    assert read.pixel_size_angstrom == 5.0


def test_series_that_do_not_match_are_refused(tmp_path: Path) -> None:
    images = np.ones((2, 3, 4))
    with pytest.raises(InputError, match="3 angles"):
        read_tilt_series(*series(tmp_path, images, "0\n1\n2\n"))
    with pytest.raises(InputError, match="infinite"):
        read_tilt_series(*series(tmp_path, images * np.inf))
    with pytest.raises(InputError, match="no pixel is scanned"):
        read_tilt_series(*series(tmp_path, images * np.nan))
    files = series(tmp_path, images)
    write_mrc(tmp_path / "m.mrc", np.ones((2, 4, 3)), 5.0, is_stack=True)
    with pytest.raises(InputError, match="mask of this stack"):
        read_tilt_series(*files, tmp_path / "m.mrc")
    write_mrc(tmp_path / "m.mrc", 0.5 * images, 5.0, is_stack=True)
    with pytest.raises(InputError, match="0 and 1"):
        read_tilt_series(*files, tmp_path / "m.mrc")


def test_saxton_s_law() -> None:
    """Successive slices of the transform are as far apart, at the slab's own frequency."""
    tilts = torch.deg2rad(saxton_tilts(70, 2.0))
    positive = tilts[tilts >= 0]
    steps = positive.diff()
    assert torch.allclose(steps.sin(), math.sin(math.radians(2)) * positive[:-1].cos())
    assert torch.allclose(tilts, -tilts.flip(0))
    assert 68 < math.degrees(tilts.max()) <= 70
    assert len(linear_tilts(-70, 70, 1)) == 141
    for bad in ((0.0,), (math.nan,)):
        with pytest.raises(ValueError, match="increment"):
            saxton_tilts(70, *bad)
        with pytest.raises(ValueError, match="increment"):
            linear_tilts(-70, 70, *bad)
    with pytest.raises(ValueError, match="beyond"):
        linear_tilts(-90, 90, 1)


@pytest.mark.parametrize("dose", [0.03, 0.1, 0.5, 1.0])
def test_masks_have_their_share(dose: float) -> None:
    kept = tilt_downsampling(140, dose)
    assert int(kept.sum()) == round(140 * dose)
    places = kept.nonzero().flatten()
    assert int(places.diff().max() - places.diff().min()) <= 1
    draw = torch.Generator().manual_seed(1)
    mask = random_downsampling((5, 20, 30), dose, draw)
    assert mask.sum((1, 2)).tolist() == [round(600 * dose)] * 5
    if dose < 1:
        assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("dose", [0.0, 1.5, math.nan])
def test_impossible_doses_are_refused(dose: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        tilt_downsampling(10, dose)
    with pytest.raises(ValueError, match="fraction"):
        random_downsampling((1, 2, 2), dose, torch.Generator())
