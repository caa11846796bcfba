"""The training loop: every callback is told, any of them may stop, the count is right."""

from __future__ import annotations

import pytest

from vitreous.optim.loop import Stats, notify, repeat


class _Counter:
    """A step that counts itself."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Stats:
        self.calls += 1
        return {"calls": float(self.calls)}


def test_every_callback_is_told_of_every_step() -> None:
    first: list[tuple[int, float]] = []
    second: list[int] = []
    step = _Counter()
    end = repeat(
        step,
        3,
        6,
        [lambda i, stats: first.append((i, stats["calls"])), lambda i, stats: second.append(i)],
    )
    assert (end, step.calls) == (6, 3)
    assert first == [(3, 1.0), (4, 2.0), (5, 3.0)]
    assert second == [3, 4, 5]


@pytest.mark.parametrize("stopper", [0, 1, 2])
def test_one_stop_is_enough_and_all_are_told_before_it(stopper: int) -> None:
    told: list[tuple[int, int]] = []

    def callback(which: int, step: int) -> bool:
        told.append((which, step))
        return which == stopper and step == 1

    step = _Counter()
    callbacks = [lambda i, stats, w=w: callback(w, i) for w in range(3)]
    assert repeat(step, 0, 9, callbacks) == 2
    assert step.calls == 2
    assert told == [(w, i) for i in range(2) for w in range(3)]


def test_nothing_left_to_do() -> None:
    step = _Counter()
    assert repeat(step, 7, 7, []) == 7
    assert repeat(step, 9, 7, []) == 9
    assert step.calls == 0


def test_continuing_where_a_stop_came() -> None:
    """Stopped and continued makes the same steps as one run."""
    seen: list[int] = []
    step = _Counter()
    here = repeat(step, 0, 5, [lambda i, stats: seen.append(i), lambda i, stats: i == 1])
    assert repeat(step, here, 5, [lambda i, stats: seen.append(i)]) == 5
    assert seen == [0, 1, 2, 3, 4]


def test_callbacks_may_come_from_an_iterator() -> None:
    """Each step tells all of them, though the iterator can be walked once only."""
    told: list[int] = []
    repeat(_Counter(), 0, 3, iter([lambda i, stats: told.append(i)]))
    assert told == [0, 1, 2]


def test_an_error_in_a_step_is_not_swallowed() -> None:
    def step() -> Stats:
        raise ValueError("broken step")

    with pytest.raises(ValueError, match="broken step"):
        repeat(step, 0, 2, [])


@pytest.mark.parametrize(
    ("answers", "stop"), [([], False), ([None], False), ([False, True], True), ([True], True)]
)
def test_notify_says_whether_to_stop(answers: list[bool | None], stop: bool) -> None:
    assert notify([lambda i, stats, a=a: a for a in answers], 0, {}) is stop
