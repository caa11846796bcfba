"""``vitreous auto`` and ``vitreous refine`` from files to files."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from particle_files import columns, volume
from vitreous.core.rotation import euler_to_matrix, geodesic_distance_deg
from vitreous.core.symmetry import point_group
from vitreous.io.mrc import MrcStack, write_mrc
from vitreous.io.star import StarDocument, read_star, write_star
from vitreous.jobs.run import checkpoints
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.em.initial_model_result import InitialModel

PIXEL = 6.0
FILES = {
    "config.toml", "half1.mrc", "half2.mrc", "map.mrc", "sharpened.mrc", "local_resolution.mrc",
    "mask.mrc", "start.mrc", "particles.star", "fsc.csv", "history.jsonl", "report.html",
    "checkpoints",
}  # fmt: skip
QUICK = ("--starts", "2", "--images", "200", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 particles of 32 px, D2, 0 dB, shifted."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", "32", "--apix", str(PIXEL), "--n", "500", "--snr-db", "0", "--seed", "3")
    shift = ("--sym", "D2", "--shift", "triangular:20", "--threads", "1")
    done = CliRunner().invoke(
        app, ["simulate", "phantom:3", *size, *shift, "-o", str(folder), "-q"]
    )
    assert done.exit_code == 0, done.output
    return folder


def angles(path: Path) -> torch.Tensor:
    table = columns(path)
    values = [[float(v) for v in table[f"rlnAngle{name}"]] for name in ("Rot", "Tilt", "Psi")]
    return euler_to_matrix(torch.tensor(values, dtype=torch.float64).mT)


def place(name: str) -> str:
    """Of an image in its stack."""
    return name.partition("@")[0]


def emptied(source: Path, target: Path) -> Path:
    """The same tables with images of noise."""
    shutil.copytree(source, target)
    stack = MrcStack(target / "particles.mrcs")
    shape, pixel = stack.shape, PIXEL
    noise = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    write_mrc(target / "particles.mrcs", noise, pixel, is_stack=True)
    return target / "particles.star"


@pytest.mark.slow
def test_from_raw_particles_to_a_map(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    star = simulated / "particles.star"
    code, stdout, stderr = vitreous("auto", star, "--sym", "D2", *QUICK, "-o", out)
    assert code == 0, stderr
    assert {f.name for f in out.iterdir()} - {"rejected.star"} == FILES
    assert "between half maps of 500 particles, independent from the first step on" in stdout
    truth = volume(simulated / "truth.mrc")
    fit = align_maps(volume(out / "map.mrc"), truth, pixel_size_angstrom=PIXEL, point_group="D2")
    assert fsc_resolution(fsc(fit.aligned, truth), 0.5, 32, PIXEL) < 15.0
    run = tomllib.loads((out / "config.toml").read_text())["run"]
    assert run["solved"] is True
    assert run["resolution_0143_angstrom"] < 16.0
    table = columns(out / "particles.star")
    assert {"rlnRandomSubset", "rlnOriginXAngst", "rlnMaxValueProbDistribution"} <= set(table)
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert {row.get("start_of_half") for row in rows} == {1, 2, None}
    assert [row["step"] for row in rows if "step" in row][:3] == [1, 2, 3]


@pytest.mark.slow
def test_auto_ends_with_the_initial_model_if_asked(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    call = ("auto", star, "--only-start", "--sym", "D2", "--threads", "1", "-q", "-o", out)
    code, _, stderr = vitreous(*call, "--rounds", "3")
    assert code == 2
    assert "--rounds: --only-start ends before the rounds of refinement" in stderr
    code, stdout, stderr = vitreous(*call)
    assert code == 0, stderr
    assert stdout.startswith("Solved to")
    truth = volume(simulated / "truth.mrc")
    fit = align_maps(volume(out / "map.mrc"), truth, pixel_size_angstrom=PIXEL, point_group="D2")
    assert fsc_resolution(fsc(fit.aligned, truth), 0.5, 32, PIXEL) < 20.0
    assert "rlnAngleRot" not in columns(out / "particles.star")


@pytest.mark.slow
def test_a_rough_map_is_refined_and_its_poses_are_those_of_the_truth(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = vitreous(
        "refine", simulated / "particles.star", "--map", simulated / "truth.mrc", "--sym", "D2",
        "--start-resolution", "60", "--threads", "1", "-q", "-o", out,
    )  # fmt: skip
    assert code == 0, stderr
    assert "which shared a start up to 60 Å" in stdout
    group = point_group("D2").matrices
    true = angles(simulated / "truth.star")
    found = angles(out / "particles.star")
    names = columns(simulated / "truth.star")["rlnImageName"]
    order = [int(name.split("@")[0]) - 1 for name in names]
    kept = [int(name.split("@")[0]) - 1 for name in columns(out / "particles.star")["rlnImageName"]]
    place = {row: i for i, row in enumerate(order)}
    true = true[[place[row] for row in kept]]
    errors = geodesic_distance_deg(found[:, None], true[:, None] @ group).amin(1)
    assert float(errors.median()) < 2.0
    code, stdout, stderr = vitreous(
        "reconstruct", out / "particles.star", "--sym", "D2", "--threads", "1", "-q", "-o",
        tmp_path / "again",
    )  # fmt: skip
    assert code == 0, stderr
    truth = volume(simulated / "truth.mrc")
    again = fsc(volume(tmp_path / "again" / "map.mrc"), truth)
    assert fsc_resolution(again, 0.5, 32, PIXEL) < 14.0


def test_halves_must_agree_far_and_well() -> None:
    empty = torch.zeros(64, 64, 64)
    good = InitialModel(empty, empty, 10.0, shells=17.0, shells_at_half=9.0, box_size=64)
    weak = replace(good, shells=20.0, shells_at_half=7.0)
    coarse = replace(good, shells=15.0)
    assert good.beyond_doubt
    assert not any(one.beyond_doubt for one in (weak, coarse, replace(good, solved=False)))
    assert good.better_than(weak)
    assert weak.better_than(coarse)
    assert coarse.better_than(replace(weak, solved=False))


@pytest.mark.slow
def test_noise_is_no_structure(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    star = emptied(simulated, tmp_path / "noise")
    out = tmp_path / "out"
    code, stdout, stderr = vitreous("auto", star, "--sym", "D2", *QUICK, "--tries", "2", "-o", out)
    assert code == 0, stderr
    assert stdout.startswith("NOT SOLVED")
    assert "none, as the map is not solved" in stdout
    assert "once more with other starts and more images" in stderr
    assert "rlnAngleRot" not in columns(out / "particles.star")
    assert "shells that took no part in finding poses" in stdout
    with (out / "fsc.csv").open() as lines:
        held_out = [float(row["held_out"]) for row in csv.DictReader(lines)][3:]
    assert abs(np.mean(held_out)) < 0.2
    code, _, stderr = vitreous(
        "refine", star, "--map", simulated / "truth.mrc", "--sym", "D2", "--threads", "1", "-q",
        "-o", tmp_path / "einstein",
    )  # fmt: skip
    assert code == 3
    assert "fit this map no better than noise" in stderr
    assert not (tmp_path / "einstein").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_end(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "refine", simulated / "particles.star", "--map", simulated / "truth.mrc", "--sym", "D2",
        "--threads", "1", "--rounds", "3", "-q", "-o",
    )  # fmt: skip
    code, _, stderr = vitreous(*arguments, tmp_path / "whole")
    assert code == 0, stderr

    save = checkpoints.save_checkpoint

    def save_and_stop(folder: Path, step: int, *rest: Any) -> Path:
        path = save(folder, step, *rest)
        if step == 2:
            raise SystemExit(143)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", save_and_stop)
        patch.setattr(checkpoints.RunCheckpoints, "due", lambda *_: True)
        code, _, _ = vitreous(*arguments, tmp_path / "parts")
    assert code == 143
    code, _, stderr = vitreous(*arguments, tmp_path / "parts", "--continue")
    assert code == 0, stderr
    whole, parts = (volume(tmp_path / name / "map.mrc") for name in ("whole", "parts"))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--ignore-ctf", "--refine-defocus"), "leaves no optics of micrographs to be refined"),
        (("--refine-aberrations", "--ignore-ctf"), "leave out --refine-defocus, --refine-aberr"),
        (("--start-resolution", "5"), "coarser than two pixels, 12.0 Å"),
        (("--start-resolution", "150"), "finer than half the box, 96 Å"),
        (("--shift-range", "100"), "beyond the images' edge"),
        (("--box", "64"), "larger than the images"),
    ],
)
def test_options_that_cannot_be_are_refused(
    vitreous: Any, simulated: Path, tmp_path: Path, option: tuple[str, str], message: str
) -> None:
    out = tmp_path / "out"
    code, _, stderr = vitreous(
        "refine", simulated / "particles.star", "--map", simulated / "truth.mrc", *option, "-o", out
    )
    assert code == 2
    assert message in stderr
    assert not out.exists()


@pytest.mark.slow
def test_defocus_and_contrast_of_micrographs_are_refined(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (
        "refine", simulated / "particles.star", "--map", simulated / "truth.mrc", "--sym", "D2",
        "--rounds", "3", "--scale", "micrograph", "--refine-defocus", "--threads", "1", "-q",
        "-o", out,
    )  # fmt: skip
    code, stdout, stderr = vitreous(*arguments)
    assert code == 0, stderr
    assert "defocus      0 Å rms, to" in stdout
    assert "contrast     " in stdout
    rows = list(csv.DictReader((out / "micrographs.csv").read_text().splitlines()))
    assert sum(int(row["particles"]) for row in rows) == 500
    assert {row["half"] for row in rows} == {"1", "2"}
    change = {
        (row["micrograph"], row["half"]): float(row["defocus_change_angstrom"]) for row in rows
    }
    given, found = columns(simulated / "particles.star"), columns(out / "particles.star")
    before = dict(zip(map(place, given["rlnImageName"]), given["rlnDefocusU"], strict=True))
    wanted = zip(found["rlnMicrographName"], found["rlnRandomSubset"], strict=True)
    names = map(place, found["rlnImageName"])
    for name, key, u in zip(names, wanted, found["rlnDefocusU"], strict=True):
        assert float(u) - float(before[name]) == pytest.approx(change[key], abs=0.01)
    shutil.rmtree(out)
    code, _, stderr = vitreous(*arguments, "--ignore-ctf")
    assert code == 2
    assert "leaves no optics of micrographs to be refined" in stderr


@pytest.mark.slow
def test_refined_aberrations_and_defocus_of_particles_are_written_and_read_back(
    vitreous: Any, tmp_path: Path
) -> None:
    sim, out = tmp_path / "sim", tmp_path / "out"
    quiet = ("--sym", "D2", "--threads", "1", "-q", "-o")
    size = ("--box", "48", "--apix", "1.5", "--n", "120", "--snr-db", "0", "--seed", "3")
    optics = ("--n-micrographs", "4", "--defocus-spread", "300", "--beam-tilt", "1:-0.6")
    assert vitreous("simulate", "phantom:3", *size, *optics, *quiet, sim)[0] == 0
    start = ("--map", sim / "truth.mrc", "--start-resolution", "10", "--rounds", "4")
    refined = ("--refine-aberrations", "--refine-defocus", "particle")
    code, stdout, stderr = vitreous("refine", sim / "particles.star", *start, *refined, *quiet, out)
    assert code == 0, stderr
    assert "beam tilt    " in stdout
    assert "defocus of particles" in stdout
    block = read_star(out / "particles.star").blocks["optics"]
    tilt = [float(block.columns[f"rlnBeamTilt{axis}"][0]) for axis in "XY"]
    assert tilt == pytest.approx([1, -0.6], abs=0.1)
    true, found = columns(sim / "truth.star"), columns(out / "particles.star")
    given = columns(sim / "particles.star")
    rows = [int(place(name)) - 1 for name in found["rlnImageName"]]
    u, before = (np.array(one["rlnDefocusU"], float)[rows] for one in (true, given))
    error = np.array(found["rlnDefocusU"], float) - u
    assert error.std() < 0.5 * (before - u).std()
    agreement = []
    for columns_kept in (True, False):  # `reconstruct` with and without the aberrations
        table = out / "particles.star"
        if not columns_kept:
            document = read_star(table)
            plain = read_star(sim / "particles.star").blocks["optics"]
            table = out / "plain.star"
            write_star(table, StarDocument({**document.blocks, "optics": plain}))
        folder = tmp_path / f"map{columns_kept}"
        assert vitreous("reconstruct", table, *quiet, folder)[0] == 0
        curve = fsc(volume(folder / "map.mrc"), volume(sim / "truth.mrc"))
        agreement.append(float(curve[15:22].mean()))
    assert agreement[0] > agreement[1] + 0.05


@pytest.mark.slow
def test_particles_have_a_contrast(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = vitreous(
        *("refine", simulated / "particles.star", "--map", simulated / "truth.mrc", "--sym", "D2"),
        *("--rounds", "3", "--scale", "image", "--threads", "1", "-q", "-o", out),
    )
    assert code == 0, stderr
    assert "contrast     " in stdout
    assert not (out / "micrographs.csv").exists()
    contrast = [float(one) for one in columns(out / "particles.star")["vitreousContrast"]]
    assert sum(contrast) / len(contrast) == pytest.approx(1, abs=0.02)
    assert min(contrast) > 0
