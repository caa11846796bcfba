import csv

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.data.maps import read_map, recentre, resample_map
from vitreous.data.phantoms import protein_phantom
from vitreous.io.mrc import write_mrc
from vitreous.maps.fsc import fsc


def gaussian(n, pixel, centre, sigma=12.0):
    axis = (torch.arange(n) - n // 2) * pixel
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    return torch.exp(-squared / (2 * sigma**2))


@pytest.mark.parametrize(
    ("n", "pixel", "box", "apix"),
    [(65, 5.0, 32, 10.0), (64, 5.0, 33, 9.0), (33, 7.2, 65, 3.6), (40, 6.0, 24, 7.3)],
)
def test_resampling_keeps_place_and_grey_values(n, pixel, box, apix):
    centre = (20.0, -11.0, 6.0)
    got = resample_map(gaussian(n, pixel, centre), pixel, box, apix)
    want = gaussian(box, apix, centre)
    assert (got - want).abs().max() < 0.03


def test_recentre_and_back():
    x = torch.randn(5, 5, 5)
    for size in (6, 7, 8):
        assert torch.equal(recentre(recentre(x, size, 3), 5, 3), x)


@pytest.fixture
def pair(tmp_path):
    a = protein_phantom(24, 6.0, seed=1)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0)) * a.std() * 0.5
    paths = tmp_path / "a.mrc", tmp_path / "b.mrc"
    write_mrc(paths[0], a.numpy(), 6.0)
    write_mrc(paths[1], (a + noise).numpy(), 6.0)
    return *paths, a, a + noise


def test_fsc_prints_and_writes_the_curve(vitreous, tmp_path, pair):
    first, second, a, b = pair
    code, out, err = vitreous("fsc", first, second, "-o", tmp_path / "fsc.csv")
    assert (code, err) == (0, "")
    assert "at 0.143" in out
    rows = list(csv.DictReader((tmp_path / "fsc.csv").open()))
    assert [float(row["fsc"]) for row in rows] == pytest.approx(fsc(a, b).tolist(), abs=1e-4)
    assert float(rows[-1]["resolution_angstrom"]) == pytest.approx(12.0)
    assert float(rows[-1]["frequency_inv_angstrom"]) == pytest.approx(1 / 12.0)


def test_fsc_with_masks(vitreous, tmp_path, pair):
    first, second, *_ = pair
    mask = tmp_path / "mask.mrc"
    write_mrc(mask, np.ones((24, 24, 24), np.float32), 6.0)
    code, out, _ = vitreous("fsc", first, second, "--mask", mask)
    assert code == 0
    assert "corrected:" in out
    assert vitreous("fsc", first, second, "--auto-mask")[0] == 0
    assert vitreous("fsc", first, second, "--auto-mask", "--mask", mask)[0] == 2
    write_mrc(mask, np.ones((20, 20, 20), np.float32), 6.0)
    code, _, err = vitreous("fsc", first, second, "--mask", mask)
    assert (code, err.count("\n")) == (3, 1)


def test_maps_on_different_grids_are_refused(vitreous, tmp_path, pair):
    first, _, a, b = pair
    other = tmp_path / "other.mrc"
    for array, pixel, message in (
        (a[:20, :20, :20], 6.0, "20 voxels, but"),
        (a, 6.1, "6.1 Å, but"),
        (a[:20], 6.0, "no cubic map"),
        (torch.full_like(a, torch.nan), 6.0, "NaN"),
    ):
        write_mrc(other, array.numpy(), pixel)
        code, _, err = vitreous("fsc", first, other)
        assert code == 3
        assert message in err
    write_mrc(other, b.numpy(), 6.1)
    assert vitreous("fsc", first, other, "--apix", "6.0")[0] == 0


def test_read_map_needs_a_pixel_size(shared_data):
    path = shared_data / "maps" / "ribosome70S_65.mrc"
    with pytest.raises(InputError, match="`pixel_size_angstrom`"):
        read_map(path)
    assert read_map(path, 5.0)[1] == 5.0


def test_align_finds_the_rotation_and_hand(vitreous, tmp_path):
    from vitreous.core.resample import rotate_volume
    from vitreous.core.rotation import euler_to_matrix

    reference = protein_phantom(24, 8.0, seed=2)
    matrix = euler_to_matrix(torch.tensor([35.0, 60.0, -20.0]))
    moving = rotate_volume(reference.flip(0).roll(1, 0), matrix)
    for name, volume in (("reference", reference), ("moving", moving)):
        write_mrc(tmp_path / f"{name}.mrc", volume.numpy(), 8.0)
    paths = tmp_path / "moving.mrc", tmp_path / "reference.mrc"
    code, out, err = vitreous("align", *paths, "-o", tmp_path / "aligned.mrc")
    assert (code, err) == (0, "")
    assert "hand            mirrored" in out
    aligned, pixel = read_map(tmp_path / "aligned.mrc")
    assert pixel == pytest.approx(8.0)
    assert torch.corrcoef(torch.stack([aligned.flatten(), reference.flatten()]))[0, 1] > 0.95


def test_align_never_overwrites_its_inputs(vitreous, pair):
    before = pair[0].read_bytes()
    code, _, err = vitreous("align", pair[0], pair[1], "-o", pair[0])
    assert code == 2
    assert "one of the inputs" in err
    assert pair[0].read_bytes() == before
