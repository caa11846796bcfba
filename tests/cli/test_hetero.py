"""``vitreous hetero`` from files to files, with a stand-in for the solvers."""

from __future__ import annotations

import json
import re
import shlex
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from particle_files import columns, volume
from vitreous.core.rotation import geodesic_distance_deg
from vitreous.data.particles import Particles
from vitreous.io.checkpoint import load_checkpoint
from vitreous.io.star import read_star, write_star
from vitreous.jobs.hetero import models, results
from vitreous.jobs.hetero.run import load_trained

COUNT, BOX, PIXEL, STEPS = 180, 16, 8.0, 12
CLASSES = ("--min-cluster", "20", "--space", "pca")
QUIET = ("--threads", "1", "-q")


class Blobs:
    """Three clusters by row number; a latent's first entry is the width of a ball."""

    stop_at: int | None = None
    box_size = BOX

    def __init__(self, count: int) -> None:
        self.count, self.steps = count, 0
        self.generator = torch.Generator().manual_seed(1)
        self.offset = torch.zeros(2)

    @property
    def done(self) -> bool:
        return self.steps >= STEPS

    @property
    def progress(self) -> float:
        return self.steps / STEPS

    def step(self) -> dict[str, float]:
        self.offset += torch.randn(2, generator=self.generator)
        self.steps += 1
        if self.steps == Blobs.stop_at:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": 1.0 / self.steps, "kl": float("nan")}

    def embed(self, rows: Tensor) -> Tensor:
        noise = torch.randn(self.count, 2, generator=torch.Generator().manual_seed(2))[rows]
        return 20.0 * (rows % 3)[:, None] * torch.tensor([1.0, 0.5]) + noise + self.offset

    def volume(self, latent: Tensor) -> Tensor:
        axis = torch.arange(BOX) - BOX // 2
        radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        return torch.exp(-((radius / (2 + latent[0].abs() / 20)) ** 2))

    def result(self) -> Blobs:
        return self

    def state_dict(self) -> dict[str, Any]:
        made = {"generator": self.generator.get_state(), "offset": self.offset.clone()}
        return {"steps": self.steps, "tensors": made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.generator.set_state(state["tensors"]["generator"])
        self.offset = state["tensors"]["offset"].clone()


class Flat(Blobs):
    """The same with images instead of volumes."""

    def volume(self, latent: Tensor) -> Tensor:
        return super().volume(latent)[BOX // 2]


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method is the stand-in; what it is given is checked."""

    def build(kind: str, settings: Any, data: models.TrainingData) -> Blobs:
        assert (data.pose is not None) == (kind == "linear")
        assert data.working_set.images.box_size == data.working_set.box_size
        assert settings["components" if kind == "linear" else "latent"] == 2
        return (Flat if kind == "vaegan2d" else Blobs)(len(data.working_set.images))

    monkeypatch.setattr(models, "build_model", build)
    monkeypatch.setattr(Blobs, "stop_at", None)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", str(BOX), "--apix", str(PIXEL), "--n", str(COUNT), "--snr-db", "10")
    done = CliRunner().invoke(
        app, ["simulate", "phantom:3", *size, "--threads", "1", "-o", str(folder), "-q"]
    )
    assert done.exit_code == 0, done.output
    return folder


def read_latents(path: Path) -> Tensor:
    """Latents ``(n, d)`` of a table."""
    table = read_star(path).blocks["particles"]
    names = [name for name in table.columns if name.startswith("vitreousLatent")]
    return torch.stack([torch.from_numpy(table.numbers(name)) for name in names], -1).float()


def digests(folder: Path) -> dict[str, bytes]:
    """Content of every file that must not depend on time."""
    timed = {"config.toml", "report.html", "history.jsonl"}
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name not in timed}


def test_run_sorts_writes_and_reports(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    before = sorted(simulated.iterdir())
    code, stdout, stderr = vitreous(
        "hetero",
        "run",
        star,
        "--no-align",
        "--latent",
        "2",
        *CLASSES,
        "--points",
        "3",
        *QUIET,
        "-o",
        out,
    )
    assert code == 0, stderr
    assert stdout.startswith("3 clusters, of 60, 60, 60 particles")
    classes = [f"class0{k}" for k in (1, 2, 3)]
    maps = {f"{c}{end}.mrc" for c in classes for end in ("", "_pc1_1", "_pc1_2", "_pc1_3")}
    tables = {f"{c}.star" for c in classes}
    assert {f.name for f in out.iterdir()} - {"unsorted.star"} == {
        "config.toml", "checkpoints", "history.jsonl", "report.html", "particles.star",
        *maps, *tables,
    }  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [out]
    assert sorted(simulated.iterdir()) == before
    run = tomllib.loads((out / "config.toml").read_text())
    assert (run["run"]["status"], run["run"]["clusters"]) == ("finished", 3)
    assert run["options"]["solver"]["latent"] == 2
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert volume(out / "class01.mrc").shape == (BOX,) * 3
    assert volume(out / "class01_pc1_1.mrc").sum() != volume(out / "class01_pc1_3.mrc").sum()


def test_tables_are_the_input_with_classes_and_latents(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    arguments = ("--latent", "2", *CLASSES, "--assign-all", *QUIET, "-o", out)
    assert vitreous("hetero", "run", star, "--no-align", *arguments)[0] == 0
    given, found = columns(star), columns(out / "particles.star")
    number = [int(name.partition("@")[0]) for name in found["rlnImageName"]]
    assert number == [int(name.partition("@")[0]) for name in given["rlnImageName"]]
    assert found["rlnDefocusU"] == given["rlnDefocusU"]
    label = torch.tensor([int(v) for v in found["rlnClassNumber"]])
    assert all(len(label[k::3].unique()) == 1 for k in range(3))
    assert sorted(label.unique().tolist()) == [1, 2, 3]
    assert not (out / "unsorted.star").exists()
    for k in (1, 2, 3):
        particles = Particles.open(out / f"class0{k}.star")
        rows = (label == k).nonzero().flatten()
        torch.testing.assert_close(particles.read(range(60)), Particles.open(star).read(rows))
        assert columns(out / f"class0{k}.star")["rlnClassNumber"] == [str(k)] * 60
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    sorter = Blobs(COUNT)
    sorter.offset = state.tensors["kept.model.model.tensors.offset"]
    latent = read_latents(out / "particles.star")
    assert torch.equal(latent, sorter.embed(torch.arange(COUNT)))


def test_a_stopped_run_goes_on_to_the_same_end(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (
        "hetero", "run", simulated / "particles.star", "--no-align", "--latent", "2",
        *CLASSES, *QUIET, "-o",
    )  # fmt: skip
    assert vitreous(*run, tmp_path / "whole")[0] == 0
    monkeypatch.setattr(Blobs, "stop_at", 5)
    code, _, stderr = vitreous(*run, tmp_path / "parts")
    assert code == 143
    assert "SIGTERM: stopped and saved" in stderr
    again = shlex.join(["vitreous", *map(str, run), str(tmp_path / "parts"), "--continue"])
    assert f"to continue, run with: {again}\n" in stderr
    monkeypatch.setattr(Blobs, "stop_at", None)
    code, _, stderr = vitreous(*run, tmp_path / "parts", "--continue", "--points", "4")
    assert code == 3
    assert "points: 5 -> 4" in stderr
    code, _, stderr = vitreous(*run, tmp_path / "parts", "--continue")
    assert code == 0, stderr
    whole, parts = digests(tmp_path / "whole"), digests(tmp_path / "parts")
    assert whole == parts
    history = (tmp_path / "parts" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(1, STEPS + 1))


def test_stages_one_by_one_are_the_run(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    star, whole, parts = simulated / "particles.star", tmp_path / "whole", tmp_path / "parts"
    latent = ("--no-align", "--latent", "2", *QUIET)
    assert vitreous("hetero", "run", star, *latent, *CLASSES, "-o", whole)[0] == 0
    run = ("hetero", "run", star, "-o", parts, *QUIET)
    code, _, stderr = vitreous(*run, "--stage", "embed")
    assert (code, "holds no run" in stderr) == (2, True)
    code, stdout, _ = vitreous(*run, *latent, "--stage", "train")
    assert (code, stdout.splitlines()[0]) == (0, f"Trained in {STEPS} steps.")
    code, stdout, stderr = vitreous(*run, "--stage", "embed")
    assert (code, "180 particles have latents of 2 dimensions" in stdout) == (0, True), stderr
    saved = safetensors.torch.load_file(parts / "latents.safetensors")["latent"]
    assert torch.equal(saved, read_latents(parts / "particles.star"))
    # what is not given is as the run had it, what the stage cannot change is refused
    code, _, stderr = vitreous(*run, "--stage", "cluster", "--box", "12")
    assert (code, "--box: the run in" in stderr) == (2, True)
    code, _, stderr = vitreous(*run, "--stage", "cluster", *CLASSES)
    assert code == 0, stderr
    (parts / "latents.safetensors").unlink()
    assert digests(parts) == digests(whole)
    assert len(list(parts.glob("class01_pc1_*.mrc"))) == 5
    code, stdout, stderr = vitreous(*run, "--stage", "traverse", "--points", "3", "--class", "2")
    assert code == 0, stderr
    assert stdout.startswith("3 clusters")
    assert sorted(f.name for f in parts.glob("*_pc1_*")) == [
        f"class02_pc1_{k}.mrc" for k in (1, 2, 3)
    ]
    assert (parts / "particles.star").read_bytes() == (whole / "particles.star").read_bytes()
    code, stdout, stderr = vitreous(*run, "--stage", "cluster", "--min-cluster", "100")
    assert (code, stdout.startswith("One cluster")) == (0, True), stderr
    assert not list(parts.glob("class02*"))


def test_a_trained_model_is_loaded_from_its_folder(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    run = ("hetero", "run", simulated / "truth.star", "--latent", "2", *CLASSES, *QUIET)
    assert vitreous(*run, "-o", tmp_path / "out")[0] == 0
    trained = load_trained(tmp_path / "out", device="cpu")
    assert torch.equal(trained.latent, read_latents(tmp_path / "out" / "particles.star"))
    assert torch.equal(trained.model.embed(torch.arange(COUNT)), trained.latent)
    assert trained.data.pose is trained.data.working_set.particles.pose


def test_with_poses_classes_are_reconstructed(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(results, "fsc_warnings", lambda halves, pixel: ["The FSC is odd."])
    code, stdout, stderr = vitreous(
        "hetero", "run", simulated / "truth.star", "--align", "--latent", "2", *CLASSES, *QUIET,
        "-o", out,
    )  # fmt: skip
    assert code == 0, stderr
    assert re.search(r"class 1 +\d+ particles, .*[\d.]+ Å\)? at 0.143", stdout)
    assert "warning: Class 1: The FSC is odd." in stdout
    assert "Class 1: The FSC is odd." in (out / "report.html").read_text()
    for k in (1, 2, 3):
        for end in (".mrc", "_half1.mrc", "_half2.mrc", "_fsc.csv", ".star"):
            assert (out / f"class0{k}{end}").is_file()
    truth, found = volume(simulated / "truth.mrc"), volume(out / "class01.mrc")
    together = torch.corrcoef(torch.stack([truth.flatten(), found.flatten()]))[0, 1]
    assert together > 0.8
    given, table = columns(simulated / "truth.star"), columns(out / "particles.star")
    assert table["rlnAngleTilt"] == given["rlnAngleTilt"]
    table = columns(out / "class01.star")
    assert {"rlnAngleRot", "rlnOriginXAngst", "rlnRandomSubset"} <= set(table)


@pytest.mark.slow
def test_lost_poses_are_found_under_the_maps_of_clusters(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    truth = Particles.open(simulated / "truth.star")
    angles = np.array([float(v) for v in columns(simulated / "truth.star")["rlnAngleRot"]])
    angles[::8] += 120.0  # an eighth is lost
    document = truth.to_star_document(relative_to=tmp_path, rlnAngleRot=angles)
    write_star(tmp_path / "lost.star", document)
    run = (
        "hetero", "run", tmp_path / "lost.star", "--align", "--latent", "2", "--passes", "2",
        *CLASSES, *QUIET, "-o", out,
    )  # fmt: skip
    code, _, stderr = vitreous(*run)
    assert code == 0, stderr
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert next(row["round"] for row in rows if "round" in row) == 1
    before, after = (
        Particles.open(path).pose.rotation
        for path in (tmp_path / "lost.star", out / "particles.star")
    )
    wrong = [
        (geodesic_distance_deg(truth.pose.rotation, found) > 20).double().mean()
        for found in (before, after)
    ]
    assert wrong[1] < 0.5 * wrong[0]
    latest = columns(out / "particles.star")["rlnAngleRot"]
    assert columns(out / "poses.star")["rlnAngleRot"] == latest
    code, _, stderr = vitreous(*run, "--continue")
    assert code == 0, stderr
    assert columns(out / "particles.star")["rlnAngleRot"] == latest


def test_class_images_in_two_dimensions(vitreous: Any, simulated: Path, tmp_path: Path) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    code, stdout, stderr = vitreous(
        *("classify2d", star, "--no-align", "--latent", "2", "--classes", "2"),
        *CLASSES,
        *QUIET,
        *("-o", out),
    )
    assert code == 0, stderr
    assert stdout.startswith("6 class images in 3 clusters")
    assert {f.name for f in out.iterdir()} == {
        "config.toml", "checkpoints", "history.jsonl", "report.html", "particles.star",
        "classes.star", "classes.mrcs",
    }  # fmt: skip
    assert volume(out / "classes.mrcs").shape == (6, BOX, BOX)
    classes = read_star(out / "classes.star").blocks["model_classes"]
    table = columns(out / "particles.star")
    label = [int(v) for v in table["rlnClassNumber"]]
    shares = [label.count(k + 1) / COUNT for k in range(6)]
    assert classes.numbers("rlnClassDistribution").tolist() == pytest.approx(shares, abs=1e-6)
    pairs = set(zip(label, table["vitreousCluster"], strict=True))
    assert sorted(pairs) == list(enumerate(classes.text("vitreousCluster"), 1))


def test_an_overwritten_run_leaves_no_class_of_the_one_before(
    vitreous: Any, simulated: Path, tmp_path: Path
) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    run = ("hetero", "run", star, "--no-align", "--latent", "2", *QUIET, "-o", out)
    assert vitreous(*run, *CLASSES)[0] == 0
    code, _, stderr = vitreous(*run, *CLASSES)
    assert code == 2
    assert "give --continue or --overwrite" in stderr
    code, stdout, stderr = vitreous(*run, "--min-cluster", "100", "--space", "pca", "--overwrite")
    assert code == 0, stderr
    assert stdout.startswith("One cluster of 180 particles")
    assert not list(out.glob("class02*"))


def test_what_cannot_be_is_refused(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, star = tmp_path / "out", simulated / "particles.star"
    for option in ("--rounds", "--passes"):
        code, _, stderr = vitreous("hetero", "run", star, "--no-align", option, "2", "-o", out)
        assert (code, "leave out --no-align" in stderr) == (2, True)
    code, _, stderr = vitreous("hetero", "run", star, "--rounds", "0", "--passes", "2", "-o", out)
    assert (code, "needs --rounds of 1 or more" in stderr) == (2, True)
    code, _, stderr = vitreous("hetero", "run", star, "--stage", "embed", "-o", simulated)
    assert (code, "output of 'vitreous simulate'" in stderr) == (2, True)
    monkeypatch.setattr(Blobs, "stop_at", 5)
    model = tmp_path / "model"
    train = ("hetero", "run", star, "--no-align", "--latent", "2", *QUIET, "-o", model)
    assert vitreous(*train)[0] == 143
    code, _, stderr = vitreous("hetero", "run", star, "--stage", "embed", "-o", model)
    assert (code, "training has not ended" in stderr) == (2, True)
    assert not out.exists()


@pytest.mark.parametrize("command", [("hetero", "run"), ("classify2d", "--no-align")])
@pytest.mark.parametrize("count", [4, 7])
def test_too_few_particles_are_refused_with_the_least_number(
    vitreous: Any, simulated: Path, tmp_path: Path, command: tuple[str, ...], count: int
) -> None:
    lines = (simulated / "particles.star").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "@" in line)
    (simulated / "few.star").write_text("\n".join(lines[: first + count]) + "\n")
    code, _, error = vitreous(*command, simulated / "few.star", "-o", tmp_path / "out", "-q")
    assert code == 3
    assert "at least 6 each are needed" in error
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_not_finite_is_not_saved(
    vitreous: Any, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Blobs.step

    def broken(self: Blobs) -> dict[str, float]:
        self.offset[0] = torch.nan
        return step(self)

    monkeypatch.setattr(Blobs, "step", broken)
    out = tmp_path / "out"
    train = (
        "hetero",
        "run",
        simulated / "particles.star",
        "--no-align",
        "--latent",
        "2",
        *QUIET,
        "-o",
        out,
    )
    code, _, stderr = vitreous(*train)
    assert code == 5
    assert "tensors.offset is not finite" in stderr
    saved = load_checkpoint(out / "checkpoints")
    assert saved is not None
    assert not [name for name in saved.tensors if name.startswith("stage")]


def test_every_command_teaches(vitreous: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitreous.cli.hetero import app

    monkeypatch.setenv("COLUMNS", "100")
    for command in app.registered_commands:
        code, out, _ = vitreous("hetero", command.name, "--help")
        assert code == 0
        assert f"Example: vitreous hetero {command.name}" in out
