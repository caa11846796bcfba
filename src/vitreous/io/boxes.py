"""Coordinates of picked particles: EMAN ``.box`` files and STAR files.

A line of an EMAN ``.box`` file is ``x y width height`` in pixels of the micrograph, with optional
further columns; x and y are the corner of lowest column and row. STAR files hold the centres,
``rlnCoordinateX`` and ``rlnCoordinateY``.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.inflate import read_text
from vitreous.io.star import read_star

_COLUMNS = ("rlnCoordinateX", "rlnCoordinateY")


def parse_boxes(text: str, path: Path | str = "box text") -> NDArray[np.float64]:
    """Return centres and sizes ``(n, 4)`` (x, y, width, height; pixels) of EMAN ``.box`` text.

    The centre is the corner plus half the size, as in RELION. Blank lines are skipped.

    Raises:
        InputError: a line without four numbers, or a size not positive; the text names the line.

    >>> parse_boxes("10 20 8 8 -3\\n").tolist()
    [[14.0, 24.0, 8.0, 8.0]]
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            x, y, width, height = (float(field) for field in fields[:4])
        except ValueError as error:
            raise InputError(
                f"{path}: line {number}: expected x, y, width and height, got {line.strip()[:40]!r}"
            ) from error
        if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) <= 0:
            raise InputError(
                f"{path}: line {number}: width and height must be positive, and all finite, got "
                f"{line.strip()[:40]!r}"
            )
        rows.append((x + width / 2, y + height / 2, width, height))
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def read_coordinates(path: Path | str) -> NDArray[np.float64]:
    """Read centres ``(n, 2)`` (x, y), in pixels, from ``.box`` or ``.star``; none from empty ones.

    Raises:
        InputError: unreadable, malformed (the text names the line or row), or of another kind.
    """
    path = Path(path)
    if path.suffix == ".star":
        blocks = read_star(path).blocks
        tables = [block for block in blocks.values() if all(c in block for c in _COLUMNS)]
        if len(tables) != 1:
            raise InputError(
                f"{path}: columns _rlnCoordinateX, _rlnCoordinateY: found in {len(tables)} blocks, "
                "expected one; is it a file of picks?"
            )
        return np.stack([tables[0].numbers(name, path) for name in _COLUMNS], axis=-1)
    if path.suffix != ".box":
        raise InputError(f"{path}: coordinates are read from .box and .star files")
    return parse_boxes(read_text(path, "is it an EMAN .box file?"), path)[:, :2]


def find_coordinates(folder: Path, micrograph: str) -> Path | None:
    """Find the picks of a micrograph: ``STEM.box``, ``STEM.star`` or ``STEM_NAME.star``, else None.

    RELION's pickers write the last kind (``STEM_autopick.star``); NAME begins with a letter. Only
    the stem of the micrograph's name counts.

    Raises:
        InputError: several ``STEM_NAME.star``.
    """
    stem = Path(micrograph).stem
    for name in (f"{stem}.box", f"{stem}.star"):
        if (folder / name).is_file():
            return folder / name
    prefix = f"{stem}_"
    stars = (path for path in folder.glob("*.star") if path.name.startswith(prefix))
    files = sorted(path for path in stars if path.stem[len(prefix) :].isidentifier())
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:3])
        raise InputError(f"{folder}: picks of {stem}: found {names}; keep one of them there")
    return files[0] if files else None
