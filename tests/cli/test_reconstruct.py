"""``vitreous reconstruct`` from files to files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from particle_files import columns, volume
from vitreous.core.errors import UsageError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.io.mrc import MrcStack, read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.maps.fsc import fsc

PIXEL = 6.0
FILES = {"half1.mrc", "half2.mrc", "map.mrc", "particles.star", "fsc.csv", "report.html"}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 particles of 24 px, 10 dB, shifted."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", "24", "--apix", str(PIXEL), "--n", "300", "--snr-db", "10", "--seed", "3")
    shift = ("--shift", "triangular:20", "--threads", "1")
    done = CliRunner().invoke(
        app, ["simulate", "phantom:3", *size, *shift, "-o", str(folder), "-q"]
    )
    assert done.exit_code == 0, done.output
    return folder


def changed(source: Path, target: Path, **columns: list[str] | None) -> Path:
    """The table with columns replaced or, where None, left out; its stack beside it."""
    document = read_star(source)
    table = dict(document.blocks["particles"].columns)
    for name, values in columns.items():
        if values is None:
            del table[name]
        else:
            table[name] = values
    target.parent.mkdir(parents=True, exist_ok=True)
    stack = target.parent / "particles.mrcs"
    if not stack.exists():
        stack.symlink_to(source.parent / "particles.mrcs")
    write_star(target, StarDocument({**document.blocks, "particles": StarBlock(table)}))
    return target


def test_a_map_with_the_truth_s_grey_values(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = vitreous("reconstruct", simulated / "truth.star", "-o", out)
    assert code == 0, stderr
    assert {f.name for f in out.iterdir()} == FILES | {"config.toml"}
    assert "at 0.143 between half maps of 300 particles" in stdout
    truth = volume(simulated / "truth.mrc")
    found = volume(out / "map.mrc")
    assert fsc(found, truth)[1:9].min() > 0.95
    scale = float((found * truth).sum() / truth.square().sum())
    assert 0.85 < scale < 1.05
    assert read_mrc(out / "half1.mrc")[1].pixel_size_angstrom == pytest.approx(PIXEL)
    run = tomllib.loads((out / "config.toml").read_text())
    assert run["run"]["status"] == "finished"
    assert run["options"]["method"] == "direct"
    assert len(run["run"]["images_sha256"]) == 16
    assert "drawn at random" in (out / "report.html").read_text("utf-8")


def test_halves_are_recorded_and_used_again(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    start = simulated / "truth.star"
    assert vitreous("reconstruct", start, "-o", first, "-q")[0] == 0
    halves = columns(first / "particles.star")["rlnRandomSubset"]
    assert sorted(set(halves)) == ["1", "2"]
    assert columns(first / "particles.star")["rlnAngleRot"] == columns(start)["rlnAngleRot"]
    table = changed(start, tmp_path / "copy" / "in.star", rlnRandomSubset=halves)
    command = ("reconstruct", table, "-q", "--seed", 9)
    assert vitreous(*command, "-o", again)[0] == 0
    assert columns(again / "particles.star")["rlnRandomSubset"] == halves
    a, b = volume(first / "half1.mrc"), volume(again / "half1.mrc")
    assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))
    assert "drawn at random" not in (again / "report.html").read_text("utf-8")
    assert vitreous("reconstruct", start, "-o", other, "-q", "--seed", 9)[0] == 0
    assert columns(other / "particles.star")["rlnRandomSubset"] != halves


@pytest.mark.slow
def test_options_reach_the_map(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    truth = volume(simulated / "truth.mrc")

    def run(*options: Any) -> torch.Tensor:
        out = tmp_path / "-".join(map(str, options)).strip("-") / "out"
        code, _, error = vitreous(
            "reconstruct", simulated / "truth.star", "-o", out, "-q", *options
        )
        assert code == 0, error
        return volume(out / "map.mrc")

    plain = run()
    assert torch.allclose(run("--invert"), -plain, atol=1e-5 * float(plain.abs().max()))
    cropped = run("--box", 16)
    expected = fourier_resize(truth, 16, 3) * soft_mask(16, 3, 5.0, 3)
    assert fsc(cropped, expected)[1:6].min() > 0.95
    without = run("--ignore-ctf")
    assert fsc(without, truth)[1:9].mean() < 0.9
    assert run("--wiener", 3).norm() < 0.6 * run("--wiener", "none").norm()
    inner = run("--mask-diameter", 60)
    assert not inner[0].any()
    assert inner[12, 12, 12] != 0
    folded = run("--sym", "C2")
    assert torch.allclose(folded, folded.flip(1, 2).roll((1, 1), (1, 2)), atol=1e-4)


def test_tables_without_poses_are_refused(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, error = vitreous("reconstruct", simulated / "particles.star", "-o", out)
    assert code == 3
    assert "_rlnAngleRot, _rlnAngleTilt, _rlnAnglePsi missing" in error
    assert "vitreous auto" in error
    assert not out.exists()


def test_bad_images_are_named_or_skipped(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    table = changed(simulated / "truth.star", tmp_path / "bad" / "in.star")
    images = MrcStack(simulated / "particles.mrcs").read(slice(None))
    images[3] = 1.0
    (tmp_path / "bad" / "particles.mrcs").unlink()
    write_mrc(tmp_path / "bad" / "particles.mrcs", images, PIXEL, is_stack=True)
    code, _, error = vitreous("reconstruct", table, "-o", tmp_path / "a", "-q")
    assert code == 0
    assert "1 images are constant" in error
    images[217, 5, 6] = np.nan
    write_mrc(tmp_path / "bad" / "particles.mrcs", images, PIXEL, is_stack=True)
    code, _, error = vitreous("reconstruct", table, "-o", tmp_path / "b", "-q")
    assert code == 3
    assert "000218@particles.mrcs: NaN or infinite pixels, or a few far beyond all others" in error
    code, _, error = vitreous("reconstruct", table, "-o", tmp_path / "c", "-q", "--skip-bad")
    assert code == 0
    assert len(columns(tmp_path / "c" / "particles.star")["rlnImageName"]) == 298


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--wiener", "much"), "--wiener 'much': must be a valid number"),
        (("--wiener", "-1"), "--wiener '-1': must be greater than or equal to 0"),
        (("--box", 30), "--box 30: larger than the images (24 px)"),
        (("--mask-diameter", 500), "--mask-diameter 500: wider than the images (144 Å)"),
        (("--sym", "Q"), "unknown point group 'Q'"),
    ],
)
def test_wrong_options_are_usage_errors(
    vitreous: Any, simulated: Path, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out"
    code, _, error = vitreous("reconstruct", simulated / "truth.star", "-o", out, *options)
    assert code == 2
    assert message in error
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="needs Debian's package relion")
def test_relion_refines_what_was_written(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    """One iteration of RELION's 3D classification from our particles.star and map.mrc."""
    out = simulated.parent / "found"
    assert vitreous("reconstruct", simulated / "truth.star", "-o", out, "-q")[0] == 0
    (simulated.parent / "relion").mkdir()
    command = (
        "relion_refine --i found/particles.star --o relion/run --ref found/map.mrc --ini_high 30 "
        "--iter 1 --ctf --K 1 --tau2_fudge 2 --particle_diameter 120 --healpix_order 1 "
        "--offset_range 3 --offset_step 2 --norm --scale --firstiter_cc --dont_check_norm --j 2"
    )
    done = subprocess.run(
        command.split(), cwd=simulated.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(columns(simulated.parent / "relion" / "run_it001_data.star")["rlnImageName"]) == 300


def test_tables_without_ctf_need_ignore_ctf(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    shutil.copy(simulated / "particles.mrcs", tmp_path)
    document = read_star(simulated / "truth.star")
    kept = {k: v for k, v in document.blocks["particles"].columns.items() if "Defocus" not in k}
    blocks = {**document.blocks, "particles": StarBlock(kept)}
    write_star(tmp_path / "bare.star", StarDocument(blocks))
    code, _, error = vitreous("reconstruct", tmp_path / "bare.star", "-o", tmp_path / "a", "-q")
    assert code == 3
    assert "_rlnDefocusU" in error
    options = ("--ignore-ctf", "-q", "-o", tmp_path / "b")
    code, _, error = vitreous("reconstruct", tmp_path / "bare.star", *options)
    assert code == 0, error


TV = ("--method", "tv", "-q", "--scale", "2", "--iterations", 20)


@pytest.fixture(scope="module")
def few(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 40 of the particles."""
    table = columns(simulated / "truth.star")
    first = {name: values[:40] for name, values in table.items()}
    return changed(simulated / "truth.star", tmp_path_factory.mktemp("few") / "in.star", **first)


@pytest.mark.slow
def test_a_regularised_map_and_what_comes_with_it(
    vitreous: Any, simulated: Path, few: Path, tmp_path: Path
) -> None:
    plain, out = tmp_path / "direct", tmp_path / "tv"
    command = ("reconstruct", few)
    assert vitreous(*command, "-o", plain, "-q")[0] == 0
    code, stdout, error = vitreous(*command, *TV, "--scale", "1", "-o", out)
    assert code == 0, error
    assert {f.name for f in out.iterdir()} == FILES | {
        "config.toml",
        "history.jsonl",
        "checkpoints",
    }
    assert "strength " in stdout
    truth, found = volume(simulated / "truth.mrc"), volume(out / "map.mrc")
    better = fsc(found, truth)[1:].mean() - fsc(volume(plain / "map.mrc"), truth)[1:].mean()
    assert better > 0.02
    assert 0.8 < float((found * truth).sum() / truth.square().sum()) < 1.1
    run = tomllib.loads((out / "config.toml").read_text())
    assert run["options"]["scale"] == "1"
    assert run["options"]["strength"] == "auto"
    assert run["run"]["strength"] > 0
    assert (
        run["run"]["images_sha256"]
        == tomllib.loads((plain / "config.toml").read_text())["run"]["images_sha256"]
    )
    rows = history(out)
    columns = (out / "fsc.csv").read_text().splitlines()[0].split(",")
    assert {"confirmed", "direct", "unmasked"} <= set(columns)
    assert {row["half"] for row in rows if "half" in row} == {1, 2}
    assert any("score" in row for row in rows)
    page = (out / "report.html").read_text("utf-8")
    assert "Both half maps obey the same prior" in page
    assert "Violation of the constraints" in page


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows without the time they took."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tv", "wavelet"])
def test_a_stopped_run_goes_on_to_the_same_maps(
    vitreous: Any, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from vitreous.jobs.reconstruct import run

    command = ("reconstruct", few, *TV, "--method", method, "-o")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert vitreous(*command, whole)[0] == 0
    for more, steps in (((), 2), (("--continue",), 20)):  # amid the search, and amid a map
        with monkeypatch.context() as patch:
            patch.setattr(run.ModelBased, "step", stopping(run.ModelBased.step, steps))
            code, _, error = vitreous(*command, cut, *more)
            assert code == 143
            assert "to continue" in error
            assert error.rstrip().endswith(f"-o {cut} --continue")
    code, _, error = vitreous(*command, cut, "--continue")
    assert code == 0, error
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        assert torch.equal(volume(cut / name), volume(whole / name))
    assert history(cut) == history(whole)
    assert vitreous(*command, cut, "--continue", "--strength", 3)[0] == 3


def stopping(step: Callable[[Any], Any], steps: int) -> Callable[[Any], Any]:
    """The step of a solver that a signal stops after so many."""
    done = []

    def stopped(solver: Any) -> Any:
        done.append(solver)
        if len(done) == steps:
            signal.raise_signal(signal.SIGTERM)
        return step(solver)

    return stopped


def test_a_stopped_pass_begins_anew(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitreous.data.working_images import SignedImages

    command = ("reconstruct", simulated / "truth.star", "-q", "-o")
    assert vitreous(*command, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(SignedImages, "read", with_signal(SignedImages.read))
        code, _, error = vitreous(*command, tmp_path / "cut")
    assert code == 143
    assert "begin anew" in error
    assert not (tmp_path / "cut" / "map.mrc").exists()
    code, _, error = vitreous(*command, tmp_path / "cut", "--continue")
    assert code == 0, error
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        assert torch.equal(volume(tmp_path / "cut" / name), volume(tmp_path / "whole" / name))


def with_signal(read: Callable[..., Any]) -> Callable[..., Any]:
    def signalled(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return read(*arguments)

    return signalled


def test_from_python(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitreous.jobs.reconstruct import run
    from vitreous.jobs.reconstruct.options import ReconstructOptions
    from vitreous.jobs.reconstruct.run import reconstruct

    options = ReconstructOptions(
        particles=few,
        output=tmp_path / "map",
        method="l2",
        scale="2",
        iterations=5,
        quiet=True,
    )
    result = reconstruct(options)
    assert (result.solved, result.folder) == (True, tmp_path / "map")
    assert 10 < result.resolution_0143_angstrom < 40
    assert result.strength is not None
    assert result.strength > 0
    assert volume(result.folder / "map.mrc").shape == (24, 24, 24)
    with monkeypatch.context() as patch:  # a continued run reads the images, but sums them no more
        patch.setattr(run.gridding, "accumulate", None)
        patch.setattr(run, "accumulate", None)
        again = reconstruct(options.model_copy(update={"resume": True}))
    assert again.digest == result.digest
    with pytest.raises(UsageError, match="`wiener`: has no meaning for `method` tv"):
        ReconstructOptions(particles=few, output=tmp_path, method="tv", wiener=1)


def test_images_that_change_between_passes_are_noticed(
    vitreous: Any, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitreous.jobs.reconstruct import plan

    digests = iter(["one"])
    monkeypatch.setattr(plan.CheckedImages, "digest", property(lambda _: next(digests, "other")))
    command = ("reconstruct", few, *TV, "--strength", 1)
    code, _, error = vitreous(*command, "-o", tmp_path / "out")
    assert code == 3
    assert "the images have changed since the run began" in error


@pytest.mark.parametrize("method", ["direct", pytest.param("tv", marks=pytest.mark.slow)])
def test_fault_25_a_continued_run_refuses_changed_images(
    vitreous: Any, simulated: Path, tmp_path: Path, method: str
) -> None:
    for name in ("truth.star", "particles.mrcs"):
        shutil.copy(simulated / name, tmp_path)
    command = ["reconstruct", tmp_path / "truth.star", "--method", method, "-o", tmp_path / "out"]
    command += ["-q", "--scale", 2, "--strength", 1, "--iterations", 2] if method == "tv" else []
    assert vitreous(*command)[0] == 0
    with (tmp_path / "particles.mrcs").open("r+b") as stream:
        stream.seek(1024 + 400)
        stream.write(b"\x00\x00\x80\x3f")
    for _ in range(2):  # what is recorded of the first run stays
        code, _, error = vitreous(*command, "--continue")
        assert code == 3
        assert "the images have changed since the run began; give the same" in error
    assert (tmp_path / "out" / "map.mrc").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", "1..2"), "--scale 1..2: give 1 to 4"),
        (("--scale", "x"), "--scale x"),
        (("--scale", "5"), "--scale 5"),
        (("--strength", "-1"), "--strength '-1': must be greater than or equal to 0"),
        (("--wiener", "none"), "--wiener: has no meaning for --method tv"),
        (("--method", "direct", "--scale", "2"), "--scale: has no meaning for --method direct"),
    ],
)
def test_options_without_meaning_are_refused(
    vitreous: Any, few: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    command = ("reconstruct", few, "--method", "tv", *options, "-o", tmp_path / "out")
    code, _, error = vitreous(*command)
    assert code == 2
    assert message in error
