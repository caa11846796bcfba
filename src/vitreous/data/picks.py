"""Micrographs of a particle table: their files, their pixel size, and where particles are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.data.particles import Particles
from vitreous.data.stacks import find_stack
from vitreous.io.boxes import find_coordinates, read_coordinates
from vitreous.io.mrc import MrcHeader
from vitreous.io.star import StarDocument

_NAME = "rlnMicrographName"
_COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")


@dataclass(frozen=True)
class PickedMicrograph:
    """A micrograph and its particles.

    Args:
        name: as in the particle table.
        path: its file.
        rows: places of its particles among the particles.
        centres: ``(m, 2)`` x and y of everything picked in it, pixels; may be more than ``rows``.
    """

    name: str
    path: Path
    rows: tuple[int, ...]
    centres: NDArray[np.float64]


def picked_micrographs(
    particles: Particles,
    star: Path,
    folder: Path,
    *,
    coordinates: Path | None = None,
    allow_outside_root: bool = False,
    skip_missing: bool = False,
) -> list[PickedMicrograph]:
    """The micrographs of a table, in order of appearance.

    Args:
        particles: of the table.
        star: the table, for messages.
        folder: of the micrographs; names are looked for below it whole, then by their last part.
        coordinates: folder of ``.box`` or ``.star`` files of picks, used beside the table's own.
        allow_outside_root: accept names that lead out of the folder.
        skip_missing: leave out micrographs without a file, with a warning.

    Raises:
        InputError: no micrograph names, files or coordinates; the first one missing is named.
    """
    table = particles.to_star_document().blocks["particles"]
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
    found, missing = [], []
    for name, places in rows.items():
        path = _find(name, star, folder, allow_outside_root)
        if path is None:
            missing.append(name)
            continue
        picks = [own[places]] if has_own else []
        picks += _picks(coordinates, name, required=not has_own)
        found.append(PickedMicrograph(name, path, tuple(places), np.concatenate(picks)))
    _report_missing(missing, len(rows), star, folder, skip_missing)
    return found


def _find(name: str, star: Path, folder: Path, allow_outside_root: bool) -> Path | None:
    if not (folder / name).is_file():
        name = Path(name).name
        if not (folder / name).is_file():
            return None
    return find_stack(name, star, data_root=folder, allow_outside_root=allow_outside_root)


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


def micrograph_pixel_size(document: StarDocument, header: MrcHeader, apix: float | None) -> float:
    """Pixel size of a micrograph in Å: the given one, else the table's, else the file's.

    Args:
        document: the particles' table.
        header: of a micrograph.
        apix: given by hand.

    Raises:
        InputError: none of them has it, or the table has several.
    """
    if apix is not None:
        return apix
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
            size, held = float(sizes[0]), header.pixel_size_angstrom
            if held is not None and abs(held - size) > 0.01 * size:
                warnings.warn(
                    f"pixel size {size:g} Å (_{name}) is used; {header.path} says {held:g} Å",
                    stacklevel=2,
                )
            return size
    if header.pixel_size_angstrom is None:
        raise InputError(
            f"{header.path}: pixel size: none in the header; give it with "
            "`micrograph_pixel_size_angstrom`"
        )
    return header.pixel_size_angstrom
