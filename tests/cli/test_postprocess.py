import csv
import tomllib

import numpy as np
import pytest
import torch

from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.maps import read_map
from vitreous.data.phantoms import protein_phantom
from vitreous.io.mrc import write_mrc
from vitreous.maps.shell_filter import weight_shells

N, PIXEL = 40, 2.0
pytestmark = pytest.mark.usefixtures("one_thread")


def write_halves(folder, truth, noise, pixel=PIXEL):
    draw = torch.Generator().manual_seed(0)
    for i in (1, 2):
        half = truth / truth.std() + noise * torch.randn(truth.shape, generator=draw)
        write_mrc(folder / f"half{i}.mrc", half.float().numpy(), pixel)
    return folder / "half1.mrc", folder / "half2.mrc"


@pytest.fixture
def halves(tmp_path):
    truth = protein_phantom(N, PIXEL, seed=2, point_group="D2", diameter_angstrom=60)
    return write_halves(tmp_path, truth, 0.3)


def test_everything_is_written_and_told(vitreous, tmp_path, halves):
    out = tmp_path / "out"
    code, told, err = vitreous("postprocess", *halves, "-o", out, "--threads", 1)
    assert (code, err) == (0, "")
    assert "at 0.143" in told
    maps = {name: read_map(out / f"{name}.mrc") for name in (
        "mask", "sharpened", "sharpened_masked", "local_resolution", "local_filtered"
    )}  # fmt: skip
    assert all(pixel == pytest.approx(PIXEL) for _, pixel in maps.values())
    mask, resolution = maps["mask"][0], maps["local_resolution"][0]
    assert torch.equal(resolution > 0, mask > 0)
    assert resolution.max() <= N * PIXEL / 3.5
    assert torch.allclose(maps["sharpened_masked"][0], maps["sharpened"][0] * mask, atol=1e-5)
    run = tomllib.loads((out / "config.toml").read_text())["run"]
    assert run["status"] == "finished"
    assert run["b_factor_angstrom2"] < -30
    assert run["warnings"] == []
    assert f"{run['resolution_0143_angstrom']:.1f} Å" in run["verdict"]
    rows = list(csv.DictReader((out / "fsc.csv").open()))
    assert {"corrected", "unmasked", "masked", "phase_randomised"} <= set(rows[0])
    fitted = [row for row in csv.DictReader((out / "guinier.csv").open()) if row["fitted"] == "1"]
    assert len(fitted) >= 5
    page = (out / "report.html").read_text()
    assert "Sharpening and local resolution" in page
    assert 'id="plot-guinier"' in page
    assert 'id="plot-local"' in page
    assert "particles per half" not in page


def test_options_change_what_they_say(vitreous, tmp_path, halves):
    out = tmp_path / "out"
    mask = torch.zeros(N, N, N)
    mask[10:30, 10:30, 10:30] = 1
    write_mrc(tmp_path / "mask.mrc", mask.numpy(), PIXEL)
    common = ("postprocess", *halves, "-o", out, "--mask", tmp_path / "mask.mrc")
    options = ("--no-local-resolution", "--b-factor", "-40", "--sym", "d2")
    code, told, _ = vitreous(*common, *options)
    assert code == 0
    assert "B = -40 Å² as given" in told
    assert not (out / "local_resolution.mrc").exists()
    assert torch.equal(read_map(out / "mask.mrc")[0], mask)
    sharpened = read_map(out / "sharpened.mrc")[0]
    quarter = sharpened.flip(1, 2).roll((1, 1), (1, 2))
    assert torch.allclose(sharpened, quarter, atol=1e-4 * float(sharpened.abs().max()))
    settings = tomllib.loads((out / "config.toml").read_text())["options"]
    assert (settings["symmetry"], settings["b_factor_angstrom2"]) == ("D2", -40.0)
    unsharpened = tmp_path / "unsharpened"
    vitreous("postprocess", *halves, "-o", unsharpened, "--b-factor", "0", "--no-local-resolution")
    high = sharpened.diff(dim=0).square().mean() / sharpened.square().mean()
    plain = read_map(unsharpened / "sharpened.mrc")[0]
    assert high > 1.1 * plain.diff(dim=0).square().mean() / plain.square().mean()


def test_wrong_requests_are_refused(vitreous, tmp_path, halves):
    out = tmp_path / "out"
    assert vitreous("postprocess", *halves, "-o", out, "--b-factor", "much")[0] == 2
    assert vitreous("postprocess", *halves, "-o", out, "--sym", "D0")[0] == 2
    write_mrc(tmp_path / "mask.mrc", np.full((N, N, N), 3.0, np.float32), PIXEL)
    code, _, err = vitreous("postprocess", *halves, "-o", out, "--mask", tmp_path / "mask.mrc")
    assert (code, err.count("\n")) == (3, 1)
    assert "from 0 to 1" in err
    write_mrc(tmp_path / "mask.mrc", np.ones((20, 20, 20), np.float32), PIXEL)
    assert vitreous("postprocess", *halves, "-o", out, "--mask", tmp_path / "mask.mrc")[0] == 3
    assert not out.exists()


def test_noise_is_called_so(vitreous, tmp_path):
    paths = write_halves(tmp_path, torch.ones(24, 24, 24) + torch.eye(24), 1000.0)
    code, told, _ = vitreous("postprocess", *paths, "-o", tmp_path / "out")
    assert code == 0
    assert told.startswith("The half maps have nothing in common")


def test_low_resolution_gets_no_b_factor(vitreous, tmp_path):
    truth = protein_phantom(32, 6.0, seed=1)
    paths = write_halves(tmp_path, truth, 0.3, 6.0)
    code, told, _ = vitreous("postprocess", *paths, "-o", tmp_path / "out")
    assert code == 0
    assert "no B factor: " in told
    assert "B factor     0 Å²" in told


@pytest.mark.slow
def test_symmetry_is_found_and_brought_to_standard_axes(vitreous, tmp_path):
    truth = protein_phantom(32, 6.0, seed=2, point_group="C4")
    matrix = euler_to_matrix(torch.tensor([30.0, 50.0, 10.0]))
    tilted = weight_shells(
        rotate_volume(truth, matrix, torch.tensor([1.0, 0.5, -1.0])), torch.ones(17)
    )
    paths = write_halves(tmp_path, tilted, 1.0, 6.0)
    out = tmp_path / "out"
    code, told, err = vitreous("symmetry", *paths, "-o", out)
    assert (code, err) == (0, "")
    assert "C4: rotated about its axes" in told
    rows = list(csv.DictReader((out / "symmetry.csv").open()))
    assert (rows[0]["group"], rows[0]["holds"]) == ("C4", "yes")
    assert float(rows[0]["agreement"]) > 0.9
    standard = read_map(out / "map.mrc")[0]
    quarter = rotate_volume(standard, euler_to_matrix(torch.tensor([90.0, 0.0, 0.0])))
    seen = torch.corrcoef(torch.stack([standard.flatten(), quarter.flatten()]))[0, 1]
    assert seen > 0.7
    standard_halves = out / "half1.mrc", out / "half2.mrc"
    code, told, _ = vitreous(
        "postprocess", *standard_halves, "-o", tmp_path / "post", "--sym", "C4",
        "--no-local-resolution",
    )  # fmt: skip
    assert code == 0
    assert "do not obey" not in told
    code, told, _ = vitreous(
        "postprocess", *paths, "-o", tmp_path / "wrong", "--sym", "C4", "--no-local-resolution"
    )
    assert code == 0
    assert "warning: The half maps do not obey C4" in told


def test_no_symmetry_writes_only_the_table(vitreous, tmp_path):
    paths = write_halves(tmp_path, protein_phantom(24, 6.0, seed=3), 2.0, 6.0)
    out = tmp_path / "out"
    code, told, _ = vitreous("symmetry", *paths, "-o", out)
    assert code == 0
    assert "No symmetry" in told or "Cannot tell" in told
    assert (out / "symmetry.csv").exists()
    assert not (out / "map.mrc").exists()
    assert tomllib.loads((out / "config.toml").read_text())["run"]["group"] == "C1"
