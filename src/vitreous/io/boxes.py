"""Where particles were picked: EMAN ``.box`` files and STAR files with coordinates.

An EMAN ``.box`` line is ``x y width height`` in pixels of the micrograph, with optional further
columns that say nothing about the place; x and y are those of the box's first corner (lowest column
and row as stored). STAR files hold the centres, ``rlnCoordinateX`` and ``rlnCoordinateY``.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.star import read_star

_COLUMNS = ("rlnCoordinateX", "rlnCoordinateY")


def parse_boxes(text: str, path: Path | str = "box text") -> NDArray[np.float64]:
    """Centres and sizes ``(n, 4)`` (x, y, width, height; pixels) of an EMAN ``.box`` text.

    Blank lines are skipped. RELION's rule for the centre: corner plus half the size.

    Args:
        text: its lines.
        path: for messages.

    Raises:
        InputError: a line that is not four numbers or more, or a size not positive; line named.

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
    """Centres ``(n, 2)`` (x, y) in pixels of the micrograph, from a ``.box`` or ``.star`` file.

    An empty ``.box`` file, or a table without rows, is a micrograph without particles.

    Raises:
        InputError: unreadable or malformed, with the line or row; or another kind of file.
    """
    path = Path(path)
    if path.suffix == ".star":
        blocks = read_star(path).blocks
        having = [name for name, block in blocks.items() if all(c in block for c in _COLUMNS)]
        if len(having) != 1:
            raise InputError(
                f"{path}: columns _rlnCoordinateX, _rlnCoordinateY: found in {len(having)} blocks, "
                "expected one; is it a file of picks?"
            )
        block = blocks[having[0]]
        return np.stack([block.numbers(name, path) for name in _COLUMNS], axis=-1)
    if path.suffix != ".box":
        raise InputError(f"{path}: coordinates are read from .box and .star files")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; is it an EMAN .box file?") from error
    return parse_boxes(text, path)[:, :2]


def find_coordinates(folder: Path, micrograph: str) -> Path | None:
    """The file of picks of a micrograph: ``STEM.box``, ``STEM.star`` or ``STEM_NAME.star``.

    RELION's pickers write the last kind (``STEM_autopick.star``); NAME begins with a letter.

    Args:
        folder: where the files are.
        micrograph: its name; only the last part without suffix counts.

    Raises:
        InputError: several ``STEM_NAME.star``.
    """
    stem = Path(micrograph).stem
    for name in (f"{stem}.box", f"{stem}.star"):
        if (folder / name).is_file():
            return folder / name
    prefix = f"{stem}_"
    named = (path for path in folder.glob("*.star") if path.name.startswith(prefix))
    found = sorted(path for path in named if path.stem[len(prefix) :].isidentifier())
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise InputError(f"{folder}: picks of {stem}: found {names}; keep one of them there")
    return found[0] if found else None
