"""Compiled loops and the threads that run them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from numba import njit

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
