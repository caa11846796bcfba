"""MRC2014 maps and stacks; headers are checked before memory is allocated."""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_file
from vitreous.io.inflate import GZIP_MAGIC, GZIP_MAX_RATIO, Inflater, open_binary, unreadable
from vitreous.io.mrc_header import (
    HEADER_BYTES,
    MODES,
    MrcHeader,
    Statistics,
    header_bytes,
    parse_header,
)

_WRITABLE = (0, 2, 12)


def read_header(path: Path | str, *, warn: bool = True) -> MrcHeader:
    """Read and check the header of an uncompressed file; ``warn`` of what is unusual about it.

    Raises:
        InputError: unreadable, compressed or inconsistent.
    """
    path = Path(path)
    with open_binary(path) as stream:
        raw = stream.read(HEADER_BYTES)
        state = os.fstat(stream.fileno())
    if raw[:2] == GZIP_MAGIC:
        raise InputError(f"{path}: compressed files cannot be mapped; gunzip it first")
    size = state.st_size
    header = replace(parse_header(path, raw, size), identity=_identity(state))
    surplus = size - header.data_offset - header.data_bytes
    if surplus:
        remark = f"{surplus} bytes after the data are ignored"
        header = replace(header, remarks=(*header.remarks, remark))
    if warn:
        warn_of_remarks([header])
    return header


def warn_of_remarks(headers: Sequence[MrcHeader]) -> None:
    """Warn of what is unusual about files, once for all files of which the same is true."""
    paths: dict[str, list[Path]] = {}
    for header in headers:
        for remark in header.remarks:
            paths.setdefault(remark, []).append(header.path)
    for remark, of in paths.items():
        others = f", and {len(of) - 1} more files" if len(of) > 1 else ""
        warnings.warn(f"{of[0]}{others}: {remark}", stacklevel=3)


def _read_gzip(path: Path, stream: BinaryIO) -> tuple[NDArray[Any], MrcHeader]:
    """Decompress at most as many bytes as the header announces and the file can hold."""
    bound = os.fstat(stream.fileno()).st_size * GZIP_MAX_RATIO
    inflater = Inflater(path, stream)
    header = parse_header(path, inflater.read(HEADER_BYTES), bound)
    inflater.read(header.data_offset - HEADER_BYTES)
    payload = inflater.read(header.data_bytes)
    if len(payload) < header.data_bytes:
        raise InputError(
            f"{path}: data: the header needs {header.data_bytes} bytes of data, the file "
            f"decompresses to {len(payload)}"
        )
    if inflater.read(1):
        raise InputError(f"{path}: data go on past the {header.data_bytes} bytes of its header")
    warn_of_remarks([header])
    return np.frombuffer(payload, header.dtype), header


def read_mrc(path: Path | str) -> tuple[NDArray[Any], MrcHeader]:
    """Read a whole map or stack into memory, ``(z, y, x)``, in native byte order.

    A ``.mrc``, ``.map`` or ``.mrcs`` file, any of them gzipped (recognised by content), gives the
    array in the element type of its mode, and the header.

    Raises:
        InputError: unreadable, truncated, inconsistent; the text names field and remedy.
    """
    path = Path(path)
    with open_binary(path) as stream:
        if stream.read(2) == GZIP_MAGIC:
            stream.seek(0)
            data, header = _read_gzip(path, stream)
        else:
            header = read_header(path)
            stream.seek(header.data_offset)
            data = np.fromfile(stream, header.dtype, math.prod(header.stored_shape))
    data = header.unpacked(data.reshape(header.stored_shape))
    if header.axes != (1, 2, 3):
        stored = header.axes[::-1]  # sections, rows, columns
        data = data.transpose([stored.index(axis) for axis in (3, 2, 1)])
    return np.ascontiguousarray(data, dtype=header.dtype.newbyteorder("=")), header


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_size, state.st_mtime_ns


class MrcStack:
    """Images of one uncompressed file, read on demand; for ``warn`` see :func:`read_header`.

    ``shape`` is (images, ny, nx), ``pixel_size_angstrom`` that of the header, or None. The file is
    not mapped: one that is cut while it is read gives an error instead of ending the program.

    Raises:
        InputError: unreadable, compressed, truncated or inconsistent; or, when images are read, it
            has changed since it was opened.
    """

    def __init__(self, path: Path | str, *, warn: bool = True) -> None:
        self.header = read_header(path, warn=warn)
        if self.header.axes != (1, 2, 3):
            raise InputError(f"{path}: axis order {self.header.axes}: a stack must be x, y, image")
        try:
            self._descriptor = os.open(self.header.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(self.header.path, error) from error
        weakref.finalize(self, os.close, self._descriptor)
        self.shape, self.pixel_size_angstrom = self.header.shape, self.header.pixel_size_angstrom

    def __len__(self) -> int:
        return self.header.shape[0]

    def read(
        self, indices: Sequence[int] | NDArray[np.integer[Any]] | slice
    ) -> NDArray[np.float32]:
        """Read images, float32 ``(b, ny, nx)``, by 0-based index; ValueError for one not there."""
        if isinstance(indices, slice):
            indices = np.arange(len(self))[indices]
        index = np.asarray(indices, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise ValueError(
                f"{self.header.path} holds {len(self)} images; asked for "
                f"{index.min()} to {index.max()}"
            )
        images = np.empty((len(index), *self.shape[1:]), np.float32)
        for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) != 1) + 1):
            if len(run):
                images[run] = self._rows(int(index[run[0]]), len(run), slice(None))
        return images

    def read_region(
        self, index: int | NDArray[np.int64], rows: slice, columns: slice
    ) -> NDArray[np.float32]:
        """Read a part of one image, or of several, float32."""
        if isinstance(index, (int, np.integer)):
            return self._rows(int(index), 1, rows)[0][:, columns]
        return np.stack([self._rows(int(i), 1, rows)[0][:, columns] for i in index])

    def _rows(self, first: int, count: int, rows: slice) -> NDArray[np.float32]:
        """Read successive images, or some rows of one, float32 ``(count, rows, nx)``."""
        header = self.header
        _, ny, width = header.stored_shape
        start, stop, _ = rows.indices(ny)
        stored = np.empty((count, stop - start, width), header.dtype)
        place = header.data_offset + (first * ny + start) * width * header.dtype.itemsize
        if _identity(os.fstat(self._descriptor)) != header.identity:
            raise InputError(f"{header.path}: changed while it was read; start again")
        missing = memoryview(stored.reshape(-1).view(np.uint8).data)
        while missing:
            done = os.preadv(self._descriptor, [missing], place)
            if not done:
                raise InputError(f"{header.path}: cut while it was read; start again")
            missing, place = missing[done:], place + done
        return header.unpacked(stored).astype(np.float32)


def encode(array: NDArray[Any], mode: int) -> NDArray[Any]:
    """Convert to the little-endian element type of mode 0, 2 or 12.

    Raises:
        ValueError: another mode, or values that the mode cannot hold.
    """
    if mode not in _WRITABLE:
        raise ValueError(f"mode must be one of {_WRITABLE}, got {mode}")
    if mode == 12 and array.size and float(np.abs(array).max()) > 65504.0:
        raise ValueError(f"values up to {np.abs(array).max():g} overflow float16; use mode 2")
    encoded = np.ascontiguousarray(array, dtype=np.dtype("<" + MODES[mode]))
    if mode == 0 and not np.array_equal(encoded, array):
        raise ValueError("values that are not whole numbers from -128 to 127; use mode 2")
    return encoded


class MrcStackWriter:
    """Context that writes images batch by batch; the stack appears at the end of the block.

    ``mode`` is 2 (float32) or 12 (float16).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MrcStackWriter(Path(folder) / "a.mrcs", 1.5) as writer:
    ...         writer.append(np.zeros((2, 8, 8)))
    ...         writer.append(np.ones((1, 8, 8)))
    ...     len(MrcStack(Path(folder) / "a.mrcs"))
    3
    """

    def __init__(self, path: Path | str, pixel_size_angstrom: float, *, mode: int = 2) -> None:
        _check_pixel_size(pixel_size_angstrom)
        encode(np.empty(0), mode)
        self._path, self._pixel, self._mode = Path(path), float(pixel_size_angstrom), mode
        self._target = atomic_file(self._path)
        self._stream: BinaryIO | None = None
        self._image_shape: tuple[int, ...] | None = None
        self._statistics = Statistics()
        self._images = 0

    def __enter__(self) -> Self:
        self._stream = self._target.__enter__()
        self._stream.write(bytes(HEADER_BYTES))
        return self

    def append(self, images: Any) -> None:
        """Append a batch ``(b, y, x)`` or one image ``(y, x)``, array or CPU tensor.

        Raises:
            ValueError: outside the ``with`` block, or image sizes differ.
        """
        batch = np.asarray(images)
        batch = batch[None] if batch.ndim == 2 else batch
        if self._stream is None:
            raise ValueError("append works inside the with block of the writer")
        if batch.ndim != 3 or (self._image_shape or batch.shape[1:]) != batch.shape[1:]:
            raise ValueError(f"expected images of {self._image_shape}, got {batch.shape}")
        if not len(batch):
            return
        self._image_shape = batch.shape[1:]
        encoded = encode(batch, self._mode)
        self._stream.write(encoded.data)  # tofile would not raise on a full disk
        self._statistics.add(encoded)
        self._images += len(batch)

    def __exit__(self, *error: Any) -> None:
        stream, self._stream = self._stream, None
        if error[0] is None and stream is not None:
            try:
                self._write_header(stream)
            except BaseException as failure:
                self._target.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._target.__exit__(*error)

    def _write_header(self, stream: BinaryIO) -> None:
        if self._image_shape is None:
            raise ValueError(f"no image was appended to {self._path}")
        shape = (self._images, self._image_shape[0], self._image_shape[1])
        stream.seek(0)
        stream.write(header_bytes(shape, self._mode, self._pixel, True, self._statistics))


def _check_pixel_size(pixel_size_angstrom: float) -> None:
    if not (math.isfinite(pixel_size_angstrom) and pixel_size_angstrom > 0):
        raise ValueError(f"pixel size must be positive and finite, got {pixel_size_angstrom}")


def write_mrc(
    path: Path | str,
    array: Any,
    pixel_size_angstrom: float,
    *,
    is_stack: bool = False,
    mode: int = 2,
) -> None:
    """Write a map (ispg 1) or, if ``is_stack``, a stack (ispg 0), little-endian, atomically.

    An array ``(z, y, x)``, or one image ``(y, x)``, written as a stack of one. The pixel size in Å
    is stored as ``cella = n * pixel size``. ``mode`` is 2 (float32), 12 (float16) or 0 (bytes:
    masks).

    Raises:
        ValueError: wrong shape, mode or pixel size, or values that the mode cannot hold.
        ResourceError: disk full.
        InputError: the folder is missing or not writable.
    """
    data = np.asarray(array)
    if data.ndim == 2:
        data, is_stack = data[None], True
    if data.ndim != 3 or not data.size:
        raise ValueError(f"expected a non-empty (z, y, x) array, got shape {data.shape}")
    _check_pixel_size(pixel_size_angstrom)
    encoded = encode(data, mode)
    statistics = Statistics()
    statistics.add(encoded)
    shape = (data.shape[0], data.shape[1], data.shape[2])
    with atomic_file(path) as stream:
        stream.write(header_bytes(shape, mode, float(pixel_size_angstrom), is_stack, statistics))
        stream.write(encoded.data)
