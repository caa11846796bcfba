"""Lossless conversion of ``.cs`` fields to STAR columns, and the record of their types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.cryosparc import FIELD_TYPE
from vitreous.io.star import StarBlock

_NAME, _TYPE, _SHAPE, _STORED = "csField", "csType", "csShape", "csStored"
_SHAPES = re.compile(r"\d{1,4}(?:x\d{1,4}){0,3}")
_STORAGES = ("relion", "text", "hex", "absent")
_SAFE = re.compile(r"[^\s'\"#_;\x00-\x20][^\s'\"#;]*")


@dataclass(frozen=True)
class Recorded:
    """Type of a field and the way it is stored.

    Args:
        dtype: type of one value.
        shape: shape of the values of a row.
        stored: ``relion`` (the RELION columns give it), ``text`` or ``hex`` (a column of its own),
            ``absent`` (the RELION columns would give it, but the file did not have it).
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stored: str

    @property
    def is_present(self) -> bool:
        """Whether the file had the field."""
        return self.stored != "absent"

    def cast(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cast values to the recorded type; longer text keeps its length."""
        if self.dtype.kind in "SU":
            wide = values.astype(self.dtype.kind)
            return wide.astype(self.dtype) if wide.itemsize <= self.dtype.itemsize else wide
        return values.astype(self.dtype)


def record_block(record: dict[str, Recorded]) -> StarBlock:
    """Return the record as a STAR table."""
    fields = record.values()
    shapes = ["x".join(map(str, field.shape)) or "scalar" for field in fields]
    types, stored = [field.dtype.str for field in fields], [field.stored for field in fields]
    return StarBlock({_NAME: list(record), _TYPE: types, _SHAPE: shapes, _STORED: stored})


def read_record(block: StarBlock, path: Path) -> dict[str, Recorded]:
    """Read the record from a STAR table.

    Raises:
        InputError: unknown types, shapes or storage, or a field that appears twice.
    """
    where = f"{path}: block data_cryosparc"
    names, types, shapes, stored = (
        block.text(name, where) for name in (_NAME, _TYPE, _SHAPE, _STORED)
    )
    record = {}
    for name, kind, shape, how in zip(names, types, shapes, stored, strict=True):
        shape_known = shape == "scalar" or _SHAPES.fullmatch(shape)
        if not (FIELD_TYPE.fullmatch(kind) and shape_known and how in _STORAGES) or name in record:
            raise InputError(f"{where}: field {name!r}: {kind} {shape} {how} is damaged or twice")
        sizes = () if shape == "scalar" else tuple(map(int, shape.split("x")))
        record[name] = Recorded(np.dtype(kind), sizes, how)
    return record


def encode_column(values: NDArray[Any]) -> tuple[str, list[str]]:
    """Encode a field as text: readable where decoding is exact, else hexadecimal.

    >>> encode_column(np.array([[0.1, 2]], dtype="f4"))
    ('text', ['[0.1,2.0]'])
    >>> encode_column(np.array([b"two words"]))
    ('hex', ['x74776f20776f726473'])
    """
    field = Recorded(values.dtype, values.shape[1:], "text")
    text = _readable(values)
    if text is not None:
        try:
            if decode_column(text, field, "").tobytes() == values.tobytes():
                return "text", text
        except InputError:
            pass
    n = len(values)
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(n, -1)
    return "hex", ["x" + row.tobytes().hex() for row in raw]


def _readable(values: NDArray[Any]) -> list[str] | None:
    if values.dtype.kind in "SU":
        if values.ndim != 1:
            return None
        try:
            text = [v.decode("utf-8") if isinstance(v, bytes) else v for v in values.tolist()]
        except UnicodeDecodeError:
            return None
        return text if all(v.isprintable() and _SAFE.fullmatch(v) for v in text) else None
    if values.dtype.kind not in "iuf":
        return None
    flat = values.reshape(len(values), -1).astype(values.dtype.newbyteorder("=")).astype(str)
    if values.ndim == 1:
        return [str(v) for v in flat[:, 0].tolist()]
    return [f"[{','.join(row)}]" for row in flat.tolist()]


def decode_column(column: list[str], field: Recorded | None, where: str) -> NDArray[Any]:
    """Decode a field from its text; without a record its type is guessed from the values.

    Raises:
        InputError: values that are not of the recorded type and shape.
    """
    if field is None:
        field = _guess(where.rpartition("/")[2], column)
    shape = (len(column), *field.shape)
    try:
        if field.stored == "hex":
            raw = bytes.fromhex("".join(value.removeprefix("x") for value in column))
            return np.frombuffer(raw, field.dtype).reshape(shape).copy()
        if field.dtype.kind == "S":
            return np.array([value.encode("utf-8") for value in column]).astype(field.dtype)
        if field.dtype.kind == "U":
            return np.array(column).astype(field.dtype)
        parts = [value.strip("[]").split(",") for value in column] if field.shape else column
        kind = int if field.dtype.kind in "iu" else float
        flat = [kind(part) for row in parts for part in row] if field.shape else map(kind, column)
        wide = field.dtype if kind is int else np.dtype(np.float64)
        return np.array(list(flat), dtype=wide).astype(field.dtype).reshape(shape)
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"{where}: does not match data_cryosparc ({error})") from error


def _guess(name: str, column: list[str]) -> Recorded:
    """Guess the type of a field whose record another program dropped."""
    first = column[0] if column else ""
    shape = (first.count(",") + 1,) if first.startswith("[") else ()
    parts = [part for value in column for part in value.strip("[]").split(",")]
    if all(part.isdecimal() for part in parts):
        large = name.endswith("uid") or max(map(len, parts), default=0) > 9
        return Recorded(np.dtype("<u8" if large else "<u4"), shape, "text")
    try:
        [float(part) for part in parts]
    except ValueError:
        width = max(1, *(len(value.encode("utf-8")) for value in column))
        return Recorded(np.dtype(f"S{width}"), (), "text")
    return Recorded(np.dtype("<f4"), shape, "text")
