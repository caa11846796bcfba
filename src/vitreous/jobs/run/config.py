"""Frozen configuration dataclasses from defaults, a TOML file and overrides."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from vitreous.core.errors import InputError, UsageError
from vitreous.jobs.run.messages import one_line

C = TypeVar("C")


def load_config(
    kind: type[C],
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
) -> C:
    """Return a configuration: its defaults, then the file, then the overrides.

    Args:
        kind: a frozen dataclass, plain or pydantic's.
        path: TOML file of its fields, or None.
        overrides: field to value; None means "not given".
        defaults: field to value, instead of the dataclass's own (a preset).

    Returns:
        the configuration.

    Raises:
        UsageError: unknown key, wrong type or impossible value; named with its source.
        InputError: the file cannot be read.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     steps: int = 10
    >>> load_config(Config, None, {"steps": 3})
    Config(steps=3)
    """
    values = {} if path is None else _read_toml(path)
    source = "command line" if path is None else str(path)
    known = [field.name for field in fields(kind) if field.init]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UsageError(f"{source}: unknown key {one_line(name)}; known: {', '.join(known)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return build(kind, {**(defaults or {}), **values, **given}, source)


def build(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    """Return a configuration with strictly checked types; lists become tuples where needed.

    Raises:
        UsageError: wrong type or impossible value.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or kind.__name__
        got = one_line(repr(first["input"]))[:60]
        raise UsageError(f"{source}: {name}: {one_line(first['msg'])}, got {got}") from error
    except ValueError as error:
        raise UsageError(f"{source}: {one_line(error)}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {one_line(error)}") from error
