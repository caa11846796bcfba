"""The one training loop, its history and its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

Stats = dict[str, float]


class Callback(Protocol):
    """Told of every step; a true answer stops the loop after the step."""

    def __call__(self, step: int, stats: Stats) -> bool | None:
        """Numbers of the step just done."""
        ...


def notify(callbacks: Iterable[Callback], step: int, stats: Stats) -> bool:
    """Tell every callback; whether any of them asked to stop."""
    return any([bool(callback(step, stats)) for callback in callbacks])


def run(step: Callable[[], Stats], start: int, stop: int, callbacks: Iterable[Callback]) -> int:
    """Call ``step`` for the steps ``start .. stop - 1``; the number of the next step to do.

    >>> run(lambda: {"loss": 1.0}, 0, 5, [lambda i, stats: i == 2])
    3
    """
    told = list(callbacks)
    for i in range(start, stop):
        if notify(told, i, step()):
            return i + 1
    return max(start, stop)
