"""``vitreous classify2d`` from files to files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from particle_files import columns, volume
from planar_case import BOX, PIXEL, Planar, planar
from vitreous.data.tables import make_document
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.methods.class2d.class_averages import ClassAverages
from vitreous.metrics.clustering import normalised_mutual_information

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 240
QUICK = ("--classes", "4", "--effort", "0.4", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def data() -> Planar:
    return planar(COUNT, noise=0.7)


@pytest.fixture(scope="module")
def star(data: Planar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planar")
    write_mrc(folder / "particles.mrcs", data.images.numpy(), PIXEL, is_stack=True)
    document = make_document(
        [f"{i + 1:06d}@particles.mrcs" for i in range(COUNT)],
        data.optics,
        pixel_size_angstrom=PIXEL,
        box_size=BOX,
        micrograph_names=["m.mrc"] * COUNT,
    )
    write_star(folder / "particles.star", document)
    return folder / "particles.star"


def test_classes_angles_and_origins_are_those_that_were_planted(
    vitreous: Any, star: Path, data: Planar, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = vitreous("classify2d", star, *QUICK, "-o", out)
    assert code == 0, stderr
    assert stdout.startswith("4 class images of 240 particles.\n")
    assert {f.name for f in out.iterdir()} == {
        "config.toml", "checkpoints", "history.jsonl", "report.html", "particles.star",
        "classes.star", "classes.mrcs",
    }  # fmt: skip
    table = columns(out / "particles.star")
    label = torch.tensor([int(v) for v in table["rlnClassNumber"]])
    assert normalised_mutual_information(label, data.label) > 0.75
    assert "rlnAngleRot" not in table  # or it would pass for a pose
    # within a class and shape, angles and origins differ from the truth by one turn and shift
    k = int(torch.bincount(label).argmax())
    mine = (label == k) & (data.label == data.label[label == k].mode().values)
    turn = torch.tensor([float(v) for v in table["rlnAnglePsi"]]).deg2rad()
    apart = torch.polar(torch.ones_like(turn), turn + data.angle)[mine]
    same = torch.polar(torch.ones_like(turn), turn - data.angle)[mine]
    assert max(apart.mean().abs(), same.mean().abs()) > 0.9
    classes = read_star(out / "classes.star").blocks["model_classes"]
    shares = torch.bincount(label, minlength=5)[1:].double() / COUNT
    assert classes.numbers("rlnClassDistribution").tolist() == pytest.approx(
        shares.tolist(), abs=1e-6
    )
    assert volume(out / "classes.mrcs").shape == (4, BOX, BOX)
    assert classes.numbers("rlnEstimatedResolution").min() >= 2 * PIXEL
    page = (out / "report.html").read_text()
    assert page.count('alt="class ') == 4
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["status"] == "finished"
    assert config["options"]["solver"]["classes"] == 4


@pytest.mark.slow
def test_stopped_and_continued_is_bitwise_the_same(
    vitreous: Any, star: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert vitreous("classify2d", star, *QUICK, "-o", whole)[0] == 0
    step = ClassAverages.step

    def stopping(self: ClassAverages) -> dict[str, float]:
        import signal

        told = step(self)
        if self.round == 3:
            signal.raise_signal(signal.SIGTERM)
        return told

    monkeypatch.setattr(ClassAverages, "step", stopping)
    assert vitreous("classify2d", star, *QUICK, "-o", parts)[0] == 128 + 15
    monkeypatch.setattr(ClassAverages, "step", step)
    code, _, stderr = vitreous("classify2d", star, *QUICK, "-o", parts, "--continue")
    assert code == 0, stderr
    for name in ("classes.mrcs", "classes.star", "particles.star"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    rows = [json.loads(line) for line in (parts / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))


def test_options_that_do_not_go_together_are_refused(
    vitreous: Any, star: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, stderr = vitreous("classify2d", star, "--latent", "3", "-o", out)
    assert code == 2
    assert "--latent: needs --no-align" in stderr
    code, _, stderr = vitreous("classify2d", star, "--classes", "500", "-q", "-o", out)
    assert code == 3
    assert "240 particles for 500 classes; ask for fewer --classes" in stderr
    settings = tmp_path / "settings.toml"
    settings.write_text("round = 3\n")
    code, _, stderr = vitreous("classify2d", star, "--config", settings, "-q", "-o", out)
    assert code == 2
    assert "unknown key round" in stderr
    assert not out.exists()


def test_noise_is_said_to_be_noise(vitreous: Any, star: Path, tmp_path: Path) -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(1))
    (tmp_path / "noise").mkdir()
    write_mrc(tmp_path / "noise" / "particles.mrcs", noise.numpy(), PIXEL, is_stack=True)
    table = tmp_path / "noise" / "particles.star"
    table.write_bytes(star.read_bytes())
    code, stdout, stderr = vitreous("classify2d", table, *QUICK, "-o", tmp_path / "out")
    assert code == 0, stderr
    assert "explain them no better than noise does" in stdout


def test_poses_of_the_table_are_left_as_they_are(vitreous: Any, star: Path, tmp_path: Path) -> None:
    document = read_star(star)
    angles = {
        f"rlnAngle{name}": [value] * COUNT
        for name, value in (("Rot", "10.000000"), ("Tilt", "20.000000"), ("Psi", "30.000000"))
    }
    block = StarBlock({**document.blocks["particles"].columns, **angles})
    posed = star.parent / "posed.star"
    write_star(posed, StarDocument({**document.blocks, "particles": block}))
    out = tmp_path / "out"
    code, _, stderr = vitreous("classify2d", posed, *QUICK, "-o", out)
    assert code == 0, stderr
    table = columns(out / "particles.star")
    assert set(table["rlnAnglePsi"]) == {"30.000000"}
    assert "rlnOriginXAngst" not in table
    assert len(set(table["rlnClassNumber"])) > 1
    assert np.isfinite([float(v) for v in table["vitreousLogLikelihoodRatio"]]).all()
