"""Stack writer that can be interrupted and continued.

Images go to ``NAME.part``. ``NAME.journal`` holds the number of images that are safe on disk and
notes of the caller. A killed run leaves both files; the next run truncates the images that the
journal does not count and appends. Only a complete stack gets its name.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_write_text, explained, sync_folder
from vitreous.io.mrc import encode
from vitreous.io.mrc_header import HEADER_BYTES, MODES, Statistics, header_bytes

PART, JOURNAL = ".part", ".journal"


class GrowingStack:
    """Context that appends images; :meth:`save` regularly and :meth:`finish` at the end.

    ``mode`` is 2 (float32) or 12 (float16); ``resume`` continues from the journal, if there is one.

    Raises (on entering):
        InputError: the part or journal is damaged, or the folder cannot be written.
        ResourceError: disk full.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "a.mrcs"
    >>> with GrowingStack(path, 8, 1.5) as stack:
    ...     stack.append(np.ones((2, 8, 8)))
    ...     stack.save({"next": 2})
    ...     stack.append(np.zeros((2, 8, 8)))  # never saved: lost
    >>> with GrowingStack(path, 8, 1.5, resume=True) as stack:
    ...     len(stack), stack.notes
    ...     stack.append(np.zeros((1, 8, 8)))
    ...     stack.finish({"next": 3})
    (2, {'next': 2})
    >>> sorted(item.name for item in Path(folder.name).iterdir())
    ['a.mrcs', 'a.mrcs.journal']
    """

    def __init__(
        self,
        path: Path | str,
        box_size: int,
        pixel_size_angstrom: float,
        *,
        mode: int = 2,
        resume: bool = False,
    ) -> None:
        encode(np.empty(0), mode)
        self.path = Path(path)
        self.notes: dict[str, Any] = {}
        beside = (self.path.with_name(self.path.name + suffix) for suffix in (PART, JOURNAL))
        self._part, self._journal = beside
        self._box, self._pixel, self._mode = box_size, float(pixel_size_angstrom), mode
        self._image_bytes = box_size**2 * np.dtype(MODES[mode]).itemsize
        self._statistics, self._images, self._resume = Statistics(), 0, resume
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        with explained(self._part):
            if self._resume and self._journal.is_file():
                self._reopen()
            else:
                self.forget()
                self._stream = self._part.open("w+b")
                self._stream.write(bytes(HEADER_BYTES))
        return self

    def __exit__(self, *error: object) -> None:
        """Close the stack; part and journal stay for the next run."""
        if self._stream is not None:
            with suppress(OSError):  # the last save has reported a full disk
                self._stream.close()

    def __len__(self) -> int:
        return self._images

    @property
    def is_whole(self) -> bool:
        """Whether the stack is complete under its name."""
        return self._stream is None

    def append(self, images: Any) -> None:
        """Append a batch ``(b, n, n)``, array or CPU tensor.

        Raises:
            ValueError: other shapes, or float16 overflow.
            ResourceError: disk full.
        """
        batch = np.asarray(images)
        if batch.shape[1:] != (self._box, self._box):
            raise ValueError(f"expected images of {self._box} px, got {batch.shape}")
        if not len(batch):
            return
        encoded = encode(batch, self._mode)
        with explained(self._part):
            self._open_stream().write(encoded.data)
        self._statistics.add(encoded)
        self._images += len(batch)

    def save(self, notes: dict[str, Any]) -> None:
        """Sync all images to disk and store notes for a later run (anything JSON can hold).

        Raises:
            ResourceError: disk full.
        """
        stream = self._open_stream()
        with explained(self._part):
            stream.flush()
            os.fsync(stream.fileno())
        self.notes = notes
        record = {"images": self._images, "statistics": asdict(self._statistics), "notes": notes}
        atomic_write_text(self._journal, json.dumps(record))

    def finish(self, notes: dict[str, Any]) -> None:
        """Write the header and rename the part; the journal stays until :meth:`forget`.

        Raises:
            ValueError: no image was appended.
            ResourceError: disk full.
        """
        if not self._images:
            raise ValueError(f"no image was appended to {self.path}")
        self.save(notes)
        shape = (self._images, self._box, self._box)
        stream = self._open_stream()
        with explained(self._part):
            stream.seek(0)
            stream.write(header_bytes(shape, self._mode, self._pixel, True, self._statistics))
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            os.replace(self._part, self.path)
        sync_folder(self.path.parent)
        self._stream = None

    def forget(self) -> None:
        """Remove the journal, and the part of an incomplete stack."""
        self._part.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _open_stream(self) -> BinaryIO:
        if self._stream is None:
            raise ValueError(f"{self.path}: written inside the with block, before finish()")
        return self._stream

    def _reopen(self) -> None:
        try:
            record = json.loads(self._journal.read_text("utf-8"))
            self._images, self.notes = int(record["images"]), dict(record["notes"])
            self._statistics = Statistics(**record["statistics"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{self._journal}: damaged; start again with `overwrite`") from error
        safe = HEADER_BYTES + self._images * self._image_bytes
        if not self._part.is_file() and _size(self.path) == safe:
            return
        if self._part.is_symlink():
            raise InputError(f"{self._part}: a link; start again with `overwrite`")
        if _size(self._part) < safe:
            raise InputError(
                f"{self._part}: {_size(self._part)} bytes, but the journal counts {safe}; start "
                "again with `overwrite`"
            )
        self._stream = self._part.open("r+b")
        self._stream.truncate(safe)
        self._stream.seek(safe)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
