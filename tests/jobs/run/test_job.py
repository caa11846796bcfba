"""A job that is stopped anywhere and continued ends as one that is left alone."""

from __future__ import annotations

import json
import signal
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitreous.core.errors import DivergedError, InputError, UsageError
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.options import RunOptions
from vitreous.jobs.run.signals import StopSignals
from vitreous.optim.loop import Solver

STEPS = 4  # of each stage
FILES = ("result.txt",)


class Options(RunOptions):
    """What a job needs, and one setting."""

    quiet: bool = True
    rate: float = 0.5


class RandomWalk:
    """A solver with everything that is hard to restore: a random stream, nested state, moments."""

    def __init__(self, start: Tensor, rate: float, before_step: Callable[[int], object]) -> None:
        self.x, self.rate, self.count = start.clone(), rate, 0
        self._stream = torch.Generator().manual_seed(7)
        self._moments: dict[int, tuple[Tensor, float]] = {}
        self._before_step = before_step

    @property
    def done(self) -> bool:
        return self.count >= STEPS

    @property
    def progress(self) -> float:
        return self.count / STEPS

    def step(self) -> dict[str, float]:
        self._before_step(self.count)
        self.x = self.x + self.rate * torch.randn(3, generator=self._stream)
        self._moments[self.count] = (self.x.square(), float(self.x.sum()))
        self.count += 1
        return {"sum": float(self.x.sum()), "nan": float("nan")}

    def state_dict(self) -> dict[str, Any]:
        stream = self._stream.get_state()
        return {"x": self.x, "count": self.count, "stream": stream, "moments": self._moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.count = state["x"], state["count"]
        self._stream.set_state(state["stream"])
        self._moments = dict(state["moments"])

    def result(self) -> tuple[Tensor, int]:
        return sum((a for a, _ in self._moments.values()), self.x), len(self._moments)


class Interruption:
    """Does something at one of the events of a run, counted from 0."""

    def __init__(self, at: int, what: Callable[[], object]) -> None:
        self._at, self._what, self.events = at, what, 0

    def __call__(self, *_: object) -> None:
        self.events += 1
        if self.events - 1 == self._at:
            self._what()


def two_stages(options: Options, event: Callable[..., object], save_seconds: float) -> str:
    """A job of two solvers, the second from the first one's result; what its files say."""
    with Job(
        "toy", options, outputs=FILES, resolved={"data": "abc"}, save_seconds=save_seconds
    ) as job:
        if "first" not in job.state:
            first = RandomWalk(torch.zeros(3), options.rate, event)
            x, count = job.run(first, "first", columns={"stage": "first"}, share=(0, 0.5), rows=2)
            event()
            job.keep("first", {"x": x, "count": count})
        event()
        second = RandomWalk(job.state["first"]["x"], options.rate, event)
        columns = {"stage": "second"}
        x, count = job.run(second, "second", columns=columns, share=(0.5, 1), rows=None)
        event()
        text = f"{x.tolist()} {count} {job.state['first']['count']}"
        job.path("result.txt").write_text(text)
        job.finish({"verdict": "done"})
    return text


def history(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("unbroken") / "OUT"
    return two_stages(Options(output=folder), lambda *_: None, 1e9), history(folder)


class BrokenError(Exception):
    """An error in the middle of a run."""


def fail() -> None:
    raise BrokenError


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


EVENTS = 2 * STEPS + 3


@pytest.mark.parametrize("at", range(EVENTS))
@pytest.mark.parametrize(("what", "save_seconds"), [(terminate, 1e9), (fail, 0.0), (fail, 1e9)])
def test_fault_24_continued_equals_uninterrupted(
    tmp_path: Path,
    unbroken: tuple[str, list[dict[str, Any]]],
    at: int,
    what: Callable[[], None],
    save_seconds: float,
) -> None:
    options = Options(output=tmp_path / "OUT")
    interruption = Interruption(at, what)
    if what is fail:
        with pytest.raises(BrokenError):
            two_stages(options, interruption, save_seconds)
    elif at < EVENTS - 2:
        with pytest.raises(SystemExit) as leaving:
            two_stages(options, interruption, save_seconds)
        assert leaving.value.code == 128 + signal.SIGTERM
    else:  # no step is left after which to stop
        assert two_stages(options, interruption, save_seconds) == unbroken[0]
    assert interruption.events > at
    text = two_stages(options.replaced(resume=True), lambda *_: None, save_seconds)
    assert (text, history(options.output)) == unbroken


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_continued_after_every_single_step(
    tmp_path: Path, unbroken: tuple[str, list[dict[str, Any]]], save_seconds: float
) -> None:
    """Stopped again and again: only what a signal has saved is gone on from."""
    options = Options(output=tmp_path / "OUT")
    for _ in range(2 * STEPS - 2):
        with pytest.raises(SystemExit):
            two_stages(options, Interruption(0, terminate), save_seconds)
        options = options.replaced(resume=True)
    two_stages(options, lambda *_: None, save_seconds)
    assert history(options.output) == unbroken[1]


def test_a_finished_run_is_written_once_more_without_a_step(
    tmp_path: Path, unbroken: tuple[str, list[dict[str, Any]]], capsys: Any
) -> None:
    options = Options(output=tmp_path / "OUT")
    two_stages(options, lambda *_: None, 1e9)
    (options.output / "result.txt").unlink()
    events = Interruption(-1, fail)
    assert two_stages(options.replaced(resume=True), events, 1e9) == unbroken[0]
    assert events.events == 2  # none of them before a step
    assert "finished already" in capsys.readouterr().err
    assert history(options.output) == unbroken[1]


def test_the_clock_leaves_interruptions_out_and_goes_on(tmp_path: Path) -> None:
    options = Options(output=tmp_path / "OUT")
    with pytest.raises(SystemExit):
        two_stages(options, Interruption(2, terminate), 1e9)
    with Job("toy", options.replaced(resume=True), outputs=FILES, resolved={"data": "abc"}) as job:
        first = job.seconds()
        assert 0 < first < 10
        assert job.step == 3
        assert [row["step"] for row in job.history.rows] == [2]


def test_rows_hold_means_and_are_numbered_over_stages(
    unbroken: tuple[str, list[dict[str, Any]]],
) -> None:
    rows = unbroken[1]
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 7, 8]
    walk = RandomWalk(torch.zeros(3), 0.5, lambda _: None)
    sums = [walk.step()["sum"] for _ in range(STEPS)]
    assert rows[0]["sum"] == pytest.approx((sums[0] + sums[1]) / 2)
    assert [row.get("nan", "left out") for row in rows] == ["left out"] * 2 + [None] * 4


def test_other_options_or_data_are_not_continued(tmp_path: Path) -> None:
    options = Options(output=tmp_path / "OUT")
    with pytest.raises(BrokenError):
        two_stages(options, Interruption(2, fail), 0.0)
    with pytest.raises(InputError, match=r"rate: 0.5 -> 0.25"):
        two_stages(options.replaced(resume=True, rate=0.25), lambda *_: None, 0.0)
    with (
        pytest.raises(InputError, match="data: abc -> xyz"),
        Job("toy", options.replaced(resume=True), outputs=FILES, resolved={"data": "xyz"}),
    ):
        pass
    with pytest.raises(UsageError, match="holds an unfinished run"):
        two_stages(options, lambda *_: None, 0.0)
    two_stages(options.replaced(overwrite=True, rate=0.25), lambda *_: None, 0.0)


class Diverging(RandomWalk):
    """Becomes infinite or NaN at a step, and sound again after it."""

    def __init__(self, value: float, at: int) -> None:
        super().__init__(torch.zeros(3), 0.5, lambda _: None)
        self._value, self._at = value, at

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.count == self._at:
            state["x"] = torch.full((3,), self._value)
        return state


def run_one(options: Options, solver: Solver[Any], **more: Any) -> None:
    with Job("toy", options, outputs=FILES, save_seconds=0.0) as job:
        job.run(solver, "only", **more)


def test_fault_28_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, capsys: Any) -> None:
    run_one(Options(output=tmp_path / "a"), Diverging(float("nan"), 2))
    assert "stage.solver.x is not finite; nothing was saved" in capsys.readouterr().err
    with pytest.raises(DivergedError, match=r"stage.solver.x is not finite, so it was not saved"):
        run_one(Options(output=tmp_path / "b"), Diverging(float("inf"), STEPS))
    with Job("toy", Options(output=tmp_path / "b", resume=True), outputs=FILES) as job:
        assert job.step == STEPS - 1
    run_one(Options(output=tmp_path / "c"), Diverging(float("inf"), STEPS), allow_infinite=True)
    with pytest.raises(DivergedError):
        run_one(Options(output=tmp_path / "d"), Diverging(float("nan"), STEPS), allow_infinite=True)


def test_input_rejected_at_the_start_leaves_no_trace(tmp_path: Path) -> None:
    def reject(options: Options, steps: int) -> None:
        with Job("toy", options, outputs=FILES) as job:
            if steps:
                job.run(RandomWalk(torch.zeros(3), 0.5, lambda _: None), "only")
            job.path("result.txt").write_text("half a result")
            raise InputError("particles.star: bad")

    with pytest.raises(InputError):
        reject(Options(output=tmp_path / "a"), 0)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError):
        reject(Options(output=tmp_path / "b"), STEPS)
    assert (tmp_path / "b" / "checkpoints").is_dir()


def test_fault_23_a_signal_inside_a_long_step_stops_it_there(tmp_path: Path, capsys: Any) -> None:
    options = Options(output=tmp_path / "OUT")

    def attempt(event: Callable[[Job, int], object]) -> None:
        with Job("toy", options, outputs=FILES, save_seconds=0.0) as job:
            job.run(RandomWalk(torch.zeros(3), 0.5, lambda count: event(job, count)), "only")

    def stop_inside(job: Job, count: int) -> None:
        if count == 2:
            terminate()
            job.report_progress(0.6)
            raise AssertionError("goes on")

    with pytest.raises(SystemExit) as leaving:
        attempt(stop_inside)
    assert leaving.value.code == 143
    said = capsys.readouterr().err
    assert "SIGTERM: stopped" in said
    assert "continue from the last checkpoint" in said
    with Job("toy", options.replaced(resume=True), outputs=FILES) as job:
        assert job.step == 2


def test_both_signals_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignals("saves after this step"):
        signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err == "SIGINT: saves after this step\n"
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err == "SIGINT: stopped at once, without saving\n"


def test_config_tells_how_it_ended(tmp_path: Path) -> None:
    two_stages(Options(output=tmp_path / "OUT"), lambda *_: None, 1e9)
    config: Mapping[str, Any] = tomllib.loads((tmp_path / "OUT" / "config.toml").read_text())
    assert config["options"] == {"seed": 0, "rate": 0.5, "data": "abc"}
    assert (config["run"]["status"], config["run"]["verdict"]) == ("finished", "done")
