"""``hetero`` called from Python, with the linear model itself."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from particle_files import columns
from vitreous.data.particles import Particles
from vitreous.jobs.hetero import passes
from vitreous.jobs.hetero.options import HeteroOptions
from vitreous.jobs.hetero.run import hetero
from vitreous.methods.em.finer_shells_test import FinerShells
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.hetero.linear_variability import LinearVariability

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 particles of two molecules, 16 px, little noise."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", "16", "--apix", "10", "--n", "80", "--snr-db", "10", "--seed", "3")
    kinds = ("phantom:3", "--also", "phantom:4", "--threads", "1", "-q", "-o", str(folder))
    done = CliRunner().invoke(app, ["simulate", *kinds, *size])
    assert done.exit_code == 0, done.output
    return folder


def options(simulated: Path, output: Path, **more: Any) -> HeteroOptions:
    small = {"latent_dimensions": 2, "effort": 0.3, "space": "pca", "min_cluster_size": 20}
    return HeteroOptions(
        particles=simulated / "truth.star", output=output, threads=1, quiet=True, **small | more
    )


def test_ten_lines(simulated: Path, tmp_path: Path) -> None:
    result = hetero(options(simulated, tmp_path / "OUT", points=2))
    assert result.clusters is not None
    assert result.trained.latent.shape == (80, 2)
    assert len(result.maps) == len(result.traversals) == len(result.clusters)
    assert result.maps[0] is not None
    assert result.maps[0].volume.shape == (16, 16, 16)
    assert (result.folder / "class01.mrc").is_file()
    assert result.solved is None
    finer = hetero(options(simulated, tmp_path / "OUT", points=3, stage="traverse"))
    assert torch.equal(finer.trained.latent, result.trained.latent)
    assert len(finer.traversals[0].maps) == 3


def test_first_poses_that_the_images_do_not_bear_out_are_a_warning(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pose = Particles.open(simulated / "truth.star").pose
    refined = SimpleNamespace(poses=SimpleNamespace(pose=pose), resolution_angstrom=20.0)

    def start(job: Any, *_: Any) -> Any:
        job.state[passes.INITIAL_MODEL] = {}
        return SimpleNamespace(solved=True)

    monkeypatch.setattr(passes, "initial_model_stage", start)
    monkeypatch.setattr(passes, "refinement_stage", lambda *_: refined)
    wrong = FinerShells(1.0, 0.1, 30.0, 24.0, 80)
    monkeypatch.setattr(passes, "images_evidence", lambda *_: wrong)
    given = options(simulated, tmp_path / "OUT", points=2)
    result = hetero(given.replaced(particles=simulated / "particles.star"))
    said = "the half maps agree to 20.0 Å, but the images do not bear it out"
    assert said in result.text
    assert said in (tmp_path / "OUT" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_stopped_and_continued_is_bitwise_the_same(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"passes": 2, "rounds": 1, "points": 2}
    whole = hetero(options(simulated, tmp_path / "WHOLE", **few))
    step = LinearVariability.step

    def step_and_stop(self: LinearVariability) -> dict[str, float]:
        if self.passes == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(LinearVariability, "step", step_and_stop)
    with pytest.raises(SystemExit):
        hetero(options(simulated, tmp_path / "PARTS", **few))
    monkeypatch.setattr(LinearVariability, "step", step)
    parts = hetero(options(simulated, tmp_path / "PARTS", resume=True, **few))
    assert torch.equal(parts.trained.latent, whole.trained.latent)
    for name in ("particles.star", "class01.mrc", "class01_pc1_1.mrc"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.slow
def test_poses_that_the_table_lacks_are_refined_in_the_same_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the refinement of all particles to one structure, and continued."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    size = ("--sym", "D2", "--box", "24", "--apix", "8", "--n", "240", "--snr-db", "0")
    more = ("--seed", "3", "--shift", "triangular:20", "--b-factor", "200", "--threads", "1", "-q")
    command = ["simulate", "phantom:3", *size, *more, "-o", str(tmp_path / "sim")]
    assert CliRunner().invoke(app, command).exit_code == 0
    given = options(
        tmp_path / "sim", tmp_path / "OUT", symmetry="D2", box_size=16, seed=1, min_cluster_size=60
    ).replaced(particles=tmp_path / "sim" / "particles.star", passes=2, rounds=1, points=2)
    step = Refinement.step

    def step_and_stop(self: Refinement) -> dict[str, float]:
        if self.round == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Refinement, "step", step_and_stop)
    with pytest.raises(SystemExit):
        hetero(given)
    monkeypatch.setattr(Refinement, "step", step)
    result = hetero(given.replaced(resume=True))
    assert result.clusters is not None
    assert len(result.clusters) == 1
    assert result.trained.data.pose is not None
    assert "rlnAngleRot" in columns(result.folder / "particles.star")
    steps = [json.loads(row) for row in (result.folder / "history.jsonl").read_text().splitlines()]
    numbers = [row["step"] for row in steps if "step" in row]
    assert numbers == list(range(1, len(numbers) + 1))
