"""Options of jobs: frozen models that the command line, ``config.toml`` and Python share.

A job has one model, put together from the mixins here and in :mod:`vitreous.jobs.inputs.options`.
The description of a field is the help text of its option, its bounds are the option's bounds. This
module and every ``options`` module import no torch, so that help stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vitreous.core.errors import UsageError


class Options(BaseModel):
    """Base of every options model: frozen, no unknown names, no NaN and no infinity.

    A subclass names its fields by role; the sets of all base classes count.

    Args (class variables):
        INPUTS: fields that hold input files; recorded with a hash and compared by content.
        CONTROL: fields that only steer a call, such as ``overwrite``; not recorded.
        MACHINE: fields that describe the machine or where files lie; recorded, not compared.
        EXCLUSIVE: pairs of fields of which at most one may be given.

    Raises:
        UsageError: a value is missing, unknown, of the wrong type or out of bounds.

    >>> class Example(Options):
    ...     box_size: int = Field(default=64, ge=8, description="Box size in pixels.")
    >>> Example(box_size=32).recorded()
    {'box_size': 32}
    >>> Example(box_size=3)
    Traceback (most recent call last):
    vitreous.core.errors.UsageError: `box_size` 3: must be greater than or equal to 8
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    INPUTS: ClassVar[frozenset[str]] = frozenset()
    CONTROL: ClassVar[frozenset[str]] = frozenset()
    MACHINE: ClassVar[frozenset[str]] = frozenset()
    EXCLUSIVE: ClassVar[frozenset[tuple[str, str]]] = frozenset()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_explained(error, list(type(self).model_fields))) from error

    @model_validator(mode="after")
    def _one_of_each_pair(self) -> Self:
        for first, second in sorted(self._names("EXCLUSIVE")):
            values = getattr(self, first), getattr(self, second)
            if not any(value is None or value is False for value in values):
                raise UsageError(f"`{first}` and `{second}` exclude each other; give one")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return what determines the result and is no file: the table ``[options]`` of a run."""
        skipped = self._names("INPUTS") | self._names("CONTROL") | self._names("MACHINE")
        return self.model_dump(mode="json", exclude=skipped, exclude_none=True)

    def machine(self) -> dict[str, Any]:
        """Return what is recorded and not compared: the table ``[machine]`` of a run."""
        names = self._names("MACHINE")
        return self.model_dump(mode="json", include=names, exclude_none=True)

    def inputs(self) -> dict[str, Path]:
        """Return the input files by role; those of a tuple are numbered from 1."""
        files: dict[str, Path] = {}
        for name in type(self).model_fields:
            if name not in self._names("INPUTS"):
                continue
            value = getattr(self, name)
            if isinstance(value, tuple):
                files |= {f"{name} {k}": Path(path) for k, path in enumerate(value, 1)}
            elif value is not None:
                files[name] = Path(value)
        return files

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuse fields that were given although they have no meaning.

        Args:
            names: of the fields.
            reason: why, such as "`method` em has none".

        Raises:
            UsageError: one of them was given.
        """
        for name in sorted(self.model_fields_set & set(names)):
            raise UsageError(f"`{name}`: {reason}; leave it out")

    def replaced(self, **changes: Any) -> Self:
        """Return a checked copy with some fields changed."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **changes})

    @classmethod
    def _names(cls, role: str) -> set[Any]:
        return {name for base in cls.__mro__ for name in base.__dict__.get(role, ())}


class ThreadOptions(Options):
    """CPU threads."""

    MACHINE = frozenset({"threads"})
    threads: int = Field(
        default=0, ge=0, description="CPU threads; 0 takes what the machine offers."
    )


class MachineOptions(ThreadOptions):
    """CPU threads, and whether progress is shown."""

    CONTROL = frozenset({"quiet"})
    quiet: bool = Field(default=False, description="Show no progress; results and errors only.")


class FolderOptions(Options):
    """The folder that a job writes."""

    CONTROL = frozenset({"output", "overwrite"})
    output: Path = Field(description="Folder to write; made if it does not exist.")
    overwrite: bool = Field(
        default=False, description="Replace what an earlier run of this command left in the folder."
    )


class OutputOptions(FolderOptions, MachineOptions):
    """What every job that writes a folder has: folder, threads and progress."""


class ComputeOptions(OutputOptions):
    """What every job that draws random numbers and may use a GPU has."""

    MACHINE = frozenset({"device"})
    seed: int = Field(
        default=0, ge=0, description="Seed of every random number; recorded in config.toml."
    )
    device: str = Field(
        default="auto",
        description="Where to compute: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.",
    )


class RunOptions(ComputeOptions):
    """What every job that reconstructs has: folder, resuming, seed and device."""

    CONTROL = frozenset({"resume", "watch"})
    resume: bool = Field(
        default=False,
        description="Go on with the run in the folder from its checkpoint; give the same options.",
    )
    watch: bool = Field(
        default=False,
        description="Show the run as a web page while it runs, at an address of this machine that "
        "is printed.",
    )


def _explained(error: ValidationError, known: list[str]) -> str:
    """Say what is wrong with the first bad field: its name, value and what it must be."""
    problems = error.errors()
    name = str(problems[0]["loc"][0]) if problems[0]["loc"] else ""
    own = [each for each in problems if (each["loc"] or ("",))[0] == name]
    if own[0]["type"] == "missing":
        return f"`{name}`: is missing; give it"
    if own[0]["type"] == "extra_forbidden":
        return f"{name}: no such option; known: {', '.join(known)}"
    texts = [
        each["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
        for each in own
    ]
    value = " ".join(repr(own[0]["input"]).split())[:60]
    return f"`{name}` {value}: {' or '.join(dict.fromkeys(texts))}"
