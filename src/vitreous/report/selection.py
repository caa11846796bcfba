"""Selection of particles in the page: compact coordinates, classes and rows of all of them.

The page's script finds the particles within a lasso and writes their rows as a STAR file; the page
asks for no other file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.io.star import StarBlock, StarDocument, format_star, quoted_column
from vitreous.report.figures import Array
from vitreous.report.surface import packed

ROW_COLUMNS = ("rlnImageName", "rlnOpticsGroup", "rlnMicrographName", "rlnClassNumber")
MAX_ALL_COLUMNS = 1_000_000  # characters of the page for the rows; with more only ROW_COLUMNS
_LEFT_OUT = "vitreousLatent"


def selection_data(
    table: StarDocument, label: NDArray[np.integer], plane: Array | None
) -> dict[str, Any]:
    """Return what the page's script reads of the particles.

    Coordinates have 16 bits. Rows have all columns of the table but latents, or those of
    ``ROW_COLUMNS`` where all would take more than ``MAX_ALL_COLUMNS`` characters.

    Args:
        table: with ``data_particles``, ``n`` rows.
        label: ``(n,)`` class from 1 on, 0 for none.
        plane: ``(n, 2)``, the embedding; None without.

    Raises:
        ValueError: numbers of rows that differ.
    """
    particles = table.blocks["particles"]
    counts = {len(particles), len(label), len(label if plane is None else plane)}
    if len(counts) > 1:
        raise ValueError(f"rows, classes and points differ in number: {sorted(counts)}")
    names = [name for name in particles.columns if not name.startswith(_LEFT_OUT)]
    first = [name for name in ROW_COLUMNS if name in names]
    names = first + [name for name in names if name not in first]
    columns: list[list[tuple[str, str]]] = []
    characters, complete = 0, True
    for i, name in enumerate(names):
        column = _packed_column(name, particles.columns[name])
        characters += sum(len(text) for text, _ in column)
        if i >= len(first) and characters > MAX_ALL_COLUMNS:
            names, columns, complete = first, columns[: len(first)], False
            break
        columns.append(column)
    empty = StarBlock({name: [] for name in names})
    others = {name: block for name, block in table.blocks.items() if name != "particles"}
    head = format_star(StarDocument({**others, "particles": empty}))
    return {
        "label": _packed_numbers(label),
        "plane": None if plane is None else [_packed_axis(axis) for axis in plane.T],
        "head": head.rstrip("\n") + "\n",
        "complete": complete,
        "columns": [part for column in columns for part in column],
    }


def _packed_column(name: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """Pack a column as texts and what follows each; image numbers apart from their stacks."""
    cells = quoted_column(values)
    if name == "rlnImageName" and all("@" in cell for cell in cells):
        numbers, stacks = zip(*(cell.split("@", 1) for cell in cells), strict=True)
        return [(_packed_text(numbers), "@"), (_packed_text(stacks), " ")]
    return [(_packed_text(cells), " ")]


def _packed_text(cells: Iterable[str]) -> str:
    return packed("\n".join(cells).encode())


def _packed_axis(values: Array) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 65535 or 1.0
    return {"low": low, "step": step, "values": _packed_numbers(np.round((values - low) / step))}


def _packed_numbers(values: NDArray[Any]) -> str:
    """Pack numbers of 16 bits, all high bytes before the low ones."""
    return packed(values.astype(">u2").view(np.uint8).reshape(-1, 2).T.tobytes())
