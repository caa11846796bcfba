"""File writes that leave either the old file or the whole new one, never a part.

Temporary file in the same folder -> write -> flush -> fsync -> ``os.replace`` -> fsync the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vitreous.core.errors import InputError, ResourceError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY_SUFFIX = ".part"
TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{12}\.part")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Explain why the block fails to write: ResourceError if the disk is full, else InputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            text = f"{path}: disk full, or a limit of size reached ({reason}); free some space"
            raise ResourceError(text) from error
        text = f"{path}: cannot be written ({reason}); choose a writable place"
        raise InputError(text) from error


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only once it is complete and on disk.

    An exception inside the block removes the temporary file and leaves an older file untouched. The
    folder must exist.

    Raises:
        ResourceError: disk full.
        InputError: the folder is missing or not writable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder) / "a") as stream:
    ...         _ = stream.write(b"whole")
    ...     (Path(folder) / "a").read_bytes()
    b'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    with explained(path):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with explained(path):
            with os.fdopen(descriptor, "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, which makes a rename durable, where the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text with :func:`atomic_file`, raising what that raises."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))
