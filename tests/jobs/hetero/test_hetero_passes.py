"""Passes of ``vitreous hetero run``: stopped anywhere, they come to the same end."""

from __future__ import annotations

import json
import signal
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from particle_files import columns
from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.jobs.hetero import models, passes
from vitreous.jobs.run.job import Job
from vitreous.methods.hetero import pose_rescue
from vitreous.methods.hetero.classification3d import Classification

COUNT, BOX, STEPS, ROUNDS = 90, 16, 4, 2
OPTIONS = ("--latent", "2", "--min-cluster", "20", "--space", "pca", "--threads", "1", "-q")
Vitreous = Callable[..., tuple[int, str, str]]


class Events:
    """Steps of all stand-ins; one of them can be stopped at."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.stop_at: int | None = None

    def tell(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.stop_at:
            signal.raise_signal(signal.SIGTERM)


class Columns:
    """Two clusters, which are others with the first poses than with those that were found later."""

    box_size = BOX

    def __init__(self, events: Events, pose: Pose, first: Pose) -> None:
        self.events, self.steps = events, 0
        self.known = bool((pose.rotation - first.rotation).abs().max() < 1e-4)
        self.mean = pose.rotation.double().mean((0, 1))[:2].float()
        self.generator = torch.Generator().manual_seed(1)
        self.offset = torch.zeros(2)

    @property
    def done(self) -> bool:
        return self.steps >= STEPS

    @property
    def progress(self) -> float:
        return self.steps / STEPS

    def step(self) -> dict[str, float]:
        self.events.tell("step")
        self.offset += torch.randn(2, generator=self.generator) + self.mean
        self.steps += 1
        return {"loss": float(self.offset[0])}

    def embed(self, rows: Tensor) -> Tensor:
        self.events.tell("embed")
        noise = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(2))[rows]
        kind = rows % 2 if self.known else (rows >= COUNT // 2).long()
        return 20.0 * kind[:, None] + noise + self.offset

    def volume(self, latent: Tensor) -> Tensor:
        self.events.tell("volume")
        return torch.full((BOX,) * 3, float(latent[0]))

    def result(self) -> Columns:
        return self

    def state_dict(self) -> dict[str, Any]:
        made = {"generator": self.generator.get_state(), "offset": self.offset.clone()}
        return {"steps": self.steps, **made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.offset = state["steps"], state["offset"].clone()
        self.generator.set_state(state["generator"])


class Turns(Classification):
    """Rounds that turn poses a little instead of seeking them."""

    events: Events

    def step(self) -> dict[str, float]:
        self.events.tell("round")
        turn = 0.3 * self.maps.mean() + 0.1 * (self.round + 1)
        about_z = torch.matrix_exp(turn * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]]))
        self._candidates = replace(self._candidates, rotation=self._candidates.rotation @ about_z)
        self.maps = self.maps * 1.1
        self.round += 1
        return {"round": self.round, "changed": 1.0}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, simulated: Path) -> Events:
    """Sorter, search and refinement are stand-ins that count their steps."""
    found = Events()
    truth = Particles.open(simulated / "truth.star").pose
    assert truth is not None

    def build(kind: str, settings: Any, data: models.TrainingData) -> Columns:
        assert data.pose is not None
        return Columns(found, data.pose, truth)

    def start(job: Job, *_: Any) -> Any:
        found.tell("refine")
        job.report_progress(0.0)
        job.state["initial_model"] = {}
        return SimpleNamespace(solved=True, verdict="")

    refined = SimpleNamespace(poses=SimpleNamespace(pose=truth))
    monkeypatch.setattr(models, "build_model", build)
    monkeypatch.setattr(passes, "initial_model_stage", start)
    monkeypatch.setattr(passes, "refinement_stage", lambda *_: refined)
    monkeypatch.setattr(passes, "images_evidence", lambda *_: SimpleNamespace(shown=True))
    monkeypatch.setattr(Turns, "events", found, raising=False)
    monkeypatch.setattr(pose_rescue, "Classification", Turns)
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", str(BOX), "--apix", "8", "--n", str(COUNT), "--snr-db", "10")
    done = CliRunner().invoke(
        app, ["simulate", "phantom:3", *size, "--threads", "1", "-o", str(folder), "-q"]
    )
    assert done.exit_code == 0, done.output
    return folder


def digests(folder: Path) -> dict[str, bytes]:
    """Content of every file that must not depend on time."""
    timed = {"config.toml", "report.html", "history.jsonl"}
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name not in timed}


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows without the time."""
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


WHOLE = [
    "refine",
    *["step"] * STEPS, "embed", *["round"] * ROUNDS,
    *["step"] * STEPS, "embed", *["round"] * ROUNDS,
    *["step"] * STEPS, "embed", *["volume"] * 4,
]  # fmt: skip
STAGES = {
    "consensus": 1,
    "first sorting": 3,
    "its clusters": 6,
    "first search": 7,
    "its last round": 8,
    "second sorting": 10,
    "second search": 14,
    "last sorting": 19,
    "maps along clusters": 22,
}


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


FAST = {"maps along clusters"}


@pytest.mark.parametrize(
    "stage",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STAGES],
)
def test_a_run_stopped_at_any_stage_goes_on_to_the_same_end(
    vitreous: Vitreous,
    simulated: Path,
    tmp_path: Path,
    events: Events,
    kept: dict[str, Any],
    stage: str,
) -> None:
    run = (
        "hetero", "run", simulated / "particles.star", *OPTIONS,
        "--rounds", str(ROUNDS), "--points", "2", "-o",
    )  # fmt: skip
    if not kept:
        code, _, stderr = vitreous(*run, tmp_path / "whole")
        assert code == 0, stderr
        assert events.names == WHOLE
        kept["files"], kept["rows"] = digests(tmp_path / "whole"), history(tmp_path / "whole")
        events.names.clear()
    out = tmp_path / "parts"
    events.stop_at = STAGES[stage]
    code, _, stderr = vitreous(*run, out)
    assert code == 143, stderr
    done = len(events.names)
    assert done < len(WHOLE)
    events.stop_at = None
    code, _, stderr = vitreous(*run, out, "--continue")
    assert code == 0, stderr
    assert digests(out) == kept["files"]
    assert history(out) == kept["rows"]
    again = len(events.names) - len(WHOLE)
    assert again <= 3  # what is quickly done again: clusters, maps along them


@pytest.mark.slow
def test_what_an_earlier_run_left_is_not_read(
    vitreous: Vitreous, simulated: Path, tmp_path: Path, events: Events
) -> None:
    """A table without poses, then one that has them."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    none, some = simulated / "particles.star", simulated / "truth.star"
    few = (*OPTIONS, "--rounds", "1", "--points", "2", "-o")
    assert vitreous("hetero", "run", none, *few, out)[0] == 0
    assert "poses.star" in {one.name for one in out.iterdir()}
    code, _, stderr = vitreous("hetero", "run", some, *OPTIONS, "-o", out, "--overwrite")
    assert code == 0, stderr
    assert vitreous("hetero", "run", some, *OPTIONS, "-o", fresh)[0] == 0
    assert digests(out) == digests(fresh)
    assert columns(out / "particles.star")["rlnAngleRot"] == columns(some)["rlnAngleRot"]


def test_particles_of_no_structure_are_refused(
    vitreous: Vitreous,
    simulated: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsolved = SimpleNamespace(solved=False, verdict="NOT SOLVED")
    monkeypatch.setattr(passes, "initial_model_stage", lambda *_: unsolved)
    run = ("hetero", "run", simulated / "particles.star", *OPTIONS, "-o", tmp_path / "out")
    code, _, stderr = vitreous(*run)
    assert (code, "no structure that all particles agree on" in stderr) == (3, True)


@pytest.mark.parametrize(
    ("number", "most"), [(3, "9"), (2, "2"), pytest.param(1, "1", marks=pytest.mark.slow)]
)
def test_passes_end_when_clusters_no_longer_change(
    vitreous: Vitreous, simulated: Path, tmp_path: Path, events: Events, number: int, most: str
) -> None:
    out = tmp_path / most
    few = ("--rounds", "1", "--passes", most, "-o", out)
    code, _, stderr = vitreous(
        "hetero", "run", simulated / "particles.star", *OPTIONS, "--points", "2", *few
    )
    assert code == 0, stderr
    assert events.names.count("step") == number * STEPS
    assert events.names.count("round") == number - 1
    told = tomllib.loads((out / "config.toml").read_text())["run"]
    assert told.get("passes", 1) == number
    unsettled = "clusters still changed" in (out / "report.html").read_text()
    assert unsettled == (number == 2)


@pytest.mark.slow
def test_a_search_goes_on_from_its_last_round(
    vitreous: Vitreous,
    simulated: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the solver itself; stopped in the second round, whose work is lost."""
    monkeypatch.setattr(pose_rescue, "Classification", Classification)
    run = (
        "hetero", "run", simulated / "truth.star", *OPTIONS,
        "--passes", "2", "--rounds", "2", "--points", "2", "-o",
    )  # fmt: skip
    assert vitreous(*run, tmp_path / "whole")[0] == 0
    rounds = [0]
    assign = Classification._assign

    def counted(self: Classification) -> None:
        rounds[0] += 1
        if rounds[0] == 2:
            signal.raise_signal(signal.SIGTERM)
        assign(self)

    monkeypatch.setattr(Classification, "_assign", counted)
    code, _, stderr = vitreous(*run, tmp_path / "parts")
    assert code == 143, stderr
    code, _, stderr = vitreous(*run, tmp_path / "parts", "--continue")
    assert code == 0, stderr
    assert rounds == [3]
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
