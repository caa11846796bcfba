"""Passes of ``vitreous hetero``: stopped anywhere, they come to the same end; no leftovers."""

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
import tomli_w
import torch
from torch import Tensor

from particle_files import columns
from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.io.checkpoint import load_checkpoint
from vitreous.io.star import write_star
from vitreous.jobs.hetero import solvers as sorters
from vitreous.jobs.refine import run as refine_run
from vitreous.jobs.refine.options import AutoOptions
from vitreous.methods.hetero import pose_rescue as hetero_rounds
from vitreous.methods.hetero.classification3d import Classification

COUNT, BOX, STEPS, ROUNDS = 90, 16, 4, 2
CONSENSUS_SECONDS = 1000.0
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
        return {"changed": 1.0}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, simulated: Path) -> Events:
    """Sorter, search and refinement are stand-ins that count their steps."""
    found = Events()
    truth = Particles.open(simulated / "truth.star").pose
    assert truth is not None

    def build(method: str, settings: Any, material: sorters.TrainingData) -> Columns:
        assert material.pose is not None
        return Columns(found, material.pose, truth)

    def auto(request: AutoOptions) -> Any:
        config = request.output / "config.toml"
        assert request.resume == config.is_file()
        assert not request.overwrite
        assert request.keep_all
        config.write_text(tomli_w.dumps({"run": {"status": "running"}}))
        found.tell("refine")
        if found.stop_at == len(found.names):
            raise SystemExit(143)
        document = Particles.open(simulated / "truth.star").to_star_document(
            relative_to=request.output
        )
        write_star(request.output / "particles.star", document)
        told = {"status": "finished", "solved": True, "seconds": CONSENSUS_SECONDS}
        config.write_text(tomli_w.dumps({"run": told}))
        return SimpleNamespace(solved=True, verdict="solved")

    monkeypatch.setattr(sorters, "build", build)
    monkeypatch.setattr(refine_run, "auto", auto)
    monkeypatch.setattr(Turns, "events", found, raising=False)
    monkeypatch.setattr(hetero_rounds, "Classification", Turns)
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


@pytest.mark.parametrize("stage", STAGES)
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


def test_the_time_is_that_of_all_stages(
    vitreous: Vitreous, simulated: Path, tmp_path: Path, events: Events
) -> None:
    out = tmp_path / "out"
    events.stop_at = 10
    run = ("hetero", "run", simulated / "particles.star", *OPTIONS, "--rounds", "1", "-o", out)
    assert vitreous(*run)[0] == 143
    events.stop_at = None
    code, stdout, stderr = vitreous(*run, "--continue")
    assert code == 0, stderr
    told = tomllib.loads((out / "config.toml").read_text())["run"]["seconds"]
    assert CONSENSUS_SECONDS < told < CONSENSUS_SECONDS + 60
    assert "time         16 min 4" in stdout
    saved = load_checkpoint(out / "checkpoints")
    assert saved is not None
    assert saved.meta["seconds"] > CONSENSUS_SECONDS


def test_what_an_earlier_run_left_is_not_read(
    vitreous: Vitreous, simulated: Path, tmp_path: Path, events: Events
) -> None:
    """A consensus and poses of a table without any, then a table that has them, and back."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    none, some = simulated / "particles.star", simulated / "truth.star"
    few = (*OPTIONS, "--rounds", "1", "--points", "2", "-o")
    assert vitreous("hetero", "run", none, *few, out)[0] == 0
    assert {"consensus", "poses.star"} <= {one.name for one in out.iterdir()}
    code, _, stderr = vitreous("hetero", "run", some, *OPTIONS, "-o", out, "--overwrite")
    assert code == 0, stderr
    assert vitreous("hetero", "run", some, *OPTIONS, "-o", fresh)[0] == 0
    assert digests(out) == digests(fresh)
    assert not [one for one in (out / "consensus").rglob("*") if one.is_file()]
    assert columns(out / "particles.star")["rlnAngleRot"] == columns(some)["rlnAngleRot"]

    # planted by hand: a consensus and poses that this run did not make
    for name in ("poses.star", "consensus/particles.star"):
        write_star(out / name, _turned(some, out))
    told = {"run": {"status": "finished", "solved": True}}
    (out / "consensus" / "config.toml").write_text(tomli_w.dumps(told))
    code, _, stderr = vitreous("hetero", "run", some, *OPTIONS, "-o", out, "--continue")
    assert code == 0, stderr
    assert columns(out / "particles.star")["rlnAngleRot"] == columns(some)["rlnAngleRot"]
    for source, target in ((out, "one"), (fresh, "other")):
        code, _, stderr = vitreous("hetero", "embed", source, "-q", "-o", tmp_path / target)
        assert code == 0, stderr
    assert digests(tmp_path / "one") == digests(tmp_path / "other")

    # overwritten by a run that has to find poses: it finds its own
    events.names.clear()
    code, _, stderr = vitreous("hetero", "run", none, *few, out, "--overwrite")
    assert code == 0, stderr
    assert events.names[0] == "refine"


def _turned(table: Path, folder: Path) -> Any:
    """The table with other angles."""
    angles = [float(v) + 90.0 for v in columns(table)["rlnAngleRot"]]
    return Particles.open(table).to_star_document(relative_to=folder, rlnAngleRot=angles)


def test_particles_of_no_structure_are_refused(
    vitreous: Vitreous,
    simulated: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        refine_run, "auto", lambda _: SimpleNamespace(solved=False, verdict="NOT SOLVED")
    )
    run = ("hetero", "run", simulated / "particles.star", *OPTIONS, "-o", tmp_path / "out")
    code, _, stderr = vitreous(*run)
    assert (code, "no structure that all particles agree on" in stderr) == (3, True)


def test_passes_end_when_clusters_no_longer_change(
    vitreous: Vitreous, simulated: Path, tmp_path: Path, events: Events
) -> None:
    for number, most in ((3, "9"), (2, "2"), (1, "1")):
        events.names.clear()
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


def test_a_search_goes_on_from_its_last_round(
    vitreous: Vitreous,
    simulated: Path,
    tmp_path: Path,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the solver itself; stopped in the second round, whose work is lost."""
    monkeypatch.setattr(hetero_rounds, "Classification", Classification)
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
