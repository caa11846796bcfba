"""Work on one piece after another in several threads, written in order, saved now and then."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Buffer

from vitreous.core.errors import InputError
from vitreous.core.threads import in_order
from vitreous.io.mrc_growing import GrowingStack
from vitreous.jobs.run.messages import command_to_continue, say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals

SAVE_SECONDS = 10.0
MOST_THREADS = 8

Piece = tuple[Tensor, dict[str, Any]]


def stream_pieces(
    stack: GrowingStack,
    work: Callable[[int], Piece],
    count: int,
    identity: Callable[[int], bytes],
    *,
    threads: int,
    stop: StopSignals,
    progress: RunProgress,
) -> tuple[dict[int, dict[str, Any]], str]:
    """Append the images of pieces 0 to ``count - 1`` to a stack, and finish it.

    At most ``threads + 1`` pieces are in memory. What the stack holds depends neither on the number
    of threads nor on how often the run was interrupted.

    Args:
        stack: opened; its notes say which pieces are done.
        work: piece to images ``(k, n, n)`` and what must be remembered of it (JSON values; nothing
            is kept of an empty record). Called in threads, each computing alone.
        count: number of pieces.
        identity: piece to a hash of its input, by which a continued run sees changed data.
        threads: how many at a time.
        stop: after a signal the state is saved and the program left.
        progress: shown.

    Returns:
        the records by piece, and a hash of the input.

    Raises:
        InputError: what ``work`` raises; values that overflow half precision; no image at all; the
            input of pieces that were done has changed.
        ResourceError: disk full; what was saved stays.
        SystemExit: stopped by a signal, after saving.
    """
    if not stack.is_whole:
        torch.set_num_threads(1)
        _append_pieces(stack, work, count, identity, threads, stop, progress)
    records = stack.notes.get("records", {})
    return {int(piece): record for piece, record in records.items()}, stack.notes["input"]


def _append_pieces(
    stack: GrowingStack,
    work: Callable[[int], Piece],
    count: int,
    identity: Callable[[int], bytes],
    threads: int,
    stop: StopSignals,
    progress: RunProgress,
) -> None:
    """Append the pieces that the stack's notes lack; see :func:`stream_pieces`."""
    records: dict[str, Any] = dict(stack.notes.get("records", {}))
    done = int(stack.notes.get("done", 0))
    saved = time.monotonic()
    progress.update(done / count)
    chain = same_input(stack.notes.get("input", ""), identity, done, threads)

    def both(piece: int) -> tuple[Piece, bytes]:
        return work(piece), identity(piece)

    for (images, record), digest in in_order(both, range(done, count), threads):
        _append(stack, images)
        chain = _linked(chain, digest)
        if record:
            records[str(done)] = record
        done += 1
        progress.update(done / count)
        if stop.requested or time.monotonic() - saved > SAVE_SECONDS:
            stack.save({"done": done, "records": records, "input": chain.hex()})
            saved = time.monotonic()
        if stop.requested and done < count:
            again = command_to_continue() or "the same call and `resume`"
            say(f"{stop.name}: stopped and saved in {stack.path.parent}; go on with: {again}")
            raise SystemExit(stop.exit_code)
    if not len(stack):
        raise InputError(f"{stack.path.name}: no image is left to write; check the input")
    stack.finish({"done": done, "records": records, "input": chain.hex()})


def _append(stack: GrowingStack, images: Tensor) -> None:
    try:
        stack.append(images.numpy())
    except ValueError as error:
        raise InputError(f"{stack.path.name}: {error}; leave out `float16`") from error


def cores(threads: int) -> int:
    """Return the number of pieces at a time; 0 takes the cores, at most 8 for the memory."""
    return threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))


def same_input(
    recorded: object, identity: Callable[[int], bytes], count: int, threads: int
) -> bytes:
    """Return a hash of the input of the first pieces, which must be the recorded one.

    Raises:
        InputError: it is another.
    """
    chain = b""
    for digest in in_order(identity, range(count), threads):
        chain = _linked(chain, digest)
    if chain.hex() != recorded:
        raise InputError(
            "the images have changed since the run was stopped; give the same, or start again with "
            "`overwrite`"
        )
    return chain


def digest_of(content: Buffer) -> bytes:
    """Return a hash of bytes or of an array."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _linked(chain: bytes, digest: bytes) -> bytes:
    return digest_of(chain + digest)
