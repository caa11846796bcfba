"""STAR files of RELION 3.0 to 5, written as RELION 3.1 writes them.

Blocks hold either one loop or name-value pairs. Names are kept without their leading underscore and
values as text, so that unknown columns and blocks survive a round trip.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_write_text
from vitreous.io.inflate import decoded, open_binary
from vitreous.io.star_block import LazyColumns, StarBlock, StarDocument

__all__ = [
    "StarBlock",
    "StarDocument",
    "format_column",
    "format_star",
    "parse_star",
    "quoted_column",
    "read_star",
    "write_star",
]

_OPENERS = ("data_", "loop_", "_", "DATA_", "LOOP_", "Data_", "Loop_")
_MARKS = "'\"#;"
_TOKEN = re.compile(r"""'((?:[^']|'(?=\S))*)'(?=\s|$)|"((?:[^"]|"(?=\S))*)"(?=\s|$)|(\S+)""")
_NEEDS_QUOTES = re.compile(r"^$|^['\"#_;]|^(?:data_|loop_)|\s", re.IGNORECASE)
_ANY_NEEDS_QUOTES = re.compile(r"(?:^|\x00)(?:(?=\x00|$)|['\"#_;]|data_|loop_)|\s", re.IGNORECASE)


def _split(line: str, where: str) -> list[str]:
    """Split a line that holds quotes or a comment."""
    tokens = []
    for match in _TOKEN.finditer(line):
        single, double, plain = match.groups()
        if plain is None:
            tokens.append(single if single is not None else double)
        elif plain.startswith("#"):
            break
        elif plain[0] in "'\"":
            raise InputError(f"{where}: quote {plain[0]} is never closed")
        else:
            tokens.append(plain)
    return tokens


def _opens_block(line: str) -> bool:
    """Whether a stripped line opens a block; keywords may be in upper case."""
    return line[:5].lower() == "data_"


class _Reader:
    """Parser of the lines of a file; ``self.at`` is the 0-based line to read next."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text, self.lines, self.at = path, text, text.split("\n"), 0
        self.blocks: dict[str, StarBlock] = {}

    def where(self, line: int | None = None) -> str:
        return f"{self.path}: line {(self.at if line is None else line) + 1}"

    def peek(self) -> str | None:
        """Return the next line that is neither blank nor a comment, stripped; None at the end."""
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            if line and not line.startswith("#"):
                return line
            self.at += 1
        return None

    def document(self) -> StarDocument:
        while (line := self.peek()) is not None:
            if not _opens_block(line):
                raise InputError(f"{self.where()}: expected a data_ block, got {line[:40]!r}")
            name = line.split()[0][len("data_") :]
            if name in self.blocks:
                raise InputError(f"{self.where()}: block data_{name}: appears twice")
            self.at += 1
            self.blocks[name] = self.block(name)
        if not self.blocks:
            raise InputError(f"{self.path}: no data_ block; is it a STAR file?")
        return StarDocument(self.blocks)

    def block(self, name: str) -> StarBlock:
        line = self.peek()
        if line is not None and line.split()[0].lower() == "loop_":
            self.at += 1
            block = self.loop()
        else:
            block = self.pairs()
        line = self.peek()
        if line is not None and not _opens_block(line):
            raise InputError(
                f"{self.where()}: block data_{name}: more than one table in a block, or a stray "
                f"line {line[:40]!r}"
            )
        return block

    def pairs(self) -> StarBlock:
        columns: dict[str, list[str]] = {}
        while (line := self.peek()) is not None and line.startswith("_"):
            tokens = _split(line, self.where())
            if len(tokens) != 2:
                raise InputError(f"{self.where()}: {tokens[0]} needs one value, got {tokens[1:]}")
            self.add_name(tokens[0], columns).append(tokens[1])
            self.at += 1
        return StarBlock(columns, is_loop=False)

    def add_name(self, token: str, columns: dict[str, list[str]]) -> list[str]:
        name = token[1:]
        if name in columns:
            raise InputError(f"{self.where()}: column {token}: appears twice")
        columns[name] = []
        return columns[name]

    def loop(self) -> StarBlock:
        columns: dict[str, list[str]] = {}
        while (line := self.peek()) is not None and line.startswith("_"):
            self.add_name(line.split()[0], columns)
            self.at += 1
        if not columns:
            raise InputError(f"{self.where()}: loop_ without column names")
        return StarBlock(self.rows(list(columns)))

    def ends_table(self, line: str, width: int) -> bool:
        """Whether a line ends a table; complete rows may start like a keyword."""
        return line.lstrip().startswith(_OPENERS) and (width <= 2 or len(line.split()) != width)

    def rows(self, names: list[str]) -> Mapping[str, list[str]]:
        """Read the rows up to the next block, checking that each has a value for every name."""
        start, width = self.at, len(names)
        ends = (
            at for at in range(start, len(self.lines)) if self.ends_table(self.lines[at], width)
        )
        self.at = end = next(ends, len(self.lines))
        body = self.lines[start:end]
        if self.has_marks(start, end):
            flat = self.quoted_rows(start, body, width)
            return {name: flat[position::width] for position, name in enumerate(names)}
        counts = [len(line.split()) for line in body]
        if not set(counts) <= {0, width}:
            wrong = next(i for i, count in enumerate(counts) if count not in (0, width))
            raise self.uneven(start + wrong, counts[wrong], width)
        return LazyColumns(names, [line for line, count in zip(body, counts, strict=True) if count])

    def has_marks(self, start: int, end: int) -> bool:
        """Whether quotes, comments or multi-line text may be in these lines."""
        begin = sum(map(len, self.lines[:start])) + start
        stop = begin + sum(map(len, self.lines[start:end])) + end - start
        return any(self.text.find(mark, begin, stop) >= 0 for mark in _MARKS)

    def quoted_rows(self, start: int, body: list[str], width: int) -> list[str]:
        flat: list[str] = []
        for offset, line in enumerate(body):
            if line.startswith(";"):
                raise InputError(f"{self.where(start + offset)}: multi-line text is not read")
            plain = not any(mark in line for mark in _MARKS)
            tokens = line.split() if plain else _split(line, self.where(start + offset))
            if tokens and len(tokens) != width:
                raise self.uneven(start + offset, len(tokens), width)
            flat += tokens
        return flat

    def uneven(self, line: int, count: int, width: int) -> InputError:
        return InputError(
            f"{self.where(line)}: {count} values for {width} columns; the row is damaged or the "
            "file cut short"
        )


def parse_star(text: str, path: Path | str = "STAR text") -> StarDocument:
    """Parse the text of a STAR file; ``path`` is for messages.

    Raises:
        InputError: rows of wrong length, or duplicate blocks or columns; the text names the line.

    >>> parse_star("data_\\nloop_\\n_rlnVoltage #1\\n300\\n").blocks[""].text("rlnVoltage")
    ['300']
    """
    if "\x00" in text:
        raise InputError(f"{path}: not a text file; is it a STAR file?")
    return _Reader(Path(path), text).document()


def read_star(path: Path | str) -> StarDocument:
    """Read a STAR file of RELION 3.0, 3.1, 4 or 5, values as text; see :class:`StarBlock`.

    Raises:
        InputError: unreadable or malformed; the text names the line.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_star(Path(folder) / "a.star", StarDocument({"x": StarBlock({"a": ["1", "2"]})}))
    ...     read_star(Path(folder) / "a.star").blocks["x"].numbers("a").tolist()
    [1.0, 2.0]
    """
    path = Path(path)
    try:
        with open_binary(path) as stream:
            text = decoded(stream.read())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; is it a STAR file?") from error
    if text and not text.endswith("\n"):
        warnings.warn(f"{path}: the last line does not end; was the file cut?", stacklevel=2)
    return parse_star(text, path)


def _quote(value: str) -> str:
    if not _NEEDS_QUOTES.search(value):
        return value
    for mark in ('"', "'"):
        if "\n" not in value and not re.search(rf"{mark}\s|{mark}$", value):
            return f"{mark}{value}{mark}"
    raise ValueError(f"cannot be written to a STAR file: {value!r}")


def quoted_column(values: Iterable[str]) -> list[str]:
    """Return the values of a column as they stand in a STAR file.

    >>> quoted_column(["one", "two words"])
    ['one', '"two words"']
    """
    column = [str(value) for value in values]
    if _ANY_NEEDS_QUOTES.search("\x00".join(column)):
        return [_quote(value) for value in column]
    return column


def format_star(document: StarDocument) -> str:
    """Return the text of a STAR file as RELION 3.1 writes it.

    Raises:
        ValueError: columns of different length, or a value that STAR cannot hold.

    >>> print(format_star(StarDocument({"x": StarBlock({"a": ["1"], "b": ["two words"]})})))
    <BLANKLINE>
    # version 30001
    <BLANKLINE>
    data_x
    <BLANKLINE>
    loop_
    _a #1
    _b #2
    1 "two words"
    <BLANKLINE>
    <BLANKLINE>
    """
    parts: list[str] = []
    for name, block in document.blocks.items():
        if re.search(r"\s", name) or any(re.search(r"\s|^$", key) for key in block.columns):
            raise ValueError(f"block data_{name} or one of its columns has a blank in its name")
        lengths = {len(column) for column in block.columns.values()}
        if len(lengths) > 1 or (not block.is_loop and lengths not in (set(), {1})):
            raise ValueError(f"block data_{name} has columns of lengths {sorted(lengths)}")
        parts += ["", "# version 30001", "", f"data_{name}", ""]
        columns = [quoted_column(column) for column in block.columns.values()]
        if block.is_loop and block.columns:
            parts.append("loop_")
            parts += [f"_{key} #{number}" for number, key in enumerate(block.columns, 1)]
            parts += map(" ".join, zip(*columns, strict=True))
        else:
            pairs = zip(block.columns, columns, strict=True)
            parts += [f"_{key} {column[0]}" for key, column in pairs]
        parts.append("")
    return "\n".join(parts) + "\n"


def write_star(path: Path | str, document: StarDocument) -> None:
    """Write a STAR file atomically.

    Raises:
        ValueError: columns of different length, or a value that STAR cannot hold.
        ResourceError: disk full.
        InputError: the folder is missing or not writable.
    """
    atomic_write_text(path, format_star(document))


def format_column(values: Any, decimals: int = 6) -> list[str]:
    """Format numbers as text of a column: integers as such, others with fixed decimals.

    >>> format_column([1.5, 2.0]), format_column([3, 4])
    (['1.500000', '2.000000'], ['3', '4'])
    """
    numbers = np.asarray(values)
    if numbers.dtype.kind in "iub":
        return [str(int(value)) for value in numbers]
    return [f"{value:.{decimals}f}" for value in numbers.tolist()]
