"""Reading and writing of the 1024-byte MRC2014 header, checked against the size of the file.

Format: Cheng et al., J. Struct. Biol. 192 (2015) 146; modes 0, 1, 2, 6 and 12, both byte orders.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError

HEADER_BYTES = 1024
MODES: dict[int, str] = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
"""Supported modes and the numpy type of their elements."""

_FIELDS = (
    "n 3i4, mode i4, nstart 3i4, m 3i4, cella 3f4, cellb 3f4, axes 3i4, dmin f4, dmax f4, "
    "dmean f4, ispg i4, nsymbt i4, extra1 V8, exttyp S4, nversion i4, extra2 V84, origin 3f4, "
    "map S4, machst 4u1, rms f4, nlabl i4, labels 10S80"
)
_LAYOUT = np.dtype([(name, kind) for name, kind in map(str.split, _FIELDS.split(", "))])
_LITTLE = _LAYOUT.newbyteorder("<")
_BIG = _LAYOUT.newbyteorder(">")


@dataclass(frozen=True)
class MrcHeader:
    """Content of a checked header.

    Args:
        path: the file, for messages.
        shape: (nz, ny, nx) as stored.
        mode: one of :data:`MODES`.
        pixel_size_angstrom: ``cella.x / mx`` in Å; None where the header holds none (0, NaN).
        is_stack: images rather than sections of a volume (by suffix, else by ``ispg`` and ``mz``).
        data_offset: bytes before the data.
        dtype: element type with byte order.
        axes: file axes (columns, rows, sections) as 1 = x, 2 = y, 3 = z.
    """

    path: Path
    shape: tuple[int, int, int]
    mode: int
    pixel_size_angstrom: float | None
    is_stack: bool
    data_offset: int
    dtype: np.dtype[Any]
    axes: tuple[int, int, int]

    @property
    def data_bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pixel_size_or(self, override_angstrom: float | None) -> float:
        """Return the override, else the header's pixel size, in Å; InputError without either."""
        if override_angstrom is not None:
            return override_angstrom
        if self.pixel_size_angstrom is None:
            raise InputError(
                f"{self.path}: pixel size: none in the header; give `pixel_size_angstrom`"
            )
        return self.pixel_size_angstrom


def _reject_or_warn(message: str, permissive: bool) -> None:
    if not permissive:
        raise InputError(f"{message}; if you trust the file, read it with `permissive`")
    warnings.warn(message, UserWarning, stacklevel=4)


def _byte_order(path: Path, raw: bytes, permissive: bool) -> np.dtype[Any]:
    """Header layout in the byte order of the machine stamp or, if permissive, of the mode."""
    if raw[208:212] not in (b"MAP ", b"MAP\x00"):
        _reject_or_warn(f"{path}: MAP id: got {raw[208:212]!r}, not an MRC file?", permissive)
    stamp = raw[212:214]
    if stamp in (b"\x44\x44", b"\x44\x41"):
        return _LITTLE
    if stamp == b"\x11\x11":
        return _BIG
    _reject_or_warn(f"{path}: machine stamp: {stamp!r} is unknown", permissive)
    little = 0 <= int(np.frombuffer(raw, _LITTLE, 1)[0]["mode"]) <= 127
    return _LITTLE if little else _BIG


def _pixel_size(fields: Any) -> float | None:
    intervals = int(fields["m"][0]) if int(fields["m"][0]) > 0 else int(fields["n"][0])
    size = float(fields["cella"][0]) / intervals
    return size if math.isfinite(size) and size > 0 else None


def parse_header(path: Path, raw: bytes, file_bytes: int, *, permissive: bool = False) -> MrcHeader:
    """Check the first 1024 bytes of a file against its size, an upper bound when compressed.

    ``permissive`` warns instead of rejecting a wrong MAP id or machine stamp.

    Raises:
        InputError: a field that is impossible or contradicts the size of the file.
    """
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{path}: header: {len(raw)} bytes, an MRC header has {HEADER_BYTES}")
    layout = _byte_order(path, raw, permissive)
    fields = np.frombuffer(raw, layout, 1)[0]
    nx, ny, nz = (int(v) for v in fields["n"])
    if min(nx, ny, nz) <= 0:
        raise InputError(f"{path}: dimensions: must be positive, got nx={nx}, ny={ny}, nz={nz}")
    mode = int(fields["mode"])
    if mode not in MODES:
        supported = ", ".join(str(m) for m in MODES)
        raise InputError(f"{path}: mode: {mode} is not supported; supported modes are {supported}")
    extended = int(fields["nsymbt"])
    if extended < 0 or HEADER_BYTES + extended > file_bytes:
        raise InputError(
            f"{path}: nsymbt: an extended header of {extended} bytes is impossible in a file of "
            f"{file_bytes} bytes"
        )
    axes = tuple(int(v) for v in fields["axes"])
    if sorted(axes) != [1, 2, 3]:
        if any(axes):
            _reject_or_warn(f"{path}: axis order: mapc, mapr, maps are {axes}", permissive)
        axes = (1, 2, 3)
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    stack = ".mrcs" in suffixes[-1:]
    header = MrcHeader(
        path=path,
        shape=(nz, ny, nx),
        mode=mode,
        pixel_size_angstrom=_pixel_size(fields),
        is_stack=stack or (int(fields["ispg"]) == 0 and int(fields["m"][2]) <= 1 < nz),
        data_offset=HEADER_BYTES + extended,
        dtype=np.dtype(MODES[mode]).newbyteorder("<" if layout is _LITTLE else ">"),
        axes=(axes[0], axes[1], axes[2]),
    )
    needed = header.data_offset + header.data_bytes
    if needed > file_bytes:
        raise InputError(
            f"{path}: data: the header ({nx} x {ny} x {nz}, mode {mode}) needs {needed} bytes, "
            f"the file has {file_bytes}; it is truncated or not what it claims"
        )
    return header


@dataclass
class Statistics:
    """Running minimum, maximum, mean and deviation of the values written."""

    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Add a batch of values."""
        wide = values.astype(np.float64, copy=False)
        self.count += wide.size
        self.low = min(self.low, float(wide.min()))
        self.high = max(self.high, float(wide.max()))
        self.total += float(wide.sum())
        self.squares += float((wide * wide).sum())


def header_bytes(
    shape: tuple[int, int, int], mode: int, pixel: float, stack: bool, stats: Statistics
) -> bytes:
    """Return a little-endian header for (nz, ny, nx) elements with these statistics."""
    header = np.zeros((), _LITTLE)
    size = np.array(shape[::-1])
    intervals = np.array([size[0], size[1], 1 if stack else size[2]])
    mean = stats.total / stats.count
    header["n"], header["m"], header["mode"] = size, intervals, mode
    header["cella"], header["cellb"], header["axes"] = intervals * pixel, 90.0, (1, 2, 3)
    header["dmin"], header["dmax"], header["dmean"] = stats.low, stats.high, mean
    header["rms"] = math.sqrt(max(0.0, stats.squares / stats.count - mean * mean))
    header["ispg"] = 0 if stack else 1
    header["nversion"] = 20141
    header["map"], header["machst"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["labels"][0] = b"vitreous".ljust(80)
    return header.tobytes()
