"""``vitreous tomo`` from nothing to a map and its report."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitreous.data.tilts import read_angles
from vitreous.io.mrc import read_header, read_mrc, write_mrc
from vitreous.methods.tomography import tomogram

SIZE = ("--shape", "24x20x12", "--increment", "10", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 tilts of 24 x 20 px, half of whose pixels are scanned."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "tilts"
    command = ["tomo", "simulate", "phantom:3", *SIZE, "--dose", "0.5", "-o", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return folder


def inputs(folder: Path) -> tuple[Any, ...]:
    return (folder / "tilts.mrc", "--angles", folder / "tilts.tlt", "--mask", folder / "mask.mrc")


def correlation(a: Path, b: Path) -> float:
    volumes = [torch.from_numpy(read_mrc(path)[0].copy()).flatten() for path in (a, b)]
    return float(torch.corrcoef(torch.stack(volumes))[0, 1])


def test_what_simulate_writes(series: Path) -> None:
    images, header = read_mrc(series / "tilts.mrc")
    mask, mask_header = read_mrc(series / "mask.mrc")
    assert images.shape == mask.shape == (15, 20, 24)
    assert header.is_stack
    assert mask_header.mode == 0
    assert mask.sum((1, 2)).tolist() == [240] * 15
    assert not images[mask == 0].any()
    assert read_angles(series / "tilts.tlt").tolist() == list(range(-70, 71, 10))
    assert read_header(series / "truth.mrc").shape == (12, 20, 24)
    assert header.pixel_size_angstrom == pytest.approx(10240 / 24)


def test_tilts_are_left_out_and_maps_are_imaged(
    vitreous: Any, series: Path, tmp_path: Path
) -> None:
    truth, out = series / "truth.mrc", tmp_path / "few"
    command = ("tomo", "simulate", truth, "--scheme", "saxton", "--increment", 10, "-o", out)
    code, text, error = vitreous(*command, "--downsampling", "tilt", "--dose", 0.3, *SIZE[-3:])
    assert code == 0, error
    tilts = read_angles(out / "tilts.tlt")
    assert len(tilts) == len(read_mrc(out / "tilts.mrc")[0]) < 8
    assert read_mrc(out / "mask.mrc")[0].all()
    assert "100 % of their pixels" in text


@pytest.mark.parametrize(
    "method", ["tv", "wbp", "sirt", pytest.param("two-step", marks=pytest.mark.slow)]
)
def test_every_method_writes_the_folder(
    vitreous: Any, series: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "map"
    given = () if method != "two-step" else ("--inpainting", 0.3, "--strength", 1)
    command = ("tomo", "reconstruct", *inputs(series), "--method", method, *given)
    iterations = 6 if method == "two-step" else 15
    code, text, error = vitreous(*command, "--iterations", iterations, "--threads", 1, "-o", out)
    assert code == 0, error
    names = {"half1.mrc", "half2.mrc", "map.mrc", "fsc.csv", "history.jsonl", "report.html"}
    assert {path.name for path in out.iterdir()} == names | {"config.toml", "checkpoints"}
    assert read_header(out / "map.mrc").shape == (12, 20, 24)
    assert correlation(out / "map.mrc", series / "truth.mrc") > 0.55
    assert correlation(out / "half1.mrc", out / "map.mrc") < 0.999
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["status"] == "finished"
    assert config["options"]["method"] == method
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert {row.get("half") for row in rows if "step" in row} == (
        set() if method == "wbp" else {1, 2, None}
    )
    if method == "tv":
        assert config["run"]["strength"] > 0
        assert any("score" in row for row in rows)
        assert "strength" in text
    page = (out / "report.html").read_text()
    assert "Box 24 x 20 x 12 pixels" in page
    assert vitreous(*command, "-o", out)[0] == 2  # the folder is in use


def test_nan_pixels_are_a_mask(vitreous: Any, series: Path, tmp_path: Path) -> None:
    images, header = read_mrc(series / "tilts.mrc")
    images = np.where(read_mrc(series / "mask.mrc")[0] == 0, np.nan, images)
    write_mrc(tmp_path / "nan.mrc", images, header.pixel_size_angstrom, is_stack=True)
    common = ("--angles", series / "tilts.tlt", "--strength", 0.5, "--iterations", 5)
    fixed = ("--threads", 1, "--quiet")
    code, _, error = vitreous(
        "tomo", "reconstruct", tmp_path / "nan.mrc", *common, *fixed, "-o", tmp_path / "a"
    )
    assert code == 0, error
    masked = ("--mask", series / "mask.mrc")
    vitreous(
        "tomo", "reconstruct", series / "tilts.mrc", *masked, *common, *fixed, "-o", tmp_path / "b"
    )
    first, second = (read_mrc(tmp_path / name / "map.mrc")[0] for name in "ab")
    assert np.array_equal(first, second)


def test_bad_requests(vitreous: Any, series: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    (tmp_path / "few.tlt").write_text("0\n1\n")
    few = ("--angles", tmp_path / "few.tlt")
    code, _, error = vitreous("tomo", "reconstruct", series / "tilts.mrc", *few, *out)
    assert (code, "2 angles" in error) == (3, True)
    code, _, error = vitreous("tomo", "reconstruct", *inputs(series), "--strength", "x", *out)
    assert (code, "--strength 'x'" in error) == (2, True)
    code, _, error = vitreous("tomo", "simulate", "phantom:1", "--shape", "9x9", *out)
    assert (code, "--shape 9x9" in error) == (2, True)
    code, _, error = vitreous("tomo", "simulate", "phantom:x", *out)
    assert (code, "seed" in error) == (2, True)
    code, _, error = vitreous("tomo", "simulate", tmp_path / "no.mrc", *out)
    assert (code, "no such file" in error) == (3, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "stops"),
    [
        pytest.param("tv", (2, 12), marks=pytest.mark.slow),
        ("sirt", (3,)),
        ("wbp", (1, 1)),
        pytest.param("two-step", (2, 12), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    vitreous: Any,
    series: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    stops: tuple[int, ...],
) -> None:
    """Stopped amid the search for the strength and amid a map, or between maps."""
    fixed = ("--method", method, "--iterations", 4, "--threads", 1, "-q", "-o")
    command = ("tomo", "reconstruct", *inputs(series), *fixed)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert vitreous(*command, whole)[0] == 0
    step = tomogram.Tomogram.step
    for k, steps in enumerate(stops):
        done: list[int] = []

        def stopped(solver: tomogram.Tomogram, done: list[int] = done, steps: int = steps) -> Any:
            done.append(1)
            if len(done) == steps:
                signal.raise_signal(signal.SIGTERM)
            return step(solver)

        with monkeypatch.context() as patch:
            patch.setattr(tomogram.Tomogram, "step", stopped)
            assert vitreous(*command, cut, *(("--continue",) if k else ()))[0] == 143
        assert not (cut / "half1.mrc").exists()
        config = tomllib.loads((cut / "config.toml").read_text())
        assert config["run"]["status"] == "running"
    code, _, error = vitreous(*command, cut, "--continue")
    assert code == 0, error
    for name in ("half1.mrc", "half2.mrc", "map.mrc"):
        assert np.array_equal(read_mrc(cut / name)[0], read_mrc(whole / name)[0])
    assert history(cut) == history(whole)
    assert vitreous(*command, cut, "--continue", "--thickness", 8)[0] == 3


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows without the time they took."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_from_python(tmp_path: Path) -> None:
    from vitreous.jobs.tomography.options import TomoReconstructOptions, TomoSimulateOptions
    from vitreous.jobs.tomography.run import reconstruct_tilts
    from vitreous.jobs.tomography.simulate import simulate_tilts

    size = {"shape": "16x12x8", "increment_degrees": 10, "quiet": True}
    tilts = simulate_tilts(
        TomoSimulateOptions(source="phantom:3", output=tmp_path / "tilts", **size)
    ).folder
    options = TomoReconstructOptions(
        tilts=tilts / "tilts.mrc",
        angles=tilts / "tilts.tlt",
        output=tmp_path / "map",
        method="sirt",
        quiet=True,
    )
    result = reconstruct_tilts(options)
    assert (result.solved, result.strengths) == (True, {})
    assert correlation(result.folder / "map.mrc", tilts / "truth.mrc") > 0.5


@pytest.mark.parametrize("command", ["simulate", "reconstruct"])
def test_help_teaches(vitreous: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, text, _ = vitreous("tomo", command, "--help")
    assert code == 0
    assert f"Example: vitreous tomo {command}" in text


@pytest.mark.parametrize("method", ["wbp", "sirt"])
def test_fault_38_noise_with_a_mean_has_no_resolution(vitreous, tmp_path, method):
    noise = 10 + torch.randn(21, 24, 32, generator=torch.Generator().manual_seed(0))
    write_mrc(tmp_path / "noise.mrc", noise.numpy(), 5.0)
    angles = "\n".join(str(angle) for angle in range(-60, 61, 6))
    (tmp_path / "noise.tlt").write_text(angles)
    code, out, err = vitreous(
        *("tomo", "reconstruct", tmp_path / "noise.mrc", "--angles", tmp_path / "noise.tlt"),
        *("--method", method, "--iterations", 5, "-o", tmp_path / "out", "-q", "--threads", 1),
    )
    assert code == 0, err
    assert "nothing in common but a slab" in out
    assert "resolution   none" in out
