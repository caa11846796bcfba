"""Progress of a run on stderr: a live bar on a terminal, a plain line every 10 s elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

LINE_INTERVAL_SECONDS = 10.0


def duration(seconds: float) -> str:
    """Return seconds as a text for people.

    >>> duration(7.4), duration(100), duration(3720)
    ('7 s', '1 min 40 s', '1 h 2 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# In the order shown: key of the statistics, how its value is written.
_SHOWN: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("stage", str),
    ("epoch", lambda v: f"epoch {v:g}" if isinstance(v, (int, float)) else f"epoch {v}"),
    ("start", lambda v: f"start {v:g}"),
    ("start_of_half", lambda v: f"half {v}"),
    ("half", lambda v: f"half {v}"),
    ("wasserstein", lambda v: f"W {v:.3g}"),
    ("snr_db", lambda v: f"SNR {v:.1f} dB"),
    ("resolution_angstrom", lambda v: f"halves {v:.1f} Å"),
)


def describe(stats: Mapping[str, Any]) -> str:
    """Return the statistics worth watching on one line; missing ones are left out.

    >>> describe({"stage": "box 16", "epoch": 3, "wasserstein": 0.12345, "snr_db": -1.0})
    'box 16 · epoch 3 · W 0.123 · SNR -1.0 dB'
    """
    shown = [(stats.get(key), write) for key, write in _SHOWN]
    finite = [(v, write) for v, write in shown if not isinstance(v, float) or math.isfinite(v)]
    return " · ".join(write(value) for value, write in finite if value is not None)


class RunProgress:
    """Progress display: ``with RunProgress("simulating") as bar: bar.update(0.4, stats)``.

    Args:
        label: what is being done.
        quiet: show nothing.
        stream: where to, stderr by default.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        label: str,
        *,
        quiet: bool = False,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self._quiet, self._clock = label, quiet, clock
        self._stream = sys.stderr if stream is None else stream
        self._started = self._last_line = clock()
        self._start_fraction: float | None = None
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start the clock, and on a terminal the bar."""
        self._started = self._last_line = self._clock()
        if not self._quiet and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[detail]}", markup=False),
                console=Console(file=self._stream),
                refresh_per_second=4,
            )
            self._task = self._live.add_task(self.label, total=1.0, detail="")
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar from the terminal."""
        if self._live is not None:
            self._live.stop()

    def seconds_left(self, done_fraction: float) -> float | None:
        """Estimate the time left from the pace since the first update; None before the second."""
        if self._start_fraction is None or done_fraction <= self._start_fraction:
            return None
        elapsed = self._clock() - self._started
        return elapsed * (1.0 - done_fraction) / (done_fraction - self._start_fraction)

    def update(self, done_fraction: float, stats: Mapping[str, Any] | None = None) -> None:
        """Show the progress of the run.

        Args:
            done_fraction: 0 to 1. The first value counts as the start, so that a continued run
                estimates its time from its own pace.
            stats: any of ``stage``, ``epoch``, ``half``, ``wasserstein``, ``snr_db``,
                ``resolution_angstrom`` (between halves, at 0.143); ``seconds_left`` replaces the
                estimate.
        """
        stats = stats or {}
        if self._start_fraction is None:
            self._start_fraction = done_fraction if done_fraction < 1.0 else 0.0
            self._started = self._clock() if done_fraction > 0 else self._started
        if self._quiet:
            return
        left = stats.get("seconds_left", self.seconds_left(done_fraction))
        detail = describe(stats)
        if left is not None:
            detail = f"{duration(left)} left" + (f" · {detail}" if detail else "")
        if self._live is not None:
            self._live.update(self._task, completed=done_fraction, detail=detail)
            return
        now = self._clock()
        if now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            line = f"{self.label}: {100 * done_fraction:.0f} %"
            print(f"{line} · {detail}" if detail else line, file=self._stream, flush=True)
