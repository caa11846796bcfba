"""Batches side by side: in order, one thread each, and an error ends all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from vitreous.core.threads import parallel_map

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_each_has_one_thread(threads: int) -> None:
    gate = threading.Barrier(threads, timeout=20)

    def work(i: int) -> tuple[int, int, bool]:
        gate.wait()  # all are at work at once
        return i, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        found = list(parallel_map(work, range(2 * threads), CPU))
    assert [i for i, _, _ in found] == list(range(2 * threads))
    assert {n for _, n, _ in found} == {1}
    assert not any(grad for _, _, grad in found)
    assert torch.get_num_threads() == threads


def test_an_error_is_raised_and_little_more_is_begun(threads: int) -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise ValueError("the second")
        return i

    with pytest.raises(ValueError, match="the second"):
        list(parallel_map(work, range(1000), CPU))
    assert len(begun) < 20
    assert torch.get_num_threads() == threads
