"""Reading and writing of the 1024-byte MRC2014 header, checked against the size of the file.

Format: Cheng et al., J. Struct. Biol. 192 (2015) 146; modes 0, 1, 2, 6, 12 and 101, both byte
orders. Bytes (mode 0) are signed, except where IMOD's flags or the header's maximum say otherwise.
A wrong MAP id, machine stamp or axis order is a remark, not an error, where size and mode fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.bounds import PIXEL_SIZE_ANGSTROM

HEADER_BYTES = 1024
PACKED = 101
MODES: dict[int, str] = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", PACKED: "u1"}
"""Supported modes and the numpy type of their elements; mode 101 packs two 4-bit values in one."""
_IMOD_STAMP, _SIGNED_BYTES, _PACKED_BYTES = 1146047817, 1, 16

_FIELDS = (
    "n 3i4, mode i4, nstart 3i4, m 3i4, cella 3f4, cellb 3f4, axes 3i4, dmin f4, dmax f4, "
    "dmean f4, ispg i4, nsymbt i4, extra1 V8, exttyp S4, nversion i4, extra2 V40, imod 2i4, "
    "extra3 V36, origin 3f4, map S4, machst 4u1, rms f4, nlabl i4, labels 10S80"
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
        remarks: what is unusual about the file, each without its path.
        identity: size in bytes and time of change of the file, in ns, by which a change is seen.
    """

    path: Path
    shape: tuple[int, int, int]
    mode: int
    pixel_size_angstrom: float | None
    is_stack: bool
    data_offset: int
    dtype: np.dtype[Any]
    axes: tuple[int, int, int]
    remarks: tuple[str, ...] = ()
    identity: tuple[int, int] = (0, 0)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of the elements in the file: of mode 101 half as many, rounded up, in a row."""
        nz, ny, nx = self.shape
        return nz, ny, -(-nx // 2) if self.mode == PACKED else nx

    @property
    def data_bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.stored_shape) * self.dtype.itemsize

    def unpacked(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the values of whole rows ``(..., nx)`` of stored elements."""
        if self.mode != PACKED:
            return stored
        pairs = np.stack([stored & 15, stored >> 4], axis=-1)  # the low half comes first
        return pairs.reshape(*stored.shape[:-1], -1)[..., : self.shape[-1]]

    def pixel_size_or(self, override_angstrom: float | None) -> float:
        """Return the override, else the header's pixel size, in Å; InputError without either."""
        if override_angstrom is not None:
            return override_angstrom
        if self.pixel_size_angstrom is None:
            raise InputError(
                f"{self.path}: pixel size: none in the header; give `pixel_size_angstrom`"
            )
        return self.pixel_size_angstrom


def _fits(fields: Any, file_bytes: int) -> bool:
    """Whether dimensions, mode and extended header fit a file of this size."""
    nx, ny, nz = (int(v) for v in fields["n"])
    mode, extended = int(fields["mode"]), int(fields["nsymbt"])
    if min(nx, ny, nz) <= 0 or mode not in MODES or extended < 0:
        return False
    row = -(-nx // 2) if mode == PACKED else nx
    return HEADER_BYTES + extended + nz * ny * row * np.dtype(MODES[mode]).itemsize <= file_bytes


def _layout(path: Path, raw: bytes, file_bytes: int) -> tuple[np.dtype[Any], list[str]]:
    """Return the header's layout in its byte order, and remarks on its identity.

    The machine stamp gives the byte order unless only the other one fits the file.
    """
    identity, stamp = raw[208:212], raw[212:214]
    stated = {b"\x44\x44": _LITTLE, b"\x44\x41": _LITTLE, b"\x11\x11": _BIG}.get(stamp)
    fitting = [
        layout for layout in (_LITTLE, _BIG) if _fits(np.frombuffer(raw, layout, 1)[0], file_bytes)
    ]
    unusual = []
    if identity not in (b"MAP ", b"MAP\x00"):
        unusual.append(f"MAP id {identity!r}")
        if not fitting:
            raise InputError(
                f"{path}: MAP id: got {identity!r}, and neither size nor mode fit; is it an MRC "
                "file, and complete?"
            )
    if stated is None or (fitting and stated not in fitting):
        unusual.append(f"machine stamp {raw[212:216]!r}")
    layout = stated if stated in fitting or not fitting else fitting[0]
    if layout is None:
        layout = _LITTLE if 0 <= int(np.frombuffer(raw, _LITTLE, 1)[0]["mode"]) <= 127 else _BIG
    if not unusual:
        return layout, []
    order = "little" if layout is _LITTLE else "big"
    return layout, [f"{' and '.join(unusual)}: not MRC's, read as {order}-endian, which fits"]


def _element_type(path: Path, fields: Any) -> tuple[str, list[str]]:
    """Return the numpy type of the elements without byte order, and remarks on it.

    IMOD marks its files and says there whether bytes are signed; a file of others whose header
    has a maximum above 127 cannot hold signed ones.
    """
    mode, (stamp, flags) = int(fields["mode"]), (int(v) for v in fields["imod"])
    if mode != 0:
        return MODES[mode], []
    if stamp == _IMOD_STAMP:
        if flags & _PACKED_BYTES:
            raise InputError(
                f"{path}: imodFlags: {flags} packs two 4-bit values in a byte of mode 0; convert "
                "it with IMOD's newstack -mode 1"
            )
        return ("i1" if flags & _SIGNED_BYTES else "u1"), []
    low, high = float(fields["dmin"]), float(fields["dmax"])
    if low >= 0 and 127 < high <= 255:
        return "u1", [f"values to {high:g} by its header: bytes read as unsigned"]
    return "i1", []


def _pixel_size(fields: Any) -> float | None:
    intervals = int(fields["m"][0]) if int(fields["m"][0]) > 0 else int(fields["n"][0])
    size = float(fields["cella"][0]) / intervals
    low, high = PIXEL_SIZE_ANGSTROM
    return size if low <= size <= high else None


def parse_header(path: Path, raw: bytes, file_bytes: int) -> MrcHeader:
    """Check the first 1024 bytes of a file against its size, an upper bound when compressed.

    Raises:
        InputError: a field that is impossible or contradicts the size of the file.
    """
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{path}: header: {len(raw)} bytes, an MRC header has {HEADER_BYTES}")
    layout, remarks = _layout(path, raw, file_bytes)
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
            remarks.append(f"axis order: mapc, mapr, maps are {axes}; read as x, y, z")
        axes = (1, 2, 3)
    kind, more = _element_type(path, fields)
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    stack = ".mrcs" in suffixes[-1:]
    header = MrcHeader(
        path=path,
        shape=(nz, ny, nx),
        mode=mode,
        pixel_size_angstrom=_pixel_size(fields),
        is_stack=stack or (int(fields["ispg"]) == 0 and int(fields["m"][2]) <= 1 < nz),
        data_offset=HEADER_BYTES + extended,
        dtype=np.dtype(kind).newbyteorder("<" if layout is _LITTLE else ">"),
        axes=(axes[0], axes[1], axes[2]),
        remarks=(*remarks, *more),
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

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return self.total / self.count

    @property
    def deviation(self) -> float:
        """Standard deviation of all values."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean * self.mean))


def header_bytes(
    shape: tuple[int, int, int], mode: int, pixel: float, stack: bool, stats: Statistics
) -> bytes:
    """Return a little-endian header for (nz, ny, nx) elements with these statistics."""
    header = np.zeros((), _LITTLE)
    size = np.array(shape[::-1])
    intervals = np.array([size[0], size[1], 1 if stack else size[2]])
    header["n"], header["m"], header["mode"] = size, intervals, mode
    header["cella"], header["cellb"], header["axes"] = intervals * pixel, 90.0, (1, 2, 3)
    header["dmin"], header["dmax"], header["dmean"] = stats.low, stats.high, stats.mean
    header["rms"] = stats.deviation
    header["ispg"] = 0 if stack else 1
    header["nversion"] = 20141
    header["map"], header["machst"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["labels"][0] = b"vitreous".ljust(80)
    return header.tobytes()
