"""Micrographs of a particle table: files, pixel size and coordinates of the particles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.io.boxes import find_coordinates, read_coordinates
from vitreous.io.mrc_header import MrcHeader
from vitreous.io.star import StarBlock, StarDocument

_NAME = "rlnMicrographName"
_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")


@dataclass(frozen=True)
class PickedMicrograph:
    """A micrograph, with the rows of its particles in the table.

    ``centres (m, 2)`` are x and y in pixels of everything picked; may be more than ``rows``.
    """

    name: str
    path: Path
    rows: tuple[int, ...]
    centres: NDArray[np.float64]


def picked_micrographs(
    table: StarBlock,
    star: Path,
    folder: Path,
    *,
    coordinates: Path | None = None,
    skip_missing: bool = False,
) -> list[PickedMicrograph]:
    """Find the micrographs of a particle table in a folder, in order of appearance.

    Args:
        table: rows of particles.
        star: file of the table, for messages.
        folder: folder of the micrographs; names are searched below it in full, then by their
            last part.
        coordinates: folder of ``.box`` or ``.star`` files of picks, used beside the table's own.
        skip_missing: leave out micrographs without a file, with a warning.

    Raises:
        InputError: no micrograph names, files or coordinates; the text names the first missing.
    """
    names = table.text(_NAME, star)
    has_own = all(column in table for column in _COORDINATES)
    if not has_own and coordinates is None:
        raise InputError(
            f"{star}: columns _rlnCoordinateX, _rlnCoordinateY: missing; name the folder of .box "
            "or .star files of picks with `coordinates`"
        )
    own = np.empty((len(names), 0))
    if has_own:
        own = np.stack([table.numbers(column, star) for column in _COORDINATES], axis=-1)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    micrographs, missing = [], []
    for name, members in rows.items():
        path = next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)
        if path is None:
            missing.append(name)
            continue
        picks = [own[members]] if has_own else []
        picks += _picks(coordinates, name, required=not has_own)
        micrographs.append(PickedMicrograph(name, path, tuple(members), np.concatenate(picks)))
    _report_missing(missing, len(rows), star, folder, skip_missing)
    return micrographs


def _picks(coordinates: Path | None, name: str, *, required: bool) -> list[NDArray[np.float64]]:
    if coordinates is None:
        return []
    path = find_coordinates(coordinates, name)
    if path is not None:
        return [read_coordinates(path)]
    if required:
        stem = Path(name).stem
        raise InputError(
            f"{coordinates}: picks of micrograph {name!r}: no {stem}.box, {stem}.star or "
            f"{stem}_NAME.star; add the file, or take the micrograph out of the table"
        )
    return []


def _report_missing(
    missing: Sequence[str], count: int, star: Path, folder: Path, skip_missing: bool
) -> None:
    if not missing:
        return
    text = f"{star}: column _{_NAME}: {len(missing)} of {count} micrographs, {missing[0]!r} first"
    if len(missing) == count or not skip_missing:
        remedy = "name their folder with `micrographs`"
        if len(missing) < count:
            remedy += ", or leave them out with `skip_missing`"
        raise InputError(f"{text}, are not in {folder}; {remedy}")
    warnings.warn(f"{text}, are not in {folder} and are left out", stacklevel=3)


def micrograph_pixel_size(
    document: StarDocument, header: MrcHeader, override_angstrom: float | None
) -> float:
    """Return the pixel size of the micrographs in Å: the override, else the table's or header's.

    Raises:
        InputError: none of them has it, or the table has several.
    """
    if override_angstrom is not None:
        return override_angstrom
    blocks = [document.blocks[name] for name in ("optics", "particles") if name in document.blocks]
    for name in _PIXEL_SIZES:
        for block in blocks:
            if name not in block:
                continue
            sizes = block.numbers(name)
            if not sizes.min() > 0 or sizes.max() > 1.001 * sizes.min():
                raise InputError(
                    f"column _{name}: {sizes.min():g} to {sizes.max():g} Å; give the one pixel "
                    "size of the micrographs with `micrograph_pixel_size_angstrom`"
                )
            size, stated = float(sizes[0]), header.pixel_size_angstrom
            if stated is not None and abs(stated - size) > 0.01 * size:
                warnings.warn(
                    f"pixel size {size:g} Å (_{name}) is used; {header.path} says {stated:g} Å",
                    stacklevel=2,
                )
            return size
    if header.pixel_size_angstrom is None:
        raise InputError(
            f"{header.path}: pixel size: none in the header; give it with "
            "`micrograph_pixel_size_angstrom`"
        )
    return header.pixel_size_angstrom
