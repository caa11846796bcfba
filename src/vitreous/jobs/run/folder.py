"""The folder a command writes: locked, described by ``config.toml``, never overwritten unasked."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import socket
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from vitreous import __version__
from vitreous.core.errors import InputError, ResourceError, UsageError
from vitreous.io.atomic import atomic_write_text
from vitreous.io.inflate import unreadable
from vitreous.jobs.run.messages import one_line

CONFIG = "config.toml"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
_BLOCK = 1 << 20


class OutputFolder:
    """Output folder of one run, held exclusively from ``with`` to its end.

    ``config.toml`` records command, options, seed, versions and a SHA-256 of every input, and
    whether the run is ``running`` or ``finished``.

    Args:
        path: the folder; made with its parents if missing.
        command: name of the subcommand.
        options: what determines the result, the seed included; None values are left out.
        inputs: role to file; compared by content, so that moved data can be continued with.
        outputs: names of the files that the command writes, which ``overwrite`` removes first.
        machine: values that do not determine the result (device, threads): recorded, not compared.
        overwrite: replace an earlier run of the same command.
        resume: continue an earlier run of the same command.
        allow_config_change: resume although options or inputs differ; the difference is recorded.
        resumable: the job can be continued, so that messages may say so.
        changeable: the job has ``allow_config_change``; likewise.

    Raises (on entering):
        UsageError: in use by another run, or it holds something and neither ``overwrite`` nor
            ``resume`` was asked for, or ``resume`` finds nothing.
        InputError: ``resume`` with other options or inputs, a damaged ``config.toml``, or a folder
            that cannot be written.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        options: Mapping[str, Any],
        *,
        inputs: Mapping[str, Path] | None = None,
        outputs: Iterable[str] = (),
        machine: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        resume: bool = False,
        allow_config_change: bool = False,
        resumable: bool = False,
        changeable: bool = True,
    ) -> None:
        if overwrite and resume:
            raise UsageError("`overwrite` and `resume` exclude each other; give one")
        self.root = Path(path)
        self.resuming = self._made = False
        self.was_finished = False
        self._command = command
        self._options = {key: plain(value) for key, value in options.items() if value is not None}
        self._inputs = dict(inputs or {})
        self._outputs = tuple(outputs)
        self._machine = {k: plain(v) for k, v in (machine or {}).items() if v is not None}
        self._overwrite, self._resume, self._allow = overwrite, resume, allow_config_change
        self._resumable, self._changeable = resumable or resume, changeable
        self._lock: _Lock | None = None
        self._config: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        command: str,
        options: Any,
        outputs: Iterable[str],
        *,
        resolved: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Path] | None = None,
        machine: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the folder that the options model of a job describes.

        Args:
            command, outputs: as above.
            options: model with ``output`` and ``overwrite``, and with ``resume`` and
                ``allow_config_change`` where the job has them.
            resolved, inputs, machine: further values, over those of the options.
        """
        return cls(
            options.output,
            command,
            {**options.recorded(), **(resolved or {})},
            inputs={**options.inputs(), **(inputs or {})},
            outputs=outputs,
            machine={**options.machine(), **(machine or {})},
            overwrite=options.overwrite,
            resume=getattr(options, "resume", False),
            allow_config_change=getattr(options, "allow_config_change", False),
            resumable=hasattr(options, "resume"),
            changeable=hasattr(options, "allow_config_change"),
        )

    def __enter__(self) -> Self:
        """Make and lock the folder, check what it holds, write ``config.toml``."""
        self._made = not self.root.exists()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.root, error) from error
        self._lock = _Lock(self.root / LOCK)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            self._remove_if_made()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock; the run counts as finished only after :meth:`finish`."""
        if self._lock is not None:
            self._lock.release()
        self._remove_if_made()

    def _remove_if_made(self) -> None:
        if self._made and self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def path(self, *parts: str) -> Path:
        """Return a path inside the folder; its parent is made.

        Raises:
            InputError: the path leaves the folder (``..``, absolute, or through a link).
        """
        target = self.root.joinpath(*parts)
        root = self.root.resolve()
        if ".." in parts or not target.parent.resolve().is_relative_to(root):
            raise InputError(f"{target}: leaves the output folder {self.root}; remove the link")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path(CHECKPOINTS, "step").parent

    @property
    def config(self) -> dict[str, Any]:
        """Content of ``config.toml``."""
        return self._config

    def finish(self) -> None:
        """Mark the run as finished."""
        self._config["run"] |= {"status": "finished", "ended": _now()}
        self._write_config()

    def discard(self) -> None:
        """Remove all that the run wrote, its configuration included: the input was rejected."""
        self._remove_outputs()
        (self.root / CONFIG).unlink(missing_ok=True)
        checkpoints = self.root / CHECKPOINTS
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()

    def _open(self) -> None:
        held = sorted(item.name for item in self.root.iterdir() if item.name != LOCK)
        earlier = read_config(self.root / CONFIG) if CONFIG in held else None
        self._config = self._describe()
        foreign = earlier is not None and earlier.get("run", {}).get("command") != self._command
        if foreign and (self._resume or self._overwrite):
            raise UsageError(self._refusal(earlier))
        if self._resume:
            if earlier is None:
                raise UsageError(f"`resume`: {self.root} holds no run; start one without it")
            self._compare(earlier)
        elif self._overwrite and earlier is not None:
            self._remove_outputs()
        elif held:
            raise UsageError(self._refusal(earlier))
        self._write_config()

    def _refusal(self, earlier: dict[str, Any] | None) -> str:
        if earlier is None:
            return f"{self.root}: folder is not empty and no output of vitreous; choose another"
        command = earlier.get("run", {}).get("command")
        if command != self._command:
            return f"{self.root}: holds the output of 'vitreous {command}'; choose another folder"
        finished = earlier.get("run", {}).get("status") == "finished"
        state = "a finished run" if finished else "an unfinished run"
        remedy = "give `resume` or `overwrite`" if self._resumable else "give `overwrite`"
        return f"{self.root}: holds {state}; {remedy}, or choose another folder"

    def _compare(self, earlier: dict[str, Any]) -> None:
        before = earlier.get("run", {})
        changes = differences(earlier, self._config)
        if changes and not self._allow:
            way_out = "`allow_config_change`" if self._changeable else "`overwrite` instead"
            raise InputError(
                f"{self.root / CONFIG}: the run to continue differs: {'; '.join(changes)}; "
                f"give the same options and data, or {way_out}"
            )
        self.resuming = True
        self.was_finished = before.get("status") == "finished"
        run = self._config["run"]
        if self.was_finished:
            run |= {key: value for key, value in before.items() if key not in run}
        run["started"] = before.get("started", run["started"])
        recorded = list(before.get("config_changes", []))
        recorded += [f"{_now()}: {change}" for change in changes]
        if recorded:
            run["config_changes"] = recorded

    def _remove_outputs(self) -> None:
        names = [self.path(name) for name in self._outputs]
        folder = self.root / CHECKPOINTS
        if folder.is_dir() and not folder.is_symlink():
            names += [item for item in folder.iterdir() if item.is_file()]
        for item in names:
            item.unlink(missing_ok=True)

    def _describe(self) -> dict[str, Any]:
        packages = {name: version(name) for name in ("torch", "numpy", "scipy")}
        python = platform.python_version()
        return {
            "run": {"command": self._command, "status": "running", "started": _now()},
            "options": self._options,
            "inputs": {role: fingerprint(path) for role, path in self._inputs.items()},
            "machine": self._machine,
            "versions": {"vitreous": __version__, "python": python, **packages},
        }

    def _write_config(self) -> None:
        import tomli_w

        atomic_write_text(self.root / CONFIG, tomli_w.dumps(self._config))


class _Lock:
    """Advisory lock that the system drops with its process, and that says who holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._acquire()
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())

    def _acquire(self) -> int:
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise _unwritable(self._path.parent, error) from error
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
        owner = os.read(descriptor, 300).decode("utf-8", "replace").split()
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


def fingerprint(path: Path) -> dict[str, Any]:
    """Return path, size and SHA-256 of an input file.

    Raises:
        InputError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
            size = stream.tell()
    except OSError as error:
        raise unreadable(path, error) from error
    return {"path": str(path), "bytes": size, "sha256": digest.hexdigest()}


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed between two configurations, as ``name: before -> after``.

    >>> differences({"options": {"box": 32, "sym": "C1"}}, {"options": {"box": 64, "sym": "C1"}})
    ['box: 32 -> 64']
    """
    changes = []
    for name, old, new in _pairs(earlier.get("options", {}), now.get("options", {})):
        before, after = ("unset" if value is None else str(value) for value in (old, new))
        changes.append(f"{name}: {before} -> {after}")
    for role, old, new in _pairs(earlier.get("inputs", {}), now.get("inputs", {})):
        before, after = (item.get("sha256", "")[:12] if item else "none" for item in (old, new))
        if before != after:
            changes.append(f"content of {role}: {before} -> {after}")
    return changes


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    names = [*old, *(name for name in new if name not in old)]
    return [(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def plain(value: Any) -> Any:
    """Return a value that TOML can hold: paths as text, tuples as lists, None inside them as ''.

    >>> plain((Path("a"), 1.5))
    ['a', 1.5]
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return ["" if item is None else plain(item) for item in value]
    if isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def read_config(path: Path, advice: str = "choose another folder") -> dict[str, Any]:
    """Return the content of a run's ``config.toml``.

    Args:
        path: the file.
        advice: what to do if it is broken.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {advice}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def _unwritable(path: Path, error: OSError) -> InputError | ResourceError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{path}: disk full or quota reached ({reason}); free some space")
    return InputError(f"{path}: cannot be written ({reason}); choose a writable place")
