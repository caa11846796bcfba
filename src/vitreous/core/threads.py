"""Compiled loops and the threads that run them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from numba import njit

Item = TypeVar("Item")
Result = TypeVar("Result")
_POOLS: dict[int, ThreadPoolExecutor] = {}
# Everything of fast-math except the licence to assume that no NaN exists.
FAST = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Callable[..., Any]) -> Callable[..., None]:
    """Compile on first use; typed as a plain function, which numba's own type is not."""
    compiled: Callable[..., None] = njit(nogil=True, cache=True, fastmath=FAST)(function)
    return compiled


def in_threads(work: Callable[[int, int], None], edges: Sequence[int]) -> None:
    """Run ``work(first, last)`` between successive edges at once, the last on this thread."""
    parts = list(itertools.pairwise(edges))
    pool = _POOLS.get(len(parts))
    if pool is None and len(parts) > 1:
        pool = _POOLS.setdefault(len(parts), ThreadPoolExecutor(len(parts) - 1, "vitreous-slice"))
    futures = [pool.submit(work, a, b) for a, b in parts[:-1]] if pool else []
    work(*parts[-1])
    for future in futures:
        future.result()


@contextmanager
def own_threads() -> Iterator[int]:
    """Keep torch to one thread, as its others, while they wait, would take the cores from ours.

    Yields:
        The number of threads that torch had.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def each_alone(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """``work(item)`` of all items in their order; on the CPU as many at once as torch has threads.

    Each runs on one thread: much of what is done with a batch of images is too small to share.
    Results do not depend on the number of threads. An error in one ends all. On other devices
    there is one at a time.

    >>> list(each_alone(lambda x: x * x, range(4), torch.device("cpu")))
    [0, 1, 4, 9]
    """
    gradients = torch.is_grad_enabled()  # which new threads do not know of

    def run(item: Item) -> Result:
        with torch.set_grad_enabled(gradients):
            return work(item)

    if device.type != "cpu" or torch.get_num_threads() == 1:
        yield from map(work, items)
        return
    with own_threads() as threads, ThreadPoolExecutor(threads, "vitreous-batch") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(run, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
