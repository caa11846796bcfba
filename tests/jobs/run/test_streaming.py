"""Pieces come in order, few at a time, whatever the number of threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.io.mrc import MrcStack
from vitreous.io.mrc_growing import GrowingStack
from vitreous.jobs.run import streaming
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals

BOX = 8


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def stream(path, work, count, threads):
    stop, progress = StopSignals(), RunProgress("testing", quiet=True)
    with GrowingStack(path, BOX, 1.0) as stack:
        return streaming.stream_pieces(
            stack,
            work,
            count,
            identity=lambda piece: b"%d" % piece,
            threads=threads,
            stop=stop,
            progress=progress,
        )[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_order_and_number_in_memory(tmp_path, threads, monkeypatch):
    held, most, lock = 0, 0, threading.Lock()
    append = streaming._append

    def appended(stack, images):
        nonlocal held
        append(stack, images)
        with lock:
            held -= 1

    def work(piece):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.002 * (piece % 3))
        return torch.full((2, BOX, BOX), float(piece)), {"odd": piece} if piece % 2 else {}

    monkeypatch.setattr(streaming, "_append", appended)
    records = stream(tmp_path / "a.mrcs", work, 30, threads)
    assert MrcStack(tmp_path / "a.mrcs").read(slice(None))[::2, 0, 0].tolist() == list(range(30))
    assert records == {i: {"odd": i} for i in range(1, 30, 2)}
    assert most <= threads + 1


def test_a_fault_ends_it(tmp_path):
    done = []

    def work(piece):
        done.append(piece)
        if piece == 3:
            raise InputError("piece 3")
        return torch.ones(1, BOX, BOX) * piece, {}

    with pytest.raises(InputError, match="piece 3"):
        stream(tmp_path / "a.mrcs", work, 100, 2)
    assert len(done) < 10
    assert not (tmp_path / "a.mrcs").exists()


def test_cores():
    assert streaming.cores(3) == 3
    assert streaming.cores(0) >= 1
