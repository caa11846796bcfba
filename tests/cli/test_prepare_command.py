"""``vitreous prepare``: pixels, table, bad images, interruption, memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch

from vitreous.core.params import Optics, Pose
from vitreous.data.particles import Particles
from vitreous.data.prepare import Preparation, Preparer
from vitreous.data.tables import make_document
from vitreous.io.mrc import MrcStack, read_header, write_mrc
from vitreous.io.mrc_header import Statistics, header_bytes
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.jobs.prepare import run as prepare_run
from vitreous.jobs.run import streaming

BOX, PIXEL, COUNT = 24, 2.0, 40


def write_project(folder, images, **columns):
    """A stack with a table that also has origins, half sets, coordinates and a foreign block."""
    n = len(images)
    folder.mkdir(exist_ok=True)
    write_mrc(folder / "stack.mrcs", images, PIXEL, is_stack=True)
    document = make_document(
        [f"{i + 1:06d}@stack.mrcs" for i in range(n)],
        Optics.uniform(n, defocus_angstrom=12000.0),
        pixel_size_angstrom=PIXEL,
        box_size=images.shape[-1],
        micrograph_names=[f"m{i // 4}.mrc" for i in range(n)],
        pose=Pose(torch.eye(3).expand(n, 3, 3), torch.arange(2.0 * n).reshape(n, 2)),
        half_set=[1, 2] * (n // 2),
    )
    table = {**document.blocks["particles"].columns, "rlnCoordinateX": ["100.5"] * n, **columns}
    blocks = {**document.blocks, "particles": StarBlock(table), "mine": StarBlock({"x": ["1"]})}
    write_star(folder / "in.star", StarDocument(blocks))
    return folder / "in.star"


@pytest.fixture
def images():
    return np.random.default_rng(5).normal(10, 2, (COUNT, BOX, BOX)).astype(np.float32)


@pytest.fixture
def star(tmp_path, images):
    return write_project(tmp_path / "data", images)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(prepare_run, "PIECE_BYTES", 4 * BOX * BOX * 3)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_images_are_those_of_the_recipe(vitreous, tmp_path, star, images):
    out = tmp_path / "OUT"
    code, printed, _ = vitreous(
        *("prepare", star, "-o", out, "--box", 16, "--invert", "--ramp", "--mask-diameter", 30)
    )
    assert (code, "24 px of 2 Å -> 16 px of 3 Å" in printed) == (0, True)
    recipe = Preparation(box_size=16, invert=True, ramp=True, mask_diameter_angstrom=30.0)
    expected, _ = Preparer(recipe, recipe.plan(BOX, PIXEL))(torch.from_numpy(images))
    written = MrcStack(out / "particles.mrcs")
    assert np.allclose(written.read(slice(None)), expected.numpy(), atol=1e-5)
    assert written.pixel_size_angstrom == pytest.approx(3.0)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.toml",
        "particles.mrcs",
        "particles.star",
    ]


def test_table_is_kept_and_brought_up_to_date(vitreous, tmp_path, star):
    out, before = tmp_path / "OUT", star.read_bytes()
    assert vitreous("prepare", star, "-o", out, "--box", 16, "--quiet")[0] == 0
    old, new = read_star(star).blocks, read_star(out / "particles.star").blocks
    assert star.read_bytes() == before
    rows, kept = new["particles"].columns, old["particles"].columns
    assert rows.pop("rlnImageOriginalName") == kept["rlnImageName"]
    assert rows.pop("rlnImageName") == [f"{i + 1:06d}@particles.mrcs" for i in range(COUNT)]
    kept.pop("rlnImageName")
    assert rows == kept
    assert new["mine"] == old["mine"]
    assert new["optics"].columns["rlnImagePixelSize"] == ["3.000000"]
    assert new["optics"].columns["rlnImageSize"] == ["16"]
    assert "rlnCtfDataArePhaseFlipped" not in new["optics"]
    again = Particles.open(out / "particles.star")
    assert (again.box_size, again.pixel_size_angstrom) == (16, 3.0)
    first = Particles.open(star)
    assert torch.equal(again.pose.shift_angstrom, first.pose.shift_angstrom)
    assert torch.equal(again.half_set, first.half_set)


def test_old_tables_keep_one_pixel_size(vitreous, tmp_path, star):
    """RELION 3.0: origins in pixels, pixel size by magnification."""
    document = read_star(star)
    columns = document.blocks["particles"].columns
    for name in ("rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"):
        columns.pop(name)
    columns |= {
        "rlnOriginX": ["2.5"] * COUNT,
        "rlnOriginY": ["-1"] * COUNT,
        "rlnMagnification": ["10000"] * COUNT,
        "rlnDetectorPixelSize": ["2"] * COUNT,
        "rlnImageOriginalName": ["first"] * COUNT,
    }
    for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        columns[name] = document.blocks["optics"].columns[name] * COUNT
    write_star(star, StarDocument({"": StarBlock(columns)}))
    assert vitreous("prepare", star, "-o", tmp_path / "OUT", "--box", 16, "-q")[0] == 0
    rows = read_star(tmp_path / "OUT/particles.star").blocks["particles"].columns
    assert "rlnOriginX" not in rows
    assert rows["rlnOriginXAngst"][0] == "5.000000"
    assert float(rows["rlnMagnification"][0]) == pytest.approx(1e4 * 2 / 3)
    assert rows["rlnImageOriginalName"][0] == "first"
    assert Particles.open(tmp_path / "OUT/particles.star").pixel_size_angstrom == 3.0


def test_origins_in_pixels_become_angstrom(vitreous, tmp_path, images):
    star = write_project(tmp_path / "data", images, rlnOriginX=["2.5"] * COUNT)
    document = read_star(star)
    del document.blocks["particles"].columns["rlnOriginXAngst"]
    write_star(star, document)
    assert vitreous("prepare", star, "-o", tmp_path / "OUT", "--box", 16, "-q")[0] == 0
    rows = read_star(tmp_path / "OUT/particles.star").blocks["particles"].columns
    assert "rlnOriginX" not in rows
    assert rows["rlnOriginXAngst"][0] == "5.000000"


def test_phase_flip_is_recorded(vitreous, tmp_path, star):
    out = tmp_path / "OUT"
    assert vitreous("prepare", star, "-o", out, "--phase-flip", "-q")[0] == 0
    optics = read_star(out / "particles.star").blocks["optics"]
    assert optics.columns["rlnCtfDataArePhaseFlipped"] == ["1"]
    written, plain = MrcStack(out / "particles.mrcs"), MrcStack(star.parent / "stack.mrcs")
    ratio = np.fft.fft2(written.read([0]) / 1.0) / np.fft.fft2(plain.read([0]))
    assert (ratio.real < 0).any()
    assert np.abs(ratio.imag).max() < 1e-3 * np.abs(ratio.real).max()


def test_first_and_half_precision(vitreous, tmp_path, star):
    out = tmp_path / "OUT"
    assert vitreous("prepare", star, "-o", out, "--first", 7, "--float16", "-q")[0] == 0
    header = read_header(out / "particles.mrcs")
    assert (header.shape, header.mode) == ((7, BOX, BOX), 12)
    assert len(read_star(out / "particles.star").blocks["particles"]) == 7


def test_bad_images_are_rejected_and_nothing_is_left(vitreous, tmp_path, images):
    images[[20, 31], 3, 4] = np.nan, np.inf
    star, out = write_project(tmp_path / "data", images), tmp_path / "OUT"
    code, _, said = vitreous("prepare", star, "-o", out)
    assert code == 3
    assert "images 21 (000021@stack.mrcs)" in said
    assert "--skip-bad" in said
    assert not out.exists()


def test_bad_images_are_left_out_and_listed(vitreous, tmp_path, images):
    images[20, 3, 4], images[0:3], images[8] = np.nan, 7.0, 0.0
    images[8, 12, 12] = 1.0  # flat background
    star, out = write_project(tmp_path / "data", images), tmp_path / "OUT"
    code, printed, _ = vitreous("prepare", star, "-o", out, "--skip-bad")
    assert code == 0
    assert "left out 5: 3 constant, 1 flat background" in printed
    lines = (out / "excluded.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2", "3", "9", "21"]
    assert (
        lines[5] == "21\t000021@stack.mrcs\tNaN or infinite pixels, or a few far beyond all others"
    )
    kept = [i for i in range(COUNT) if i not in (0, 1, 2, 8, 20)]
    rows = read_star(out / "particles.star").blocks["particles"].columns
    assert rows["rlnImageOriginalName"] == [f"{i + 1:06d}@stack.mrcs" for i in kept]
    expected, _ = Preparer(Preparation(), Preparation().plan(BOX, PIXEL))(
        torch.from_numpy(images[kept])
    )
    written = MrcStack(out / "particles.mrcs").read(slice(None))
    assert np.allclose(written, expected.numpy(), atol=1e-5)
    run = tomllib.loads((out / "config.toml").read_text())["run"]
    assert run["excluded"]["flat"] == ["000009@stack.mrcs"]


def test_nothing_but_constant_images(vitreous, tmp_path, images):
    star = write_project(tmp_path / "data", np.ones_like(images))
    code, _, said = vitreous("prepare", star, "-o", tmp_path / "OUT")
    assert (code, "no image is left" in said) == (3, True)
    assert not (tmp_path / "OUT").exists()


def test_overflow_of_half_precision(vitreous, tmp_path, images):
    star = write_project(tmp_path / "data", images * 1e5)
    call = ("prepare", star, "-o", tmp_path / "OUT", "--float16")
    code, _, said = vitreous(*call, "--normalise", "none")
    assert (code, "leave out --float16" in said) == (3, True)
    assert vitreous(*call)[0] == 0


INTERRUPTED = """
import os, signal, sys
from vitreous.cli.main import run
from vitreous.jobs.prepare import run as prepare_run
from vitreous.jobs.run import streaming
from vitreous.jobs.run.progress import RunProgress
prepare_run.PIECE_BYTES, streaming.SAVE_SECONDS = int(sys.argv.pop(1)), 0.0
die_at, show = float(sys.argv.pop(1)), RunProgress.update
def update(self, fraction, stats=None):
    if fraction >= die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    show(self, fraction, stats)
RunProgress.update = update
run()
"""


@pytest.mark.slow
def test_killed_and_continued_equals_left_alone(vitreous, tmp_path, images):
    images[[2, 30]] = 1.0
    star = write_project(tmp_path / "data", images)
    options = ("--box", "16", "--quiet", "--threads", "2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert vitreous("prepare", star, "-o", whole, *options)[0] == 0
    call = [sys.executable, "-c", INTERRUPTED, str(prepare_run.PIECE_BYTES), "0.5"]
    call += ["prepare", str(star), "-o", str(killed), *options]
    assert subprocess.run(call, check=False).returncode == -signal.SIGKILL
    assert not (killed / "particles.mrcs").exists()
    assert (killed / "particles.mrcs.journal").is_file()
    code, _, said = vitreous("prepare", star, "-o", killed, *options)
    assert (code, "--continue" in said) == (2, True)
    code, _, said = vitreous("prepare", star, "-o", killed, "--continue", "--quiet", "--invert")
    assert (code, "invert: False -> True" in said, "--overwrite" in said) == (3, True, True)
    assert vitreous("prepare", star, "-o", killed, "--continue", *options)[0] == 0
    for name in ("particles.mrcs", "particles.star", "excluded.txt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_signal_saves_and_a_finished_run_stays(vitreous, tmp_path, star, monkeypatch):
    out, whole = tmp_path / "OUT", tmp_path / "whole"
    show, calls = streaming.RunProgress.update, []

    def update(self, fraction, stats=None):
        calls.append(fraction)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        show(self, fraction, stats)

    monkeypatch.setattr(streaming.RunProgress, "update", update)
    code, _, said = vitreous("prepare", star, "-o", out, "--threads", 1)
    again = f"vitreous prepare {star} -o {out} --threads 1 --continue"
    assert (code, f"go on with: {again}\n" in said) == (143, True)
    assert 0 < calls[-1] < 1
    assert vitreous("prepare", star, "-o", out, "--threads", 2, "--continue")[0] == 0
    assert vitreous("prepare", star, "-o", whole, "--quiet")[0] == 0
    held = (whole / "particles.mrcs").read_bytes()
    assert (out / "particles.mrcs").read_bytes() == held
    code, _, said = vitreous("prepare", star, "-o", out, "--continue")
    assert (code, "finished already" in said) == (0, True)
    assert (out / "particles.mrcs").read_bytes() == held
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["status"] == "finished"


def test_changed_data_are_not_continued_with(vitreous, tmp_path, star, images):
    assert vitreous("prepare", star, "-o", tmp_path / "OUT", "-q")[0] == 0
    write_mrc(star.parent / "stack.mrcs", images + 1, PIXEL, is_stack=True)
    code, _, said = vitreous("prepare", star, "-o", tmp_path / "OUT", "-q", "--continue")
    assert (code, "images have changed" in said) == (3, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--window", 30), "--window 30"),
        (("--box", 16, "--apix", 3, "--window", 20), "leave one out"),
        (("--mask-diameter", 500), "--mask-diameter 500"),
    ],
)
def test_impossible_requests_write_nothing(vitreous, tmp_path, star, options, said):
    code, _, err = vitreous("prepare", star, "-o", tmp_path / "OUT", *options)
    assert (code, said in err) == (2, True)
    assert not (tmp_path / "OUT").exists()


def test_a_larger_box_is_warned_about(vitreous, tmp_path, star):
    code, _, err = vitreous("prepare", star, "-o", tmp_path / "OUT", "--box", BOX + 8, "-q")
    assert code == 0
    assert f"{BOX} px of 2 Å -> {BOX + 8} px of 1.5 Å: a box larger than the images" in err
    assert "larger" not in vitreous("prepare", star, "-o", tmp_path / "B", "--box", BOX, "-q")[2]


MEASURED = """
import resource, sys
from vitreous.cli.main import run
from vitreous.jobs.prepare import run as prepare_run
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import numpy, torch
torch.fft.rfft2(torch.ones(64, 64))
before = peak()
try:
    run()
finally:
    print((peak() - before) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stack(tmp_path):
    """A sparse stack of 0.6 GB; each image has one pixel that is not 0."""
    n, box = 2400, 256
    statistics = Statistics()
    statistics.add(np.arange(2.0))
    with (tmp_path / "big.mrcs").open("wb") as stream:
        stream.write(header_bytes((n, box, box), 2, 1.0, True, statistics))
        stream.truncate(1024 + 4 * n * box * box)
        for i in range(n):
            stream.seek(1024 + 4 * i * box * box)
            stream.write(np.float32(1).tobytes())
    names = [f"{i + 1}@big.mrcs" for i in range(n)]
    table = make_document(names, Optics.uniform(n), pixel_size_angstrom=1.0, box_size=box)
    write_star(tmp_path / "big.star", table)
    call = [sys.executable, "-c", MEASURED, "prepare", str(tmp_path / "big.star"), "--quiet"]
    call += ["-o", str(tmp_path / "OUT"), "--box", "32", "--threads", "2"]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 300, f"{done.stdout} MB"
    assert read_header(tmp_path / "OUT/particles.mrcs").shape == (n, 32, 32)
