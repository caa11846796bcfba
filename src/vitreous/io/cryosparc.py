"""cryoSPARC's ``.cs`` files: numpy's ``.npy`` format with one row of named fields per item.

The header is checked against the size of the file before memory is allocated. Nothing is
unpickled; only numbers and text are accepted. Files written here may hold a note after the rows,
which numpy and cryoSPARC ignore: the parts of a STAR file that have no row.
"""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_file
from vitreous.io.inflate import open_binary

_MAGIC = b"\x93NUMPY"
_STREAM_MAGIC = b"\x94CSDAT"
_MAX_HEADER = 1 << 20
_SHORT_HEADER = 60_000
_MAX_NOTE = 1 << 28
_MAX_ROW = 1 << 31
_NOTE = b"\n# vitreous note "
FIELD_TYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,3})")
_STRINGS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_PLAIN = re.compile(r"(?:True|False|[\s\d(),:\[\]{}])*")
_MAX_DEPTH = 6


@dataclass(frozen=True)
class CsTable:
    """Content of a ``.cs`` file: rows ``(n,)`` and the note after them (other programs: empty)."""

    rows: NDArray[Any]
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields in file order."""
        return self.rows.dtype.names or ()


def _literal(path: Path, text: str) -> Any:
    """Parse the header as Python values; refuse anything but plain data before evaluation."""
    bare = _STRINGS.sub("", text)
    depth = deepest = 0
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    try:
        if not _PLAIN.fullmatch(bare) or deepest > _MAX_DEPTH:
            raise ValueError("not a dictionary of plain data")
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: header: is damaged ({error}); copy the file again") from error


def _field_bytes(path: Path, entry: Any, names: set[str]) -> int:
    """Check a field's name, type and shape, and return its bytes per row."""
    if not (isinstance(entry, tuple) and len(entry) in (2, 3) and isinstance(entry[0], str)):
        raise InputError(f"{path}: header: {entry!r:.80} is no field; was it saved by cryoSPARC?")
    name, kind = entry[:2]
    if not name or name in names:
        raise InputError(f"{path}: header: field {name!r:.80} has no name or appears twice")
    names.add(name)
    if isinstance(kind, str) and kind.lstrip("<>|=") == "O":
        raise InputError(
            f"{path}: field {name!r:.80}: holds Python objects, which could run code when read; "
            "save it as numbers or text"
        )
    if not (isinstance(kind, str) and FIELD_TYPE.fullmatch(kind)):
        raise InputError(f"{path}: field {name!r:.80}: type {kind!r:.80} is not supported")
    shape = entry[2] if len(entry) == 3 else ()
    shape = (shape,) if isinstance(shape, int) else shape
    whole = isinstance(shape, tuple) and all(type(n) is int and n > 0 for n in shape)
    if not whole or len(shape) > 4:
        raise InputError(f"{path}: field {name!r:.80}: shape {shape!r:.80} is not supported")
    size = int(re.sub(r"\D", "", kind)) * (4 if "U" in kind else 1)
    return size * math.prod(shape)


def _check_header(path: Path, header: Any) -> tuple[np.dtype[Any], int]:
    """Return the row type and the number of rows of a header."""
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{path}: header: descr, fortran_order, shape expected, found others")
    descr, shape = header["descr"], header["shape"]
    if descr in ("|O", "O", "<O", ">O"):
        raise InputError(f"{path}: holds Python objects, which could run code when read")
    if not isinstance(descr, list) or not descr:
        raise InputError(f"{path}: holds plain numbers, not named fields; it is no .cs file")
    if header["fortran_order"] is not False:
        raise InputError(f"{path}: header: fortran_order must be False in a table")
    if not (isinstance(shape, tuple) and len(shape) == 1 and type(shape[0]) is int):
        raise InputError(f"{path}: header: shape {shape!r:.80}; a table has one dimension")
    names: set[str] = set()
    row_bytes = sum(_field_bytes(path, entry, names) for entry in descr)
    if not 0 < row_bytes < _MAX_ROW or shape[0] < 0:
        raise InputError(f"{path}: header: {shape[0]} rows of {row_bytes} bytes are impossible")
    return np.dtype(descr), shape[0]


def _read_header(path: Path, stream: BinaryIO) -> tuple[np.dtype[Any], int]:
    start = stream.read(8)
    if start[:6] == _STREAM_MAGIC:
        raise InputError(
            f"{path}: is in cryoSPARC's stream format; save it in numpy's (NUMPY_FORMAT)"
        )
    if start[:4] == b"PK\x03\x04":
        raise InputError(f"{path}: is a zip archive; unpack it and give the .cs file in it")
    if start[:6] != _MAGIC or len(start) < 8:
        raise InputError(f"{path}: no numpy header; is it a .cs file?")
    wide = start[6] in (2, 3)
    if not wide and start[6] != 1:
        raise InputError(f"{path}: header: numpy format {start[6]}.{start[7]} is unknown")
    length = int.from_bytes(stream.read(4 if wide else 2), "little")
    raw = stream.read(min(length, _MAX_HEADER))
    if len(raw) < length:
        fault = "too long" if len(raw) == _MAX_HEADER else "cut short"
        raise InputError(f"{path}: header: {length} bytes, {fault}; it is truncated or no .cs file")
    try:
        text = raw.decode("utf-8" if start[6] == 3 else "latin-1")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: header: is damaged ({error.reason})") from error
    return _check_header(path, _literal(path, text))


def _read_note(path: Path, stream: BinaryIO, surplus: int) -> str:
    """Return the note after the rows; warn about anything else there."""
    line = stream.read(len(_NOTE))
    if line != _NOTE:
        warnings.warn(f"{path}: {surplus} bytes after the data are ignored", stacklevel=3)
        return ""
    stated = stream.readline(16)
    length = surplus - len(_NOTE) - len(stated)
    if stated != b"%d\n" % length or length > _MAX_NOTE:
        raise InputError(f"{path}: note: {stated!r} bytes announced, {length} there; truncated")
    try:
        return stream.read(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: note: is damaged; write the file again") from error


def read_cs(path: Path | str) -> CsTable:
    """Read a ``.cs`` file.

    Raises:
        InputError: unreadable, truncated, holding Python objects, or not a table of named fields.
    """
    path = Path(path)
    with open_binary(path) as stream:
        dtype, count = _read_header(path, stream)
        size, needed = os.fstat(stream.fileno()).st_size, stream.tell() + count * dtype.itemsize
        if needed > size:
            raise InputError(
                f"{path}: data: {count} rows of {dtype.itemsize} bytes need a file of {needed} "
                f"bytes, it has {size}; it is truncated or not what it claims"
            )
        rows = np.fromfile(stream, dtype, count)
        note = _read_note(path, stream, size - needed) if size > needed else ""
    return CsTable(rows, note)


def write_cs(path: Path | str, table: CsTable) -> None:
    """Write a ``.cs`` file atomically; ``numpy.load`` reads it.

    Raises:
        ValueError: the rows are not a structured array of numbers and text.
        ResourceError: disk full.
        InputError: the folder is missing or not writable.

    >>> import tempfile
    >>> rows = np.array([(7, 1.5)], dtype=[("uid", "<u8"), ("ctf/df1_A", "<f4")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_cs(Path(folder) / "a.cs", CsTable(rows))
    ...     read_cs(Path(folder) / "a.cs").fields, np.load(Path(folder) / "a.cs")["uid"].tolist()
    (('uid', 'ctf/df1_A'), [7])
    """
    rows = table.rows
    if rows.ndim != 1 or not rows.dtype.names or rows.dtype.hasobject:
        raise ValueError(f"expected rows of named fields, got {rows.dtype} {rows.shape}")
    note = table.note.encode("utf-8")
    with atomic_file(path) as stream:
        header = np.lib.format.header_data_from_array_1_0(rows)
        if len(repr(header)) < _SHORT_HEADER:
            np.lib.format.write_array_header_1_0(stream, header)
        else:
            np.lib.format.write_array_header_2_0(stream, header)
        stream.write(np.ascontiguousarray(rows).tobytes())
        if note:
            stream.write(_NOTE + b"%d\n" % len(note) + note)


def join_fields(columns: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return one structured array of the fields ``(n, ...)``, in order.

    >>> join_fields({"a": np.arange(2, dtype="u4"), "b": np.ones((2, 3))}).dtype["b"].shape
    (3,)
    """
    dtype = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    rows = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        rows[name] = column
    return rows


def _uids(path: Path, table: CsTable) -> NDArray[np.uint64]:
    if "uid" not in table.fields or table.rows["uid"].dtype.kind not in "iu":
        raise InputError(f"{path}: field uid: missing, so its rows cannot be matched")
    uids = np.asarray(table.rows["uid"]).astype(np.uint64)
    if uids.ndim != 1 or len(np.unique(uids)) != len(uids):
        raise InputError(f"{path}: field uid: a number appears twice, rows cannot be matched")
    return uids


def joined_by_uid(path: Path, table: CsTable, other: Path, more: CsTable) -> CsTable:
    """Add the fields of ``more``, read from ``other``, that a table from ``path`` has not.

    Raises:
        InputError: a ``uid`` is missing or appears twice.
    """
    uids, offered = _uids(path, table), _uids(other, more)
    order = np.argsort(offered)
    row = np.searchsorted(offered, uids, sorter=order).clip(max=max(len(offered) - 1, 0))
    row = order[row] if len(offered) else np.zeros(0, dtype=np.int64)
    missing = int((offered[row] != uids).sum()) if len(offered) else len(uids)
    if missing:
        raise InputError(
            f"{other}: field uid: {missing} of the {len(uids)} rows of {path} are missing; "
            "give the passthrough file of the same job and particles"
        )
    columns = {name: table.rows[name] for name in table.fields}
    columns |= {n: more.rows[n][row] for n in more.fields if n not in columns}
    return CsTable(join_fields(columns), table.note)


def read_cs_with_passthrough(path: Path | str, passthrough: Sequence[Path | str] = ()) -> CsTable:
    """Read a ``.cs`` file and join the fields of others to it by ``uid``.

    The others have at least the same rows; the fields of the first have precedence.

    Raises:
        InputError: a file is bad, or a ``uid`` is missing or appears twice.
    """
    path = Path(path)
    table = read_cs(path)
    for other in map(Path, passthrough):
        table = joined_by_uid(path, table, other, read_cs(other))
    return table
