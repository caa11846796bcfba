"""``auto`` and ``refine`` called from Python, stopped and continued."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vitreous as vt
from vitreous.core.errors import InputError, UsageError
from vitreous.data.maps import read_map
from vitreous.jobs.refine import stages
from vitreous.jobs.refine.options import AutoOptions, RefineOptions
from vitreous.jobs.refine.run import auto, refine
from vitreous.jobs.run.job import Job
from vitreous.maps.fsc import fsc
from vitreous.methods.em import config
from vitreous.methods.em.config import InitialModelConfig, RefinementConfig
from vitreous.methods.em.finer_shells_test import FinerShells
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.random_start import RandomStart


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 particles of 16 px, D2, little noise."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", "16", "--apix", "12", "--n", "120", "--snr-db", "10", "--seed", "3")
    more = ("--sym", "D2", "--threads", "1", "-q", "-o", str(folder))
    done = CliRunner().invoke(app, ["simulate", "phantom:3", *size, *more])
    assert done.exit_code == 0, done.output
    return folder


def options(simulated: Path, output: Path, **more: Any) -> AutoOptions:
    small = {"images": 40, "starts": 1, "tries": 1, "symmetry": "D2", "threads": 1, "quiet": True}
    small["particles"] = simulated / "particles.star"
    return AutoOptions(output=output, **small | more)


@pytest.mark.slow
def test_ten_lines(simulated: Path, tmp_path: Path) -> None:
    found = auto(options(simulated, tmp_path / "AUTO", only_start=True))
    assert found.refinement is None
    assert not found.solved  # too few particles to say so
    assert "Only 80 of the 120 particles were used; give more `images`" in found.verdict
    assert "80 of 120" in found.text
    page = (found.folder / "report.html").read_text()
    assert "does not overrule the verdict" in found.text
    assert "resolution at 0.143" not in page
    assert "starts " not in found.text
    refined = refine(
        RefineOptions(
            particles=simulated / "particles.star", start_map=simulated / "truth.mrc", rounds=1,
            start_resolution_angstrom=60, output=tmp_path / "REFINE", threads=1, quiet=True,
        )
    )  # fmt: skip
    assert refined.solved
    assert refined.refinement is not None
    volume, pixel = read_map(refined.folder / "map.mrc")
    assert torch.allclose(volume, refined.refinement.map.cpu(), atol=1e-6)
    assert pixel == 12.0
    assert refined.resolution_angstrom < 60


def test_too_few_particles_are_refused_before_anything_is_written(
    simulated: Path, tmp_path: Path
) -> None:
    from vitreous.jobs.tables.options import SelectOptions
    from vitreous.jobs.tables.run import select

    few = simulated / "few.star"
    select(SelectOptions(source=simulated / "particles.star", output=few, first=7, overwrite=True))
    with pytest.raises(InputError, match=r"few.star: half sets of 3 and 4 .*at least 4 each"):
        auto(options(simulated, tmp_path / "AUTO", particles=few))
    assert not (tmp_path / "AUTO").exists()


@pytest.mark.slow
def test_auto_stopped_in_its_random_starts_goes_on_to_the_same_end(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = auto(options(simulated, tmp_path / "WHOLE", only_start=True))
    step, steps = RandomStart.step, 0

    def step_and_stop(self: RandomStart) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 45:  # in the random start of half set 2
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(RandomStart, "step", step_and_stop)
    with pytest.raises(SystemExit):
        auto(options(simulated, tmp_path / "PARTS", only_start=True))
    assert steps == 45
    parts = auto(options(simulated, tmp_path / "PARTS", only_start=True, resume=True))
    assert torch.equal(parts.initial_model.half1, whole.initial_model.half1)
    assert torch.equal(parts.initial_model.half2, whole.initial_model.half2)
    assert parts.verdict == whole.verdict
    names = ("start.mrc", "particles.star", "fsc.csv")
    for name in names:
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_only_a_start_has_no_rounds(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`rounds`: `only_start` ends before the rounds"):
        auto(options(simulated, tmp_path / "OUT", only_start=True, rounds=3))


def refine_options(simulated: Path, output: Path, **more: Any) -> RefineOptions:
    given = {"particles": simulated / "particles.star", "start_map": simulated / "truth.mrc"}
    small = {"rounds": 1, "start_resolution_angstrom": 60, "threads": 1, "quiet": True}
    return RefineOptions(output=output, **given | small | more)


def answers_in_turn(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> list[FinerShells]:
    """Let the question about finer shells be answered so, one refinement after the other."""
    answers: list[FinerShells] = []

    def answer(*_: Any, **__: Any) -> FinerShells:
        ratio = ratios[len(answers)]
        answers.append(FinerShells(9.0, ratio, 30.0, 24.0, 100, standing_out=1.4))
        return answers[-1]

    monkeypatch.setattr(stages, "finer_shells_test", answer)
    return answers


def test_images_that_show_more_than_the_map_are_searched_again(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answers_in_turn(monkeypatch, 1.7, 3.0, 1.7)
    found = refine(refine_options(simulated, tmp_path / "OUT"))
    assert [one.ratio for one in answers] == [1.7, 3.0, 1.7]
    assert found.solved
    assert found.finer_shells == answers[2]
    assert len((found.folder / "history.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("ratio", "standing_out", "times", "again"),
    [(1.8, 1.4, 0, True), (1.8, 1.4, 1, False), (1.8, 1.2, 0, False), (3.0, 1.2, 1, True)],
)
def test_where_the_map_accounts_for_the_images_only_a_large_excess_searches_anew(
    ratio: float, standing_out: float, times: int, again: bool
) -> None:
    finer = FinerShells(9.0, ratio, 30.0, 24.0, 100, standing_out=standing_out)
    assert stages.search_again(finer, times) == again


@pytest.mark.slow
def test_stopped_in_the_second_refinement_goes_on_to_the_same_end(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_in_turn(monkeypatch, 1.7, 1.0)
    whole = refine(refine_options(simulated, tmp_path / "WHOLE", rounds=2))
    answers_in_turn(monkeypatch, 1.7)
    kept = Job.keep

    def keep_and_stop(self: Job, name: str, value: Any) -> None:
        kept(self, name, value)
        if name == f"{stages.REFINEMENT}{stages.AGAIN}":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Job, "keep", keep_and_stop)
    with pytest.raises(SystemExit):
        refine(refine_options(simulated, tmp_path / "PARTS", rounds=2))
    monkeypatch.setattr(Job, "keep", kept)
    answers_in_turn(monkeypatch, 1.0)
    parts = refine(refine_options(simulated, tmp_path / "PARTS", rounds=2, resume=True))
    assert parts.refinement is not None
    assert whole.refinement is not None
    assert torch.equal(parts.refinement.half1, whole.refinement.half1)
    assert parts.verdict == whole.verdict


def test_a_map_that_the_images_do_not_show_is_not_solved(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FinerShells(1.0, 0.1, 30.0, 24.0, 100)
    monkeypatch.setattr(stages, "finer_shells_test", lambda *_, **__: wrong)
    found = refine(refine_options(simulated, tmp_path / "OUT"))
    assert not found.solved
    assert found.verdict.startswith("NOT SOLVED: the half maps agree to ")
    assert "by 1.0 standard errors (7 are needed); the images show" in found.verdict
    assert "0.10 times as strongly as images simulated" in found.verdict
    assert "as often as" not in found.verdict  # that is right
    assert "stable poses 1.00 of those predicted (0.9 needed), signal 1.00" in found.text
    assert "`start_resolution_angstrom`" in found.verdict
    assert "none, as the map is not solved" in found.text


def test_half_maps_that_agree_on_nothing_are_not_solved(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "images_evidence", lambda *_: None)
    found = refine(refine_options(simulated, tmp_path / "OUT", rounds=1))
    assert not found.solved
    assert found.verdict.startswith("NOT SOLVED: the half maps agree on nothing. Try a finer")


def test_the_prior_reaches_the_refinement(simulated: Path, tmp_path: Path) -> None:
    assert refine_options(simulated, tmp_path / "OUT", prior="tv").settings()["prior"] == "tv"


@pytest.mark.parametrize(("symmetry", "tries", "runs"), [("O", 3, 2), ("O", 1, 1), ("D2", 3, 1)])
def test_a_map_that_is_not_shown_is_followed_by_starts_at_finer_shells(
    simulated: Path, monkeypatch: pytest.MonkeyPatch, symmetry: str, tries: int, runs: int
) -> None:
    ball = torch.zeros(32, 32, 32)
    ball[12:21, 12:21, 12:21] = 1.0
    ends = [
        stages.Solution(InitialModel(ball, ball, 40.0), None, FinerShells(9.0, ratio, 9, 8, 100))
        for ratio in (0.1, 1.0)
    ]
    searches: list[InitialModelConfig] = []

    def end(_job: Any, _data: Any, search: Any, refinement: Any, *_: Any) -> stages.Solution:
        searches.append(search)
        assert refinement.diameter_angstrom == search.diameter_angstrom
        return ends[min(len(searches), 2) - 1]

    monkeypatch.setattr(stages, "_solution_from", end)
    job: Any = SimpleNamespace(state={})
    job.keep = job.state.__setitem__
    data: Any = SimpleNamespace(box_size=32, pixel_size_angstrom=5.0)
    search = InitialModelConfig(symmetry=symmetry, tries=tries)
    found = stages.solution(job, data, search, RefinementConfig(symmetry=symmetry))
    assert len(searches) == runs
    assert found.confirmed == (runs == 2)
    assert [one.tries for one in searches] == ([1, 2] if runs == 2 else [tries])
    if runs == 2:
        diameter = searches[1].diameter_angstrom
        assert diameter is not None
        assert 70 < diameter < 125  # the cube's diagonal is 70 Å; the mask is wider
        assert found.finer_start_angstrom == 160 / searches[1].start_radius
        assert searches[1].start_radius == min(15, round(1600 / diameter))
        found = stages.solution(job, data, search, RefinementConfig())
        assert len(searches) == 3  # continued: what had ended is not done again


@pytest.mark.slow
def test_stopped_before_starts_at_finer_shells_goes_on_to_the_same_end(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_FINER_ORDER", 4)
    for name in ("_FINER_STARTS", "_FINER_ROUNDS", "_FINER_DEGREES"):
        monkeypatch.setattr(config, name, 1)
    given = {"images": 40, "rounds": 2, "tries": 2}  # too few for a start to be believed
    whole = auto(options(simulated, tmp_path / "WHOLE", **given))
    assert ", starts at 27 Å" in whole.text
    kept = Job.keep

    def keep_and_stop(self: Job, name: str, value: Any) -> None:
        kept(self, name, value)
        if name == stages.FINER_START:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Job, "keep", keep_and_stop)
    with pytest.raises(SystemExit):
        auto(options(simulated, tmp_path / "PARTS", **given))
    monkeypatch.setattr(Job, "keep", kept)
    parts = auto(options(simulated, tmp_path / "PARTS", resume=True, **given))
    assert torch.equal(parts.initial_model.half1, whole.initial_model.half1)
    assert parts.verdict == whole.verdict


def test_half_maps_of_opposite_hands_begin_again_with_one() -> None:
    one = vt.phantom(24, 8.0, seed=2)
    other = torch.roll(one.flip(0), 1, 0)
    ended: Any = SimpleNamespace(half1=one, half2=other)
    unsure = FinerShells(9.0, 3.0, 60.0, 40.0, 100)
    start = stages.start_again(ended, unsure, RefinementConfig(), 8.0)
    assert start.resolution_angstrom == 60.0
    assert torch.equal(start.half1, one)
    assert float(fsc(start.half2, one)[:8].min()) > 0.95
    ended.half2 = one * 2
    assert torch.equal(stages.start_again(ended, unsure, RefinementConfig(), 8.0).half2, one * 2)
