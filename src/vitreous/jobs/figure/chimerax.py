"""Script that opens the maps of a run in ChimeraX and colours the surface by local resolution."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitreous.core.errors import UsageError
from vitreous.report.surface import PALETTE


def quoted(path: str) -> str:
    """Return a path as ChimeraX reads it.

    Raises:
        UsageError: it has a quotation mark, a backslash or a line break.

    >>> quoted("../map.mrc"), quoted("../my run/map.mrc")
    ('../map.mrc', '"../my run/map.mrc"')
    """
    if any(sign in path for sign in '"\\\n\r'):
        raise UsageError(f"{path!r}: ChimeraX reads no such path; write to `output` elsewhere")
    plain = all(sign.isalnum() or sign in "._-/" for sign in path)
    return path if plain else f'"{path}"'


def maps_script(
    folder: Path,
    output: Path,
    levels: dict[str, float],
    hidden: Sequence[str],
    local: tuple[str, tuple[float, float]] | None,
) -> str:
    """Return the script.

    Args:
        folder: of the maps.
        output: folder of the script; paths are relative to it, as ChimeraX reads them.
        levels: maps to show, to the density of their surfaces; more than one stand in tiles.
        hidden: maps to open and not to show.
        local: map of the local resolution, also hidden, and the ends of its colours in Å.
    """
    to_folder = os.path.relpath(folder.resolve(), output.resolve())
    names = [*levels, *hidden, *([local[0]] if local else [])]
    number = {name: k for k, name in enumerate(names, 1)}
    lines = [
        "# Open this file in a new session of ChimeraX: its maps become models #1, #2, ...",
        *(f"open {quoted(os.path.join(to_folder, name))}" for name in names),
        "set bgColor white",
        "lighting soft",
    ]
    for name, level in levels.items():
        lines.append(f"volume #{number[name]} style surface step 1 level {level:.6g}")
        lines.append(f"surface dust #{number[name]} size 10")
    lines += [f"hide #{number[name]} models" for name in names[len(levels) :]]
    if local:
        low, high = local[1]
        shades = ":".join(
            f"{low + (high - low) * k / (len(PALETTE) - 1):.3f},#{red:02x}{green:02x}{blue:02x}"
            for k, (red, green, blue) in enumerate(PALETTE)
        )
        lines.append(f"color sample #1 map #{number[local[0]]} palette {shades} key true")
    lines += ["tile"] if len(levels) > 1 else []
    lines += ["view", "# save surface.png width 2000 supersample 3"]
    return "\n".join(lines) + "\n"
