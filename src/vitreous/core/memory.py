"""Work that is split into smaller pieces where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vitreous.core.errors import is_out_of_memory

MOST_PIECES = 8
Result = TypeVar("Result")


def in_memory(work: Callable[[int], Result], pieces: int, most: int) -> tuple[Result, int]:
    """Return ``work(pieces)``, with twice as many pieces whenever memory runs out, and how many.

    Args:
        work: to do in so many pieces; it is begun anew with more of them.
        pieces: to begin with.
        most: pieces that the work can be split into; :data:`MOST_PIECES` are never exceeded.

    Raises:
        MemoryError, RuntimeError: memory is too small for the smallest pieces.

    >>> def work(pieces):
    ...     if pieces < 4:
    ...         raise MemoryError
    ...     return "done"
    >>> in_memory(work, 1, 100)
    ('done', 4)
    """
    while True:
        try:
            return work(pieces), pieces
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or 2 * pieces > min(MOST_PIECES, most):
                raise
        pieces *= 2
