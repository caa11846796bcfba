"""Errors that a user can act on, each class with its exit code on the command line."""

from __future__ import annotations


class VitreousError(Exception):
    """Base class of the package's errors (exit 1).

    >>> from pathlib import Path
    >>> from vitreous import read_map
    >>> try:
    ...     read_map(Path("absent.mrc"))
    ... except VitreousError as error:
    ...     print(type(error).__name__, error.exit_code)
    InputError 3
    """

    exit_code: int = 1


class UsageError(VitreousError):
    """Impossible parameter or combination of parameters (exit 2).

    >>> from vitreous import point_group
    >>> try:
    ...     point_group("Q7")
    ... except UsageError as error:
    ...     print(error.exit_code)
    2
    """

    exit_code = 2


class InputError(VitreousError):
    """Wrong file or input value; the text names file, field and remedy (exit 3).

    >>> issubclass(InputError, VitreousError), InputError.exit_code
    (True, 3)
    """

    exit_code = 3


class ResourceError(VitreousError):
    """Lack of memory or disk space (exit 4).

    >>> issubclass(ResourceError, VitreousError), ResourceError.exit_code
    (True, 4)
    """

    exit_code = 4


class DivergedError(VitreousError):
    """Optimisation that kept producing NaN (exit 5).

    >>> issubclass(DivergedError, VitreousError), DivergedError.exit_code
    (True, 5)
    """

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error (torch's are known by name and text) means that memory is used up.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("no"))
    (True, False)
    """
    by_torch = type(error).__name__ == "OutOfMemoryError"
    text = str(error).lower()
    known = ("allocate memory", "failed to map segment", "bad_alloc", "unable to allocate")
    return isinstance(error, MemoryError) or by_torch or any(words in text for words in known)
