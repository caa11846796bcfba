"""Reading of particle tables of all formats as RELION 3.1 documents, and writing of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError, UsageError
from vitreous.data.cryosparc.tables import from_cryosparc, to_cryosparc
from vitreous.data.relion31 import to_relion31
from vitreous.data.stacks import find_stack, find_stack_or_none, name_from, split_image_names
from vitreous.data.tables import optics_table
from vitreous.data.tomo_particles import is_tomo_particles, tilt_images_document
from vitreous.io.cryosparc import read_cs_with_passthrough, write_cs
from vitreous.io.cryosparc_jobs import read_csg
from vitreous.io.inflate import read_text
from vitreous.io.mrc import read_header
from vitreous.io.mrc_header import MrcHeader
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star

TABLES = (".star", ".cs")
_GROUPS = (".csg",)
STACKS = (".mrcs", ".mrc", ".st")
LISTS = (".txt", ".lst")
_LIST_BYTES = 1 << 26


def read_particles_document(
    path: Path | str,
    *,
    passthrough: Sequence[Path | str] = (),
    pixel_size_angstrom: float | None = None,
    data_root: Path | None = None,
    document: StarDocument | None = None,
) -> StarDocument:
    """Read a particle table of any known format as a RELION 3.1 document.

    For the arguments see :meth:`vitreous.data.particles.Particles.open`. The images of a stack are
    numbered; a list of stacks may have comments after ``#``. Stacks of tables need not exist.

    Raises:
        InputError: the kind of file is unknown, or the file is bad.
        UsageError: ``passthrough`` for another format.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if passthrough and kind != ".cs":
        raise UsageError(f"`passthrough` goes with a .cs file, not with {path}")

    def header_of(stack: str) -> MrcHeader:
        return read_header(find_stack(stack, path, data_root=data_root), warn=False)

    if kind == ".star":
        document = document or read_star(path)
        if is_tomo_particles(document):
            document = tilt_images_document(document, path, lambda one: _count(one, header_of))
        pixel, box = _first_stack(document, path, header_of)
        return to_relion31(
            document,
            path,
            pixel_size_angstrom=pixel_size_angstrom,
            stack_pixel_size_angstrom=pixel,
            box_size=box,
        )
    if kind == ".cs":
        document = from_cryosparc(read_cs_with_passthrough(path, passthrough), path)
    elif kind in _GROUPS:
        document = from_cryosparc(read_csg(path), path)
    elif kind in STACKS:
        header = read_header(path, warn=False)
        document = _numbered([(path.name, header)], path, pixel_size_angstrom)
    elif kind in LISTS:
        stacks = [(name, header_of(name)) for name in _listed(path)]
        document = _numbered(stacks, path, pixel_size_angstrom)
    else:
        known = " ".join((*TABLES, *_GROUPS, *STACKS, *LISTS))
        raise InputError(f"{path}: unknown kind of particle file; known: {known}")
    if pixel_size_angstrom is None:
        return document
    return to_relion31(document, path, pixel_size_angstrom=pixel_size_angstrom)


def write_particles_document(
    path: Path | str, document: StarDocument, *, source: Path | None = None
) -> None:
    """Write a RELION 3.1 document, read from ``source``, as ``.star`` or ``.cs``, atomically.

    Raises:
        UsageError: another suffix.
        InputError: a value that the format cannot hold, or a folder that cannot be written.
        ResourceError: disk full.
    """
    path = Path(path)
    require_table_suffix(path)
    try:
        if path.suffix.lower() == ".star":
            write_star(path, document)
        else:
            write_cs(path, to_cryosparc(document, source or path))
    except ValueError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error


def require_table_suffix(path: Path) -> None:
    """Check that a path ends in .star or .cs, as tables do; UsageError for another suffix."""
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"{path}: tables are written as .star or .cs; change the suffix")


def select_rows(document: StarDocument, rows: NDArray[np.int64]) -> StarDocument:
    """Return the document with these particles only, in this order.

    >>> document = StarDocument({"particles": StarBlock({"a": ["x", "y"]})})
    >>> select_rows(document, np.array([1])).blocks["particles"].columns
    {'a': ['y']}
    """
    block, indices = document.blocks["particles"], rows.tolist()
    if indices == list(range(len(block))):
        return document
    columns = {name: [values[i] for i in indices] for name, values in block.columns.items()}
    return StarDocument({**document.blocks, "particles": replace(block, columns=columns)})


def relocated(
    document: StarDocument, source: Path, folder: Path, *, data_root: Path | None = None
) -> tuple[StarDocument, int]:
    """Rewrite the image names of a document, read from ``source``, for another folder.

    ``data_root`` is the folder that the names are relative to, if not the source's. Returns the
    document, and the number of stacks that were not found and keep their name.
    """
    block = document.blocks["particles"]
    names = block.text("rlnImageName", source)
    split_image_names(names, str(source))
    parts = [name.partition("@") if "@" in name else ("", "", name) for name in names]
    changed: dict[str, str] = {}
    missing = 0
    for stack in dict.fromkeys(stack for _, _, stack in parts):
        if Path(stack).is_absolute():
            continue
        here = find_stack_or_none(stack, source, data_root=data_root)
        there = find_stack_or_none(stack, folder / source.name)
        if here is not None and there is not None and here.resolve() == there.resolve():
            continue
        if here is None:
            missing += 1
        else:
            changed[stack] = name_from(folder, here)
    if not changed:
        return document, missing
    renamed = [f"{number}{at}{changed.get(stack, stack)}" for number, at, stack in parts]
    columns = {**block.columns, "rlnImageName": renamed}
    return StarDocument({**document.blocks, "particles": replace(block, columns=columns)}), missing


def _count(stack: str, header_of: Callable[[str], MrcHeader]) -> int | None:
    """Return the number of images of a stack; None where it is not found."""
    try:
        return header_of(stack).shape[0]
    except InputError:
        return None


def _first_stack(
    document: StarDocument, path: Path, header_of: Callable[[str], MrcHeader]
) -> tuple[float | None, int | None]:
    """Return pixel size and box of the first image's stack, for a table that has none."""
    tables = [block for block in document.blocks.values() if "rlnImageName" in block]
    if len(tables) != 1 or not len(tables[0]):
        return None, None
    optics = document.blocks.get("optics")
    if optics is not None and any("rlnImagePixelSize" in block for block in (optics, tables[0])):
        return None, None
    try:
        _, stacks = split_image_names(tables[0].text("rlnImageName", path)[:1], str(path))
        header = header_of(stacks[0])
    except InputError:
        return None, None
    return header.pixel_size_angstrom, header.shape[-1]


def _listed(path: Path) -> list[str]:
    """Read the stack names of a text file."""
    lines = read_text(path, "expected one stack per line", _LIST_BYTES).splitlines()
    if lines and lines[0].startswith(("#LST", "#LSX")):
        raise InputError(f"{path}: EMAN's list format is not read; list one stack per line")
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not names:
        raise InputError(f"{path}: names no stack; expected one per line")
    for row, name in enumerate(names):
        if not name.isprintable() or Path(name).suffix.lower() not in STACKS:
            raise InputError(
                f"{path}: entry {row + 1}: {name!r:.80} is no stack ({', '.join(STACKS)})"
            )
    return names


def _numbered(
    stacks: Sequence[tuple[str, MrcHeader]], path: Path, pixel_size_angstrom: float | None
) -> StarDocument:
    """Make a document of all images of stacks, one optics group for each pixel size and box."""
    groups: dict[tuple[float | None, int], int] = {}
    names: list[str] = []
    group_of: list[str] = []
    for name, header in stacks:
        size = header.pixel_size_angstrom if pixel_size_angstrom is None else pixel_size_angstrom
        group = groups.setdefault((size, header.shape[-1]), len(groups) + 1)
        names += [f"{i + 1:06d}@{name}" for i in range(header.shape[0])]
        group_of += [str(group)] * header.shape[0]
    columns: dict[str, list[str]] = {}
    sizes = [size for size, _ in groups]
    if all(size is not None for size in sizes):
        columns["rlnImagePixelSize"] = [f"{size:.9g}" for size in sizes]
    elif any(size is not None for size in sizes):
        raise InputError(f"{path}: pixel size: some stacks have none; give `pixel_size_angstrom`")
    columns["rlnImageSize"] = [str(box) for _, box in groups]
    particles = StarBlock({"rlnImageName": names, "rlnOpticsGroup": group_of})
    return StarDocument({"optics": optics_table(len(groups), columns), "particles": particles})
