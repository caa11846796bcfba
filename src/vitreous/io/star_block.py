"""Blocks of a STAR file; columns of a large table are parsed when they are first used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.bounds import check_bounds

_LINES_AT_ONCE = 4096


class LazyColumns(Mapping[str, list[str]]):
    """Columns of a loop, parsed from its lines on first use.

    Numbers are parsed straight from the lines, many columns in one pass (:meth:`load`). The text of
    a column that was not loaded loads the text of all. Lines have no quotes or comments, none is
    blank, each has ``len(names)`` values.
    """

    def __init__(self, names: Sequence[str], lines: Sequence[str]) -> None:
        self._position = {name: position for position, name in enumerate(names)}
        self._lines, self.rows = lines, len(lines)
        self._text: dict[str, list[str]] = {}
        self._numbers: dict[str, NDArray[np.float64]] = {}

    def __repr__(self) -> str:
        return f"LazyColumns({list(self._position)}, {self.rows} rows)"

    def __len__(self) -> int:
        return len(self._position)

    def __iter__(self) -> Iterator[str]:
        return iter(self._position)

    def __contains__(self, name: object) -> bool:
        return name in self._position

    def __getitem__(self, name: str) -> list[str]:
        if name not in self._position:
            raise KeyError(name)
        if name not in self._text:
            self.load(text=self._position)
        return self._text[name]

    def numbers(self, name: str) -> NDArray[np.float64] | None:
        """Return a column as float64, NaN and infinity included; None if a value is no number."""
        if name not in self._numbers:
            self.load(numbers=[name])
        return self._numbers.get(name)

    def load(self, *, numbers: Iterable[str] = (), text: Iterable[str] = ()) -> None:
        """Parse these columns in one pass; absent names are ignored."""
        texts: dict[str, list[str]] = {
            name: [] for name in text if name in self._position and name not in self._text
        }
        arrays = {
            name: np.empty(self.rows)
            for name in numbers
            if name in self._position and name not in self._numbers
        }
        if not (arrays or texts):
            return
        width = len(self._position)
        for start in range(0, self.rows, _LINES_AT_ONCE):
            piece = self._lines[start : start + _LINES_AT_ONCE]
            values = list(chain.from_iterable(map(str.split, piece)))
            for name in list(arrays):
                parsed = _floats(values[self._position[name] :: width])
                if parsed is None:
                    del arrays[name]
                else:
                    arrays[name][start : start + len(piece)] = parsed
            for name in texts:
                texts[name] += values[self._position[name] :: width]
        self._numbers |= arrays
        self._text |= texts


@dataclass(frozen=True)
class StarBlock:
    """One ``data_`` block: a ``loop_`` table or name-value pairs.

    ``columns`` are values as text by name without underscore, all of one length, 1 for pairs.
    """

    columns: Mapping[str, list[str]] = field(default_factory=dict)
    is_loop: bool = True

    def __len__(self) -> int:
        if isinstance(self.columns, LazyColumns):
            return self.columns.rows
        return len(next(iter(self.columns.values()), []))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def text(self, name: str, source: Path | str = "STAR table") -> list[str]:
        """Return the values of a column as text.

        Raises:
            InputError: no such column; the text names it and the file ``source``.
        """
        if name not in self.columns:
            raise InputError(f"{source}: column _{name}: missing; add it or export it again")
        self.load(text=[name])
        return self.columns[name]

    def load(self, *, numbers: Iterable[str] = (), text: Iterable[str] = ()) -> None:
        """Parse these columns in one pass, which is faster than one by one."""
        if isinstance(self.columns, LazyColumns):
            self.columns.load(numbers=numbers, text=text)

    def numbers(self, name: str, source: Path | str = "STAR table") -> NDArray[np.float64]:
        """Return a column as finite float64 numbers.

        Raises:
            InputError: missing column, or a value that is no finite number or beyond the bounds of
                :data:`vitreous.io.bounds.BOUNDS` (the text names the row).

        >>> StarBlock({"rlnVoltage": ["300", "2e2"]}).numbers("rlnVoltage").tolist()
        [300.0, 200.0]
        """
        numbers = self.numbers_or_none(name, source)
        if numbers is None:
            parsed = (_floats([value]) for value in self.text(name, source))
            numbers = np.array([np.nan if one is None else one[0] for one in parsed])
        bad = np.flatnonzero(~np.isfinite(numbers))
        if bad.size:
            row = int(bad[0])
            raise InputError(
                f"{source}: column _{name}, row {row + 1}: {self.columns[name][row]!r} is not a "
                "finite number"
            )
        check_bounds(name, numbers, source)
        return numbers

    def numbers_or_none(
        self, name: str, source: Path | str = "STAR table"
    ) -> NDArray[np.float64] | None:
        """Return a column as float64, NaN and infinity included; None if a value is no number.

        Raises:
            InputError: missing column.
        """
        if isinstance(self.columns, LazyColumns) and name in self.columns:
            values = self.columns.numbers(name)
            return None if values is None else values.copy()
        return _floats(self.text(name, source))

    def integers(self, name: str, source: Path | str = "STAR table") -> NDArray[np.int64]:
        """Return a column as whole numbers.

        Raises:
            InputError: missing column, or a value that is no whole number (the text names the row).
        """
        numbers = self.numbers(name, source)
        bad = np.flatnonzero((numbers != np.round(numbers)) | (np.abs(numbers) > 2**53))
        if bad.size:
            row = int(bad[0])
            value = self.columns[name][row]
            raise InputError(f"{source}: column _{name}, row {row + 1}: {value!r} is not whole")
        return numbers.astype(np.int64)


@dataclass(frozen=True)
class StarDocument:
    """Content of a STAR file: blocks by name (the part after ``data_``), in file order."""

    blocks: dict[str, StarBlock] = field(default_factory=dict)


def _floats(values: Sequence[str]) -> NDArray[np.float64] | None:
    """Parse all values as numbers, or return None; Python's ``1_000`` is no STAR number."""
    if "_" in "".join(values):
        return None
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except ValueError:
        return None
