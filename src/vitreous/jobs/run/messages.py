"""Messages and warnings for the person at the terminal."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vitreous.core.errors import is_out_of_memory
from vitreous.io.atomic import DISK_FULL

_reword: ContextVar[Callable[[str], str]] = ContextVar("_reword", default=str)
_again: ContextVar[str] = ContextVar("_again", default="")
_warned: ContextVar[Collection[str]] = ContextVar("_warned", default=())


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line on stderr, each text once, without file names of the program."""
    seen: dict[str, None] = {}

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = one_line(message)
        if text not in seen:
            seen[text] = None
            print(f"warning: {reworded(text)}", file=sys.stderr)

    token = _warned.set(seen)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning)
            warnings.showwarning = show
            yield
    finally:
        _warned.reset(token)


def shown_warnings() -> tuple[str, ...]:
    """Return the texts that :func:`plain_warnings` has shown so far."""
    return tuple(_warned.get())


def one_line(message: object) -> str:
    """Return a text on one line, control characters removed.

    >>> one_line("two\\n  lines\\x1b[31m")
    'two lines[31m'
    """
    return printable(" ".join(str(message).split()))


def utf8(text: str) -> str:
    r"""Return a text that UTF-8 can hold: bytes of file names that are none as ``\xe9``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return a text without control characters, but with its line ends: safe on a terminal."""
    return "".join(c for c in utf8(text) if c.isprintable() or c == "\n")


def say(message: str) -> None:
    """Print a line for the person at the terminal, on stderr: stdout holds results only."""
    print(printable(reworded(message)), file=sys.stderr, flush=True)


def reworded(text: str) -> str:
    """Return a text as :func:`rewording` has it said."""
    return _reword.get()(text)


def command_to_continue() -> str:
    """Return what to type to go on with a run that is stopped; empty where it is unknown."""
    return _again.get()


@contextmanager
def rewording(reword: Callable[[str], str], again: str = "") -> Iterator[None]:
    """Pass every message and warning through a function, such as one that names flags.

    Args:
        reword: the function.
        again: what :func:`command_to_continue` returns inside.

    >>> with rewording(str.upper):
    ...     say("stopped")
    """
    token, earlier = _reword.set(reword), _again.set(again)
    try:
        yield
    finally:
        _reword.reset(token)
        _again.reset(earlier)


def resource_shortage(error: BaseException) -> str | None:
    """Return one line if the error means that memory, disk or processes are used up, else None."""
    text = one_line(error)
    number = error.errno if isinstance(error, OSError) else None
    if is_out_of_memory(error) or number == errno.ENOMEM:
        return f"out of memory ({text[:120]}); use a smaller box or batch, or more memory"
    if isinstance(error, OSError) and number in DISK_FULL:
        where = utf8(str(error.filename or "output"))
        return f"{where}: disk full, or a limit of size reached ({error.strerror}); free some space"
    if number in (errno.EAGAIN, errno.EMFILE, errno.ENFILE) or "start new thread" in text:
        return (
            f"no more processes, threads or open files ({text[:120]}); raise the limits (ulimit "
            "-u, ulimit -n), end other programs or take fewer threads"
        )
    return None
