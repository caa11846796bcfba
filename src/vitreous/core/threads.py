"""Compilation of loops, and threads that run them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from vitreous.core.jit import njit

Item = TypeVar("Item")
Result = TypeVar("Result")
_POOLS: dict[int, ThreadPoolExecutor] = {}
# All fast-math flags but the one that assumes that there is no NaN.
FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Callable[..., Any]) -> Callable[..., None]:
    """Compile a loop on first use, without the GIL; typed as a plain function."""
    dispatcher: Callable[..., None] = njit(nogil=True, fastmath=FAST_MATH)(function)
    return dispatcher


def in_threads(work: Callable[[int, int], None], edges: Sequence[int]) -> None:
    """Run ``work(first, last)`` for all pairs of successive edges at once, one thread each."""
    parts = list(itertools.pairwise(edges))
    pool = _POOLS.get(len(parts))
    if pool is None and len(parts) > 1:
        pool = _POOLS.setdefault(len(parts), ThreadPoolExecutor(len(parts) - 1, "vitreous-slice"))
    futures = [pool.submit(work, a, b) for a, b in parts[:-1]] if pool else []
    work(*parts[-1])
    for future in futures:
        future.result()


def even_edges(first: int, last: int, threads: int | None = None) -> list[int]:
    """Return the edges of equal parts of ``first .. last``, one a thread (torch's by default)."""
    parts = max(1, min(threads or torch.get_num_threads(), last - first))
    return [first + (last - first) * t // parts for t in range(parts + 1)]


@contextmanager
def single_torch_thread() -> Iterator[int]:
    """Limit torch, whose idle threads take cores, to one thread; yield their number before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def parallel_map(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """Yield ``work(item)`` for all items in order, on the CPU each item on one thread of its own.

    As many items run at once as torch has threads; results do not depend on that number. The
    first error ends the iteration. On other devices items run one at a time.

    >>> list(parallel_map(lambda x: x * x, range(4), torch.device("cpu")))
    [0, 1, 4, 9]
    """
    gradients = torch.is_grad_enabled()  # a thread-local setting

    def run(item: Item) -> Result:
        with torch.set_grad_enabled(gradients):
            return work(item)

    if device.type != "cpu" or torch.get_num_threads() == 1:
        yield from map(work, items)
        return
    with single_torch_thread() as threads:
        yield from in_order(run, items, threads)


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield ``work(item)`` for all items in order, with so many threads; the first error ends it.

    >>> list(in_order(abs, (-3, 2, -1), threads=2))
    [3, 2, 1]
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "vitreous-batch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
