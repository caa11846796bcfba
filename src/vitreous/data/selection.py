"""Selection of particles by the columns of their table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError, UsageError
from vitreous.data.particle_table import ParticleTable
from vitreous.io.inflate import read_text

Mask = NDArray[np.bool_]

_COMPARE = {"==": eq, "!=": ne, "<=": le, ">=": ge, "<": lt, ">": gt}
_CONDITION = re.compile(r"\s*_?([^\s=!<>]+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*")
_MEMBER = re.compile(r"\s*_?([^\s=!<>]+)\s+in\s+(.*?)\s*")
_ROWS_BYTES = 1 << 28


@dataclass(frozen=True)
class Condition:
    """Comparison of a column of the particle or optics table with a value, or with ``in`` several.

    Both sides are compared as numbers where they are numbers, else as text.
    """

    column: str
    operator: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse ``COLUMN OP VALUE`` or ``COLUMN in A,B,C``; UsageError for any other text.

        >>> Condition.parse("rlnDefocusU <= 2e4")
        Condition(column='rlnDefocusU', operator='<=', values=('2e4',))
        >>> Condition.parse("_rlnClassNumber in 1,3").values
        ('1', '3')
        """
        if match := _MEMBER.fullmatch(text):
            column, listed = match.groups()
            return cls(column, "in", tuple(value.strip() for value in listed.split(",")))
        if match := _CONDITION.fullmatch(text):
            column, operator, value = match.groups()
            if value:
                return cls(column, operator, (value,))
        raise UsageError(
            f"`where` {text!r}: expected 'COLUMN OP VALUE' with == != < <= > >=, or "
            "'COLUMN in A,B,C'"
        )

    def mask(self, table: ParticleTable) -> Mask:
        """Return the mask ``(n,)`` of the particles that meet the condition.

        Raises:
            InputError: no such column, or text is compared by order.
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
        text = [] if numeric else table.joined_text(self.column)
        column: Any = numbers if numeric else np.array(text, dtype=object)
        values: list[Any] = list(wanted if numeric else self.values)
        if self.operator == "in":
            return np.isin(column, values) if numeric else np.array([v in values for v in column])
        return np.asarray(_COMPARE[self.operator](column, values[0]), dtype=np.bool_)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def in_optics_group(table: ParticleTable, group: str) -> Mask:
    """Return the mask ``(n,)`` of the particles of an optics group, given by number or name.

    Raises:
        InputError: no such group; the text lists the existing ones.
    """
    numbers = table.joined_text("rlnOpticsGroup")
    named = "rlnOpticsGroupName" in table
    names = table.joined_text("rlnOpticsGroupName") if named else numbers
    mask = np.array([group in pair for pair in zip(numbers, names, strict=True)])
    if not mask.any():
        raise InputError(
            f"{table.path}: `optics_group` {group}: no particle is in it; there are "
            f"{', '.join(sorted(set(numbers)))}"
        )
    return mask


def from_micrograph(table: ParticleTable, pattern: str) -> Mask:
    """Return the mask of particles whose micrograph's name, or its last part, fits a pattern.

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
    """Read the mask of rows from a list of 1-based numbers, separated by blanks, commas or lines.

    Raises:
        InputError: an entry that is no row number of a table of ``count`` rows.
    """
    mask = np.zeros(count, dtype=np.bool_)
    words = read_text(path, "expected row numbers", _ROWS_BYTES).replace(",", " ").split()
    for entry, word in enumerate(words, start=1):
        row = word.isascii() and word.isdecimal() and len(word) < 12
        if not (row and 1 <= int(word) <= count):
            raise InputError(
                f"{path}: entry {entry}: {word!r:.40} is no row from 1 to {count}; rows are "
                "counted from 1"
            )
        mask[int(word) - 1] = True
    return mask


def thinned(mask: Mask, *, first: int | None, random: int | None, seed: int) -> Mask:
    """Limit a mask ``(n,)`` to ``random`` rows drawn at random, then to the ``first`` rows.

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
