"""Choosing particles by what their table says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError, UsageError
from vitreous.data.tables import ParticleTable
from vitreous.io.inflate import read_bounded

Mask = NDArray[np.bool_]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "<": np.less,
    ">": np.greater,
}
_CONDITION = re.compile(r"\s*_?([^\s=!<>]+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*")
_MEMBER = re.compile(r"\s*_?([^\s=!<>]+)\s+in\s+(.*?)\s*")
_ROWS_BYTES = 1 << 28


@dataclass(frozen=True)
class Condition:
    """A column compared with a value, or with several.

    Args:
        column: in the particle or the optics table, without underscore.
        operator: ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` or ``in``.
        values: one, or with ``in`` any number; numbers where both sides are, else text.
    """

    column: str
    operator: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``COLUMN OP VALUE`` or ``COLUMN in A,B,C``.

        Raises:
            UsageError: it is neither.

        >>> Condition.parse("rlnDefocusU <= 2e4")
        Condition(column='rlnDefocusU', operator='<=', values=('2e4',))
        >>> Condition.parse("_rlnClassNumber in 1,3").values
        ('1', '3')
        """
        if found := _MEMBER.fullmatch(text):
            column, listed = found.groups()
            return cls(column, "in", tuple(value.strip() for value in listed.split(",")))
        if found := _CONDITION.fullmatch(text):
            column, operator, value = found.groups()
            if value:
                return cls(column, operator, (value,))
        raise UsageError(
            f"--where {text!r}: expected 'COLUMN OP VALUE' with == != < <= > >=, or "
            "'COLUMN in A,B,C'"
        )

    def mask(self, table: ParticleTable) -> Mask:
        """The particles that meet the condition.

        Raises:
            InputError: no such column, or one without numbers is to be ordered.
        """
        if self.column not in table:
            raise InputError(
                f"{table.path}: column _{self.column}: missing; `vitreous info` lists the columns"
            )
        numbers = table.numbers_or_none(self.column)
        wanted = [_number(value) for value in self.values]
        numeric = numbers is not None and None not in wanted
        if not numeric and self.operator not in ("==", "!=", "in"):
            raise InputError(
                f"{table.path}: column _{self.column}: {self.operator} {self.values[0]} needs "
                "numbers on both sides; compare text with == or !="
            )
        held: Any = numbers if numeric else np.array(table.joined_text(self.column), dtype=object)
        values: list[Any] = list(wanted if numeric else self.values)
        if self.operator == "in":
            return np.isin(held, values) if numeric else np.array([v in values for v in held])
        return np.asarray(_COMPARE[self.operator](held, values[0]), dtype=np.bool_)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def in_optics_group(table: ParticleTable, group: str) -> Mask:
    """Particles of an optics group, given by number or name.

    Raises:
        InputError: no such group; those there are named.
    """
    numbers = table.joined_text("rlnOpticsGroup")
    named = "rlnOpticsGroupName" in table
    names = table.joined_text("rlnOpticsGroupName") if named else numbers
    mask = np.array([group in pair for pair in zip(numbers, names, strict=True)])
    if not mask.any():
        raise InputError(
            f"{table.path}: --optics-group {group}: no particle is in it; there are "
            f"{', '.join(sorted(set(numbers)))}"
        )
    return mask


def from_micrograph(table: ParticleTable, pattern: str) -> Mask:
    """Particles whose micrograph's name, with or without its folder, matches a pattern.

    Raises:
        InputError: the table names no micrographs.
    """
    names = table.text("rlnMicrographName")
    fits = {
        name: fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)
        for name in set(names)
    }
    return np.array([fits[name] for name in names])


def rows_from_file(path: Path, count: int) -> Mask:
    """Rows listed by number from 1 on, separated by blanks, commas or lines.

    Raises:
        InputError: something else than row numbers of a table of ``count`` rows.
    """
    mask = np.zeros(count, dtype=np.bool_)
    try:
        words = read_bounded(path, _ROWS_BYTES).decode("ascii").replace(",", " ").split()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; expected row numbers") from error
    for place, word in enumerate(words):
        if not (word.isdecimal() and len(word) < 12 and 1 <= int(word) <= count):
            raise InputError(
                f"{path}: entry {place + 1}: {word!r:.40} is no row from 1 to {count}; rows are "
                "counted from 1"
            )
        mask[int(word) - 1] = True
    return mask


def thinned(mask: Mask, *, first: int | None, random: int | None, seed: int) -> Mask:
    """At most the first, or a random, so many of the chosen rows.

    >>> thinned(np.array([True, False, True, True]), first=2, random=None, seed=0).tolist()
    [True, False, True, False]
    """
    rows = np.flatnonzero(mask)
    if random is not None:
        generator = np.random.default_rng(seed)
        rows = generator.permutation(rows)[:random]
    if first is not None:
        rows = np.sort(rows)[:first]
    chosen = np.zeros_like(mask)
    chosen[rows] = True
    return chosen
