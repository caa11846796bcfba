"""The loop of solvers: every callback is called, any may stop it; states go on as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitreous.optim.loop import Stateful, Stats, notify, run


class _Counter(Stateful):
    """A solver that counts its steps."""

    STATE = ("calls", "trace")

    def __init__(self, most: int) -> None:
        self.calls, self.most, self.trace = 0, most, torch.zeros(most)

    @property
    def done(self) -> bool:
        return self.calls >= self.most

    @property
    def progress(self) -> float:
        return self.calls / self.most

    def step(self) -> Stats:
        self.trace = self.trace.index_fill(0, torch.tensor(self.calls), 1.0)
        self.calls += 1
        return {"calls": float(self.calls)}

    def result(self) -> int:
        return self.calls


def test_every_callback_is_called_after_every_step() -> None:
    first: list[tuple[int, float]] = []
    second: list[int] = []
    end = run(
        _Counter(3),
        [lambda i, stats: first.append((i, stats["calls"])), lambda i, stats: second.append(i)],
    )
    assert end == 3
    assert first == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert second == [0, 1, 2]


@pytest.mark.parametrize("stopper", [0, 1, 2])
def test_one_stop_is_enough_and_all_are_called_before_it(stopper: int) -> None:
    calls: list[tuple[int, int]] = []

    def callback(which: int, step: int) -> bool:
        calls.append((which, step))
        return which == stopper and step == 1

    assert run(_Counter(9), [lambda i, stats, w=w: callback(w, i) for w in range(3)]) == 2
    assert calls == [(w, i) for i in range(2) for w in range(3)]


def test_nothing_left_to_do() -> None:
    assert run(_Counter(0)) == 0


def test_continuing_where_a_stop_came() -> None:
    """Stopped and continued makes the same steps as one run, from its state too."""
    solver, other = _Counter(5), _Counter(5)
    assert run(solver, [lambda i, stats: i == 1]) == 2
    state: dict[str, Any] = solver.state_dict()
    other.load_state_dict(state)
    assert (other.calls, other.trace.tolist()) == (2, [1, 1, 0, 0, 0])
    steps: list[int] = []
    assert run(other, [lambda i, stats: steps.append(i)]) == run(solver) == 5
    assert steps == [0, 1, 2]
    assert state["trace"].tolist() == [1, 1, 0, 0, 0]


def test_a_state_takes_the_type_and_device_of_its_object() -> None:
    solver = _Counter(2)
    solver.load_state_dict({"calls": torch.tensor(1), "trace": torch.ones(2, dtype=torch.float64)})
    assert solver.calls == 1
    assert isinstance(solver.calls, int)
    assert solver.trace.dtype == torch.float32


def test_callbacks_may_come_from_an_iterator() -> None:
    """Each step calls all of them, though the iterator can be walked once only."""
    calls: list[int] = []
    run(_Counter(3), iter([lambda i, stats: calls.append(i)]))
    assert calls == [0, 1, 2]


def test_an_error_in_a_step_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: _Counter) -> Stats:
        raise ValueError("broken step")

    monkeypatch.setattr(_Counter, "step", step)
    with pytest.raises(ValueError, match="broken step"):
        run(_Counter(2))


@pytest.mark.parametrize(
    ("answers", "stop"), [([], False), ([None], False), ([False, True], True), ([True], True)]
)
def test_notify_says_whether_to_stop(answers: list[bool | None], stop: bool) -> None:
    assert notify([lambda i, stats, a=a: a for a in answers], 0, {}) is stop
