"""The folder a command writes: locked, described by ``config.toml``, never overwritten unasked."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from vitreous import __version__
from vitreous.core.errors import InputError, UsageError
from vitreous.io.atomic import TEMPORARY_NAME, atomic_write_text, explained
from vitreous.io.inflate import unreadable
from vitreous.jobs.run import replacement
from vitreous.jobs.run.lock import LOCK, Lock
from vitreous.jobs.run.messages import one_line, utf8

CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
PROGRESS = ".progress"  # how far the run is, for those who watch it; none of a finished one


class OutputFolder:
    """Output folder of one run, held exclusively from ``with`` to its end.

    ``config.toml`` records command, options, seed, versions and a SHA-256 of every input, and
    whether the run is ``running`` or ``finished``.

    Args:
        path: the folder; made with its parents if missing.
        command: name of the subcommand.
        options: what determines the result, the seed included; None values are left out.
        inputs: role to file; compared by content, so that moved data can be continued with.
        outputs: names of the files that the command writes, which ``overwrite`` replaces.
        machine: values that do not determine the result (device, threads): recorded, not compared.
        overwrite: replace an earlier run of the same command, once :meth:`finish` is called; until
            then the new files are made beside the folder.
        resume: continue an earlier run of the same command.
        allow_config_change: resume although options or inputs differ; the difference is recorded.
        resumable: the job can be continued, so that messages may say so.
        changeable: the job has ``allow_config_change``; likewise.

    Attributes:
        config: content of ``config.toml``.

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
        self.root = self._work = Path(path)
        self.resuming = self._made = self._finished = False
        self.was_finished = False
        self._command = command
        self._options = {key: plain(value) for key, value in options.items() if value is not None}
        self._inputs = dict(inputs or {})
        self._outputs = tuple(outputs)
        self._machine = {k: plain(v) for k, v in (machine or {}).items() if v is not None}
        self._overwrite, self._resume, self._allow = overwrite, resume, allow_config_change
        self._resumable, self._changeable = resumable or resume, changeable
        self._locks: list[Lock] = []
        self.config: dict[str, Any] = {}

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

    @classmethod
    def if_named(
        cls, command: str, options: Any, outputs: Iterable[str]
    ) -> Self | nullcontext[None]:
        """Return the folder of the options if they name one, else a context of None."""
        return nullcontext() if options.output is None else cls.of(command, options, outputs)

    def __enter__(self) -> Self:
        """Make and lock the folder, check what it holds, write ``config.toml``."""
        with explained(self.root):
            self._place = self.root.resolve()
            replacement.restore(self._place)
            self._made = not self.root.exists()
            self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._locks.append(Lock(self.root))
            self._open()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock; the run counts as finished only after :meth:`finish`."""
        if self._replaces and not self._finished and not self._resumable:
            shutil.rmtree(self._work, ignore_errors=True)
        self._leave()

    def _leave(self) -> None:
        for lock in self._locks:
            lock.release()
        self._remove_if_made()

    @property
    def _replaces(self) -> bool:
        """Whether the files are made beside the folder, to take the place of earlier ones."""
        return self._work != self.root

    def _remove_if_made(self) -> None:
        if self._made and self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def path(self, *parts: str) -> Path:
        """Return a path inside the folder; its parent is made.

        Raises:
            InputError: the path leaves the folder (``..``, absolute, or through a link).
        """
        target = self._work.joinpath(*parts)
        inside = target.parent.resolve().is_relative_to(self._work.resolve())
        if ".." in parts or not inside or target.is_symlink():
            raise InputError(f"{target}: leaves the output folder {self.root}; remove the link")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path(CHECKPOINTS, "step").parent

    def finish(self, tidy: Callable[[], object] = lambda: None) -> None:
        """Mark the run as finished; with ``overwrite``, put its files in place of the earlier ones.

        Args:
            tidy: called before that, to remove what only an unfinished run needs.
        """
        self.config["run"] |= {"status": "finished", "ended": _now()}
        self._write_config()
        tidy()
        self._finished = True
        if self._replaces:
            replacement.put_in_place(self._place, self._is_own)
            self._work = self.root

    def discard(self) -> None:
        """Remove all that the run wrote, its configuration included: the input was rejected."""
        if self._replaces:
            shutil.rmtree(self._work, ignore_errors=True)
            return
        self._remove_outputs()
        (self.root / CONFIG).unlink(missing_ok=True)
        checkpoints = self.root / CHECKPOINTS
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()

    def _is_own(self, name: str) -> bool:
        own = {CONFIG, LOCK, PROGRESS, CHECKPOINTS, replacement.MARK, *self._outputs}
        return name in own or bool(TEMPORARY_NAME.fullmatch(name))

    def _remove_parts(self) -> None:
        """Remove the parts of files that a killed run left."""
        for item in (*self.root.glob(".*"), *self.root.glob(f"{CHECKPOINTS}/**/.*")):
            if TEMPORARY_NAME.fullmatch(item.name):
                item.unlink(missing_ok=True)

    def _open(self) -> None:
        self._remove_parts()
        names = {item.name for item in self.root.iterdir()}
        earlier = read_config(self.root / CONFIG) if CONFIG in names else None
        self.config = self._describe()
        foreign = earlier is not None and earlier["run"].get("command") != self._command
        if foreign and (self._resume or self._overwrite):
            raise UsageError(self._refusal(earlier))
        if earlier is not None and not foreign:
            replacement.settle(self._place, self._is_own)
        if self._resume:
            if earlier is None:
                raise UsageError(f"`resume`: {self.root} holds no run; start one without it")
            if replacement.is_waiting(self._place):
                self._make_beside(replacement.beside(self._place))
                earlier = read_config(self._work / CONFIG)
            self._compare(earlier)
        elif self._overwrite and earlier is not None:
            self._make_beside(replacement.begin(self._place))
        elif names - {LOCK}:
            raise UsageError(self._refusal(earlier))
        self._write_config()
        if self._replaces:
            self.path(replacement.MARK).touch()

    def _make_beside(self, folder: Path) -> None:
        self._work = folder
        self._locks.append(Lock(folder))

    def _refusal(self, earlier: dict[str, Any] | None) -> str:
        if earlier is None:
            return f"{self.root}: folder is not empty and no output of vitreous; choose another"
        command = earlier["run"].get("command")
        if command != self._command:
            return f"{self.root}: holds the output of 'vitreous {command}'; choose another folder"
        finished = earlier["run"].get("status") == "finished"
        state = "a finished run" if finished else "an unfinished run"
        remedy = "give `resume` or `overwrite`" if self._resumable else "give `overwrite`"
        return f"{self.root}: holds {state}; {remedy}, or choose another folder"

    def _compare(self, earlier: dict[str, Any]) -> None:
        before = earlier["run"]
        changes = differences(earlier, self.config)
        if changes and not self._allow:
            way_out = "`allow_config_change`" if self._changeable else "`overwrite` instead"
            if self._replaces:
                way_out += f", or remove {self._work} to keep the results in {self.root}"
            raise InputError(
                f"{self._work / CONFIG}: the run to continue differs: {'; '.join(changes)}; "
                f"give the same options and data, or {way_out}"
            )
        self.resuming = True
        self.was_finished = before.get("status") == "finished"
        run = self.config["run"]
        run |= {key: value for key, value in before.items() if key not in run}
        run["started"] = before.get("started", run["started"])
        recorded = before.get("config_changes", [])
        recorded = recorded if isinstance(recorded, list) else [str(recorded)]
        recorded = [*recorded, *(f"{_now()}: {change}" for change in changes)]
        if recorded:
            run["config_changes"] = recorded

    def _remove_outputs(self) -> None:
        names = [self.root / name for name in (*self._outputs, PROGRESS)]
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

        atomic_write_text(self._work / CONFIG, tomli_w.dumps(self.config))


def fingerprint(path: Path) -> dict[str, Any]:
    """Return path, size and SHA-256 of an input file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
            size = stream.tell()
    except OSError as error:
        raise unreadable(path, error) from error
    return {"path": plain(path), "bytes": size, "sha256": digest.hexdigest()}


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
        before, after = (
            str(item.get("sha256", ""))[:12] if isinstance(item, dict) else "none"
            for item in (old, new)
        )
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
    if isinstance(value, (bool, int, float)):
        return value
    return utf8(str(value))


def read_config(path: Path, advice: str = "choose another folder") -> dict[str, Any]:
    """Return the content of a run's ``config.toml``.

    Args:
        path: the file.
        advice: what to do if it is broken.

    Raises:
        InputError: it cannot be read.
    """
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {advice}") from error
    for name in ("run", "options", "inputs", "machine"):
        if not isinstance(config.setdefault(name, {}), dict):
            raise InputError(f"{path}: {name} is no table; {advice}")
    return config


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
