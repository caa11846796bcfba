"""Convert particle tables between programs, and select particles from them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError, UsageError
from vitreous.core.random import stream_seed
from vitreous.data import selection
from vitreous.data.formats import (
    read_particles_document,
    relocated,
    require_table_suffix,
    select_rows,
    write_particles_document,
)
from vitreous.data.joined_table import joined_document
from vitreous.data.particle_table import ParticleTable
from vitreous.data.relion_links import linked, warn_of_relion_gaps
from vitreous.io.cryosparc_jobs import particle_files
from vitreous.io.star import StarDocument
from vitreous.jobs.tables.options import (
    ConvertOptions,
    JoinOptions,
    SelectOptions,
    TableOptions,
)


@dataclass(frozen=True)
class TableResult:
    """A particle table that was written."""

    path: Path  # the file
    count: int  # number of particles in it
    text: str  # a line about it


def convert(options: ConvertOptions) -> TableResult:
    """Convert a particle table to the format of the output's suffix.

    Raises:
        UsageError: the output exists, is an input, or has an unknown suffix.
        InputError: a file cannot be read or written.
        ResourceError: the disk is full.
    """
    _check_output(options, (options.source, *options.passthrough))
    document = _read(options, options.pixel_size_angstrom)
    _write(document, options)
    count = len(document.blocks["particles"])
    where = f"; start RELION in {options.output.absolute().parent}" if options.link else ""
    return TableResult(options.output, count, f"{count} particles in {options.output}{where}")


def select(options: SelectOptions) -> TableResult:
    """Write the particles of a table that meet every condition, in their order.

    Raises:
        UsageError: a condition that makes no sense, or the output exists or is an input.
        InputError: a file cannot be read or written, or no particle meets the conditions.
        ResourceError: the disk is full.
    """
    inputs = [options.source, *options.passthrough]
    lists = [path for path in (options.rows, options.images) if path is not None]
    _check_output(options, [*inputs, *lists])
    conditions = [selection.Condition.parse(text) for text in options.where]
    if options.classes:
        classes = tuple(map(str, options.classes))
        conditions.append(selection.Condition("rlnClassNumber", "in", classes))
    if options.half_set is not None:
        half = (str(options.half_set),)
        conditions.append(selection.Condition("rlnRandomSubset", "==", half))
    document = _read(options)
    table = ParticleTable(document, options.source)
    mask, note = _mask(table, options, conditions)
    kept = np.flatnonzero(mask)
    if not len(kept):
        raise InputError(
            f"{options.source}: none of {len(table)} particles meets the conditions; relax them"
        )
    _write(select_rows(document, kept), options)
    text = f"kept {len(kept)} of {len(table)} particles in {options.output}{note}"
    return TableResult(options.output, len(kept), text)


def join(options: JoinOptions) -> TableResult:
    """Write the particles of several tables as one, each optics group with its own optics.

    Raises:
        UsageError: the output exists, is an input, or has an unknown suffix.
        InputError: a file cannot be read or written.
        ResourceError: the disk is full.
    """
    opened = [particle_files(source) for source in options.sources]
    _check_output(options, [file for file, _ in opened])
    documents = []
    for file, passthrough in opened:
        document = read_particles_document(
            file, passthrough=passthrough, data_root=options.data_root
        )
        documents.append(_relocated(document, file, options))
    document, left_out = joined_document(documents)
    if left_out:
        warnings.warn(
            f"columns that not all tables have were left out: "
            f"{', '.join(f'_{name}' for name in left_out)}",
            stacklevel=2,
        )
    write_particles_document(options.output, document, source=opened[0][0])
    count, groups = (len(document.blocks[name]) for name in ("particles", "optics"))
    text = f"{count} particles in {options.output}; optics groups: {groups}"
    return TableResult(options.output, count, text)


def _mask(
    table: ParticleTable, options: SelectOptions, conditions: Sequence[selection.Condition]
) -> tuple[NDArray[np.bool_], str]:
    """Return the rows to keep, and a remark."""
    mask, note = np.ones(len(table), dtype=np.bool_), ""
    for condition in conditions:
        mask &= condition.mask(table)
    if options.optics_group is not None:
        mask &= selection.in_optics_group(table, options.optics_group)
    if options.micrograph is not None:
        mask &= selection.from_micrograph(table, options.micrograph)
    if options.rows is not None:
        mask &= selection.rows_from_file(options.rows, len(table))
    if options.images is not None:
        document = read_particles_document(options.images, data_root=options.data_root)
        other = ParticleTable(document, options.images)
        mask &= selection.images_of(other, table, options.data_root)
    if options.unique:
        mask = selection.first_of_copies(mask, table, options.data_root)
    if options.min_distance_angstrom is not None:
        mask, unit = selection.apart(mask, table, options.min_distance_angstrom)
        note = f" (coordinates times {unit})" if unit != "Å" else ""
    seed = stream_seed(options.seed, "select")
    mask = selection.thinned(mask, first=options.first, random=options.random, seed=seed)
    return ~mask if options.invert else mask, note


def _check_output(options: TableOptions | JoinOptions, inputs: Sequence[Path]) -> None:
    """Refuse an output that cannot be written or must not be replaced."""
    output = options.output
    require_table_suffix(output)
    for path in inputs:
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path")
        if output.exists() and output.samefile(path):
            raise UsageError(f"{output}: is also an input; write to another file")
    if output.exists() and not (options.overwrite and output.is_file()):
        raise UsageError(f"{output}: exists; give `overwrite`, or write to another file")


def _read(options: TableOptions, pixel_size_angstrom: float | None = None) -> StarDocument:
    return read_particles_document(
        options.source,
        passthrough=options.passthrough,
        pixel_size_angstrom=pixel_size_angstrom,
        data_root=options.data_root,
    )


def _write(document: StarDocument, options: TableOptions) -> None:
    """Write a particle table so that its images are found from where it will lie."""
    source = options.source
    if options.link:
        document = linked(document, source, options.output, data_root=options.data_root)
    else:
        document = _relocated(document, source, options)
    write_particles_document(options.output, document, source=source)
    if options.output.suffix.lower() == ".star" and source.suffix.lower() != ".star":
        warn_of_relion_gaps(document, options.output)


def _relocated(
    document: StarDocument, source: Path, options: TableOptions | JoinOptions
) -> StarDocument:
    """Return a document whose images are found from the folder of the output."""
    folder = options.output.absolute().parent
    moved, missing = relocated(document, source, folder, data_root=options.data_root)
    if missing:
        warnings.warn(
            f"{missing} image stack(s) were not found from {source}; their names are kept as "
            "they are",
            stacklevel=3,
        )
    return moved
