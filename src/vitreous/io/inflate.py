"""Bounded reading of plain and gzipped files."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vitreous.core.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
GZIP_MAX_RATIO = 1100
"""Deflate cannot expand by more than about 1032."""
_CHUNK = 1 << 22
_MAX_TEXT = 1 << 28


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; InputError if that, or reading in the block, fails."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened or read."""
    absent = isinstance(error, FileNotFoundError)
    reason = "no such file" if absent else f"cannot be read ({error.strerror})"
    return InputError(f"{path}: {reason}; check the path")


class Inflater:
    """Reader of a gzip stream that never decompresses more than asked for."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._engine = zlib.decompressobj(wbits=31)
        self._compressed = b""

    def read(self, limit: int) -> bytes:
        """Read up to ``limit`` bytes; fewer only at the end of the data."""
        parts, missing = [], limit
        while missing > 0 and not (self._engine.eof and not self._next_member()):
            if not self._compressed:
                self._compressed = self._stream.read(1 << 16)
                if not self._compressed:
                    raise InputError(f"{self._path}: gzip data end early; the file is truncated")
            try:
                piece = self._engine.decompress(self._compressed, min(missing, _CHUNK))
            except zlib.error as error:
                raise InputError(f"{self._path}: gzip data are damaged ({error})") from error
            self._compressed = self._engine.unconsumed_tail or self._engine.unused_data
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def _next_member(self) -> bool:
        """Start the next gzip member if there is one; zeros after the last are ignored."""
        self._compressed = self._compressed or self._stream.read(1 << 16)
        if not self._compressed.startswith(GZIP_MAGIC):
            while self._compressed and not self._compressed.strip(b"\0"):
                self._compressed = self._stream.read(1 << 16)
            if self._compressed:
                raise InputError(f"{self._path}: bytes after the gzip data; the file is damaged")
            return False
        self._engine = zlib.decompressobj(wbits=31)
        return True


def read_bounded(path: Path | str, limit: int) -> bytes:
    """Read a plain or gzipped file of at most ``limit`` bytes.

    Raises:
        InputError: unreadable, truncated, damaged or too large.
    """
    path = Path(path)
    with open_binary(path) as stream:
        packed = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        if packed:
            content = Inflater(path, stream).read(limit + 1)
        else:  # read() allocates all bytes that it is asked for
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(min(limit, size) + 1)
    if len(content) > limit:
        raise InputError(f"{path}: content: more than {limit} bytes; not a file of this kind?")
    return content


def decoded(raw: bytes) -> str:
    r"""Return the text of UTF-8, or of UTF-16 with its byte order mark, with lines that end in LF.

    Marks of Windows and line ends of Windows (CR LF) and old Macs (CR) are taken off.

    Raises:
        UnicodeDecodeError: no such text.

    >>> decoded(b"\xef\xbb\xbfone\r\ntwo\rthree")
    'one\ntwo\nthree'
    """
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = raw.decode("utf-16" if wide else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_text(path: Path, hint: str, limit: int = _MAX_TEXT) -> str:
    """Read a text file, plain or gzipped, of at most ``limit`` bytes; see :func:`decoded`.

    Raises:
        InputError: unreadable, too large or no text; ``hint`` says what was expected.
    """
    with contextlib.suppress(UnicodeDecodeError):
        text = decoded(read_bounded(path, limit))
        if "\x00" not in text:
            return text
    raise InputError(f"{path}: not a text file; {hint}")
