"""Results that replace earlier ones: made beside the folder, put in its place in one rename.

Until then the earlier results are whole. Of folder ``OUT``, ``.OUT.new`` holds the new results
while they are made, and ``.OUT.old`` the earlier ones while they are removed. A kill at any moment
leaves what :func:`settle` puts in order.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vitreous.core.errors import UsageError
from vitreous.io.atomic import explained, sync_folder

MARK = ".new"  # in a folder whose results have not taken their place yet
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


def beside(root: Path) -> Path:
    """Return the folder that the new results are made in; ``root`` is absolute."""
    return root.with_name(f".{root.name}.new")


def _aside(root: Path) -> Path:
    return root.with_name(f".{root.name}.old")


def is_waiting(root: Path) -> bool:
    """Return whether an interrupted run has left results that were to replace those of a folder."""
    return (beside(root) / MARK).is_file()


def begin(root: Path) -> Path:
    """Make the folder for the new results; what an interrupted run left there is removed.

    Raises:
        UsageError: the folder cannot be renamed: a mount point, or the one the program runs in.
        InputError, ResourceError: its parent cannot be written.
    """
    if os.path.ismount(root) or Path.cwd().is_relative_to(root):
        why = "a mount point" if os.path.ismount(root) else "the folder that this was called in"
        raise UsageError(f"{root}: {why}, which `overwrite` cannot replace; choose another folder")
    new = beside(root)
    with explained(new):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
    return new


def put_in_place(root: Path, is_own: Callable[[str], bool]) -> None:
    """Let the new results take the place of the earlier ones, which are removed.

    Args:
        root: absolute.
        is_own: whether a name in the folder is one that the job writes; all others are kept.

    Raises:
        InputError, ResourceError: a rename failed; the earlier results are where they were.
    """
    new, old = beside(root), _aside(root)
    with explained(root):
        sync_folder(new)
        libc = ctypes.CDLL(None, use_errno=True)
        exchange = getattr(libc, "renameat2", None)
        paths = os.fsencode(new), os.fsencode(root)
        if exchange is None or exchange(_HERE, paths[0], _HERE, paths[1], _EXCHANGE):
            os.rename(root, old)  # a file system that cannot exchange names
            os.rename(new, root)
        (root / MARK).unlink(missing_ok=True)
        sync_folder(root.parent)
    settle(root, is_own)


def restore(root: Path) -> None:
    """Give the earlier results their name back where a kill between two renames left none."""
    if _aside(root).is_dir() and not root.exists():
        os.rename(_aside(root), root)


def settle(root: Path, is_own: Callable[[str], bool]) -> None:
    """Put in order what a run left that was killed while its results took their place."""
    new, old = beside(root), _aside(root)
    if new.is_dir() and not is_waiting(root):  # killed before it began, or after the exchange
        os.rename(new, old)
    if not old.is_dir():
        return
    (root / MARK).unlink(missing_ok=True)
    for item in old.iterdir():
        if not is_own(item.name) and not (root / item.name).exists():
            os.rename(item, root / item.name)
    shutil.rmtree(old, ignore_errors=True)
