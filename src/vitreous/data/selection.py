"""Selection of particles by the columns of their table."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from vitreous.core.errors import InputError, UsageError
from vitreous.data.copies import copies, joined_labels
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import find_stack_or_none, open_stacks, split_image_names
from vitreous.io.inflate import read_text

Mask = NDArray[np.bool_]

_COMPARE = {"==": eq, "!=": ne, "<=": le, ">=": ge, "<": lt, ">": gt}
_CONDITION = re.compile(r"\s*_?([^\s=!<>]+)\s*(==|!=|<=|>=|<|>)\s*(.*?)\s*")
_MEMBER = re.compile(r"\s*_?([^\s=!<>]+)\s+in\s+(.*?)\s*")
_ROWS_BYTES = 1 << 28
_MICROGRAPH_PIXEL = (
    *("rlnMicrographPixelSize", "cs/location/micrograph_psize_A"),
    *("rlnMicrographOriginalPixelSize", "rlnImagePixelSize"),
)


@dataclass(frozen=True)
class Condition:
    """Comparison of a column of the particle or optics table with a value, or with ``in`` several.

    RELION's ``rln`` may be left out of the column's name.

    Both sides are compared as numbers where they are numbers, else as text.
    """

    column: str
    operator: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse ``COLUMN OP VALUE`` or ``COLUMN in A,B,C``; UsageError for any other text.

        >>> Condition.parse("rlnDefocusU <= 2e4")
        Condition(column='rlnDefocusU', operator='<=', values=('2e4',))
        >>> Condition.parse("_rlnClassNumber in 1,3").values
        ('1', '3')
        """
        if match := _MEMBER.fullmatch(text):
            column, listed = match.groups()
            return cls(column, "in", tuple(value.strip() for value in listed.split(",")))
        if match := _CONDITION.fullmatch(text):
            column, operator, value = match.groups()
            if value:
                return cls(column, operator, (value,))
        raise UsageError(
            f"`where` {text!r}: expected 'COLUMN OP VALUE' with == != < <= > >=, or "
            "'COLUMN in A,B,C'"
        )

    def mask(self, table: ParticleTable) -> Mask:
        """Return the mask ``(n,)`` of the particles that meet the condition.

        Raises:
            InputError: no such column, or text is compared by order.
        """
        if self.column not in table and f"rln{self.column}" in table:
            return replace(self, column=f"rln{self.column}").mask(table)
        if self.column not in table:
            raise InputError(
                f"{table.path}: column _{self.column}: missing; `vitreous info` lists the columns"
            )
        numbers = table.numbers_or_none(self.column)
        wanted = [_number(value) for value in self.values]
        numeric = numbers is not None and None not in wanted
        if not numeric and self.operator not in ("==", "!=", "in"):
            raise InputError(
                f"{table.path}: column _{self.column}: {self.operator} {self.values[0]} needs "
                "numbers on both sides; compare text with == or !="
            )
        text = [] if numeric else table.joined_text(self.column)
        column: Any = numbers if numeric else np.array(text, dtype=object)
        values: list[Any] = list(wanted if numeric else self.values)
        if self.operator == "in":
            return np.isin(column, values) if numeric else np.array([v in values for v in column])
        return np.asarray(_COMPARE[self.operator](column, values[0]), dtype=np.bool_)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def in_optics_group(table: ParticleTable, group: str) -> Mask:
    """Return the mask ``(n,)`` of the particles of an optics group, given by number or name.

    Raises:
        InputError: no such group; the text lists the existing ones.
    """
    numbers = table.joined_text("rlnOpticsGroup")
    named = "rlnOpticsGroupName" in table
    names = table.joined_text("rlnOpticsGroupName") if named else numbers
    mask = np.array([group in pair for pair in zip(numbers, names, strict=True)])
    if not mask.any():
        raise InputError(
            f"{table.path}: `optics_group` {group}: no particle is in it; there are "
            f"{', '.join(sorted(set(numbers)))}"
        )
    return mask


def from_micrograph(table: ParticleTable, pattern: str) -> Mask:
    """Return the mask of particles whose micrograph's name, or its last part, fits a pattern.

    Raises:
        InputError: the table names no micrographs.
    """
    names = table.text("rlnMicrographName")
    fits = {
        name: fnmatchcase(name, pattern) or fnmatchcase(name.rpartition("/")[2], pattern)
        for name in set(names)
    }
    return np.array([fits[name] for name in names])


def rows_from_file(path: Path, count: int) -> Mask:
    """Read the mask of rows from a list of 1-based numbers, separated by blanks, commas or lines.

    Raises:
        InputError: an entry that is no row number of a table of ``count`` rows.
    """
    mask = np.zeros(count, dtype=np.bool_)
    words = read_text(path, "expected row numbers", _ROWS_BYTES).replace(",", " ").split()
    for entry, word in enumerate(words, start=1):
        row = word.isascii() and word.isdecimal() and len(word) < 12
        if not (row and 1 <= int(word) <= count):
            raise InputError(
                f"{path}: entry {entry}: {word!r:.40} is no row from 1 to {count}; rows are "
                "counted from 1"
            )
        mask[int(word) - 1] = True
    return mask


def images_of(other: ParticleTable, table: ParticleTable, data_root: Path | None = None) -> Mask:
    """Return the mask of the rows whose image another table names too; it warns of others.

    Stacks are compared as files where both tables' are found, else by their names.
    """
    numbers, stacks = split_image_names(table.text("rlnImageName"), str(table.path))
    files = {
        name: find_stack_or_none(name, table.path, data_root=data_root)
        for name in dict.fromkeys(stacks)
    }
    other_numbers, other_stacks = split_image_names(other.text("rlnImageName"), str(other.path))
    same: dict[str, str] = {}  # name of a stack in the other table -> its key in this one
    for name in dict.fromkeys(other_stacks):
        file = find_stack_or_none(name, other.path, data_root=data_root)
        if file is None or files.get(name, file) is None:
            file = files.get(name)
        same[name] = str(file.resolve() if file else name)
    keys = {name: str(file.resolve() if file else name) for name, file in files.items()}
    own = list(zip(numbers.tolist(), (keys[name] for name in stacks), strict=True))
    wanted = set(zip(other_numbers.tolist(), (same[name] for name in other_stacks), strict=True))
    missing = len(wanted.difference(own))
    if missing:
        warnings.warn(
            f"{table.path}: has no rows of {missing} of the {len(wanted)} images that {other.path} "
            "names",
            stacklevel=2,
        )
    return np.array([one in wanted for one in own])


def thinned(mask: Mask, *, first: int | None, random: int | None, seed: int) -> Mask:
    """Limit a mask ``(n,)`` to ``random`` rows drawn at random, then to the ``first`` rows.

    >>> thinned(np.array([True, False, True, True]), first=2, random=None, seed=0).tolist()
    [True, False, True, False]
    """
    rows = np.flatnonzero(mask)
    if random is not None:
        generator = np.random.default_rng(seed)
        rows = generator.permutation(rows)[:random]
    if first is not None:
        rows = np.sort(rows)[:first]
    chosen = np.zeros_like(mask)
    chosen[rows] = True
    return chosen


def first_of_copies(mask: Mask, table: ParticleTable, data_root: Path | None = None) -> Mask:
    """Keep of the rows of a mask the first of each copies: of one image name, or equal pixels.

    Where stacks are not found, only names are compared, with a warning.
    """
    names = table.text("rlnImageName")
    try:
        source = open_stacks(names, table.path, data_root=data_root)
        labels = copies(source, np.arange(len(names))).numpy()
    except InputError as error:
        warnings.warn(f"{error}; only image names are compared, not pixels", stacklevel=2)
        labels = joined_labels(names).numpy()
    rows = np.flatnonzero(mask)
    chosen = np.zeros_like(mask)
    chosen[rows[np.unique(labels[rows], return_index=True)[1]]] = True
    return chosen


def apart(mask: Mask, table: ParticleTable, distance_angstrom: float) -> tuple[Mask, str]:
    """Keep rows in their order that lie no nearer to a kept one of the same micrograph.

    Positions are ``rlnCoordinateX`` and ``Y`` less the origins, or of particles of tomograms
    ``rlnCenteredCoordinateXAngst``, ``Y``, ``Z``; all tilts of a particle are kept or left out.

    Returns:
        the mask, and the column whose pixel size the coordinates were multiplied by.

    Raises:
        InputError: columns are missing.
    """
    positions, places, used = _positions(table)
    particles = table.tilt_particles() or [str(row) for row in range(len(table))]
    first = np.unique(np.array(particles), return_index=True)[1]
    kept: set[str] = set()
    rows_at: dict[str, list[int]] = {}
    for row in np.sort(first).tolist():
        if mask[row]:
            rows_at.setdefault(places[row], []).append(row)
    for rows in rows_at.values():
        near = KDTree(positions[rows]).query_ball_point(positions[rows], distance_angstrom)
        taken: set[int] = set()
        for i, neighbours in enumerate(near):
            if not taken.intersection(j for j in neighbours if j < i):
                taken.add(i)
                kept.add(particles[rows[i]])
    return mask & np.array([name in kept for name in particles]), used


def _positions(table: ParticleTable) -> tuple[NDArray[np.float64], list[str], str]:
    """Return positions in Å, ``(n, 2 or 3)``, the micrograph of each, and the pixel size used."""
    centred = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
    if all(name in table for name in centred):
        return np.stack([table.numbers(n) for n in centred], -1), table.text("rlnTomoName"), "Å"
    size = next((name for name in _MICROGRAPH_PIXEL if name in table), None)
    names = [f"rlnCoordinate{axis}" for axis in "XY"]
    missing = [f"_{n}" for n in (*names, "rlnMicrographName") if n not in table]
    if size is None or missing:
        missing = missing or [f"_{_MICROGRAPH_PIXEL[0]}"]
        raise InputError(
            f"{table.path}: {', '.join(missing)}: missing; `min_distance_angstrom` needs positions"
        )
    positions = []
    for axis, name in zip("XY", names, strict=True):
        origin = f"rlnOrigin{axis}Angst"
        shift = table.numbers(origin) if origin in table else 0.0
        positions.append(table.numbers(name) * table.numbers(size) - shift)
    return np.stack(positions, -1), table.text("rlnMicrographName"), f"_{size}"
