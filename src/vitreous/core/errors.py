"""Errors that a user can act on; each class knows the exit code the command line gives it."""

from __future__ import annotations


class VitreousError(Exception):
    """Base of every error raised on purpose; a bare one means a bug (exit 1)."""

    exit_code: int = 1


class UsageError(VitreousError):
    """The request itself makes no sense: an impossible option or combination (exit 2)."""

    exit_code = 2


class InputError(VitreousError):
    """A file or value from outside is wrong; the text names file, field and remedy (exit 3)."""

    exit_code = 3


class ResourceError(VitreousError):
    """Out of memory or disk (exit 4)."""

    exit_code = 4


class DivergedError(VitreousError):
    """The optimisation produced NaN again and again and was given up (exit 5)."""

    exit_code = 5


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory, the machine's or a GPU's, is used up.

    torch's errors are told by name and text, so that torch need not be imported to ask.

    >>> out_of_memory(MemoryError()), out_of_memory(ValueError("no"))
    (True, False)
    """
    torch_says = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or torch_says
