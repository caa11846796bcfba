import io

import pytest

from vitreous.jobs.run.progress import RunProgress, describe, duration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_terminal_a_plain_line_every_ten_seconds():
    clock, stream = Clock(), io.StringIO()
    with RunProgress("run", stream=stream, clock=clock) as progress:
        for second in range(31):
            clock.now = float(second)
            progress.update(second / 40, {"epoch": 1, "snr_db": -1.25})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == "run: 50 % · 20 s left · epoch 1 · SNR -1.2 dB"


def test_continued_run_estimates_from_its_own_pace():
    clock = Clock()
    progress = RunProgress("run", stream=io.StringIO(), clock=clock)
    with progress:
        clock.now = 5.0
        progress.update(0.8)
        assert progress.seconds_left(0.8) is None
        clock.now = 15.0
        assert progress.seconds_left(0.9) == pytest.approx(10.0)


def test_quiet_says_nothing():
    clock, stream = Clock(), Terminal()
    with RunProgress("run", quiet=True, stream=stream, clock=clock) as progress:
        clock.now = 100.0
        progress.update(0.5)
    assert stream.getvalue() == ""


def test_terminal_shows_a_bar_with_literal_brackets():
    stream = Terminal()
    with RunProgress("run", stream=stream) as progress:
        progress.update(0.5, {"stage": "[red]box 16", "resolution_angstrom": 18.04})
    assert "50 %" in stream.getvalue()
    assert "[red]box 16 · halves 18.0 Å" in stream.getvalue()


def test_numbers_that_are_not_finite_are_left_out():
    assert describe({"wasserstein": float("nan"), "resolution_angstrom": float("inf")}) == ""


def test_durations():
    assert [duration(s) for s in (-1, 59.6, 3599)] == ["0 s", "1 min 0 s", "59 min 59 s"]
