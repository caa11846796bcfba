"""Lock of an output folder, which the system drops with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from vitreous.core.errors import UsageError
from vitreous.io.atomic import explained
from vitreous.jobs.run.messages import one_line

LOCK = ".lock"


class Lock:
    """Advisory lock of a folder that says who holds it.

    Args:
        folder: to lock; its file ``.lock`` is made.

    Raises:
        UsageError: another run holds it; the text names process and host.
        InputError, ResourceError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = self._acquire()
        with explained(self._path):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)

    def _acquire(self) -> int:
        while True:
            with explained(self._path):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                self._claim(descriptor)
                # another run may have removed the file between open and lock: then take the new one
                if _same_file(descriptor, self._path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _claim(self, descriptor: int) -> None:
        owner = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip("\0").split()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held_here = False
        except OSError as error:
            # file systems without locks: trust the process number
            busy = error.errno in (errno.EAGAIN, errno.EACCES)
            held_here = busy or (len(owner) == 2 and _is_alive(owner[1]))
        elsewhere = len(owner) == 2 and owner[0] != socket.gethostname()
        if held_here or elsewhere:
            host, pid = owner if len(owner) == 2 else ("unknown host", "unknown")
            remedy = f"if that run is dead, remove {self._path}" if elsewhere else "wait for it"
            raise UsageError(
                f"{self._path.parent}: in use by process {one_line(pid)} on {one_line(host)}; "
                f"{remedy}, or choose another folder"
            )

    def release(self) -> None:
        """Remove the lock file, then let go; doing it twice is harmless."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def holder(folder: Path) -> str | None:
    """Return who holds the lock of a folder, "process 12 on host"; None where nobody does."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        owner = os.pread(descriptor, 300, 0).decode("utf-8", "replace").split()
        if len(owner) != 2:
            return None
        host, process = owner
        if host == socket.gethostname():
            if not _is_alive(process):
                return None  # the lock is left alone: a run that starts now must get it
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None  # the process that wrote it is gone, its number is that of another
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return f"process {one_line(process)} on {one_line(host)}"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_alive(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
