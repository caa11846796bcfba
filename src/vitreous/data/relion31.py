"""Convert RELION 3.0 tables, and incomplete 3.1 ones, to 3.1: optics groups, origins in Å."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vitreous.data.particle_table import ParticleTable
from vitreous.data.tables import Numbers, optics_groups, optics_table
from vitreous.io.star import StarBlock, StarDocument, format_column

_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_GROUP, _SIZE = "rlnOpticsGroup", "rlnImagePixelSize"


def to_relion31(
    document: StarDocument,
    path: Path,
    *,
    pixel_size_angstrom: float | None = None,
    stack_pixel_size_angstrom: float | None = None,
    box_size: int | None = None,
) -> StarDocument:
    """Return a document with ``data_optics`` and ``data_particles``; existing columns are kept.

    The document is of RELION 3.0 (one block with ``rlnImageName``) or later.
    ``pixel_size_angstrom`` overrides the table's; ``stack_pixel_size_angstrom`` is used where it
    has none. ``box_size`` is the edge of the images in pixels, for a table without optics block.

    Raises:
        InputError: no particles, or a value that is no number where one is needed; the text names
            the row.
    """
    table = ParticleTable(document, path, pixel_size_angstrom=pixel_size_angstrom)
    sizes = _pixel_sizes(table, stack_pixel_size_angstrom)
    added: dict[str, list[str]] = {}
    dropped: set[str] = set()
    order = list(document.blocks)
    if table.optics is None:
        optics, added[_GROUP] = _optics_groups(table, sizes, box_size)
        order.insert(0, "optics")
    else:
        optics = table.optics
        if _GROUP not in table.particles:
            added[_GROUP] = optics.text(_GROUP) * len(table)
    if pixel_size_angstrom is not None:
        text = format_column([pixel_size_angstrom])[0]
        optics = replace(optics, columns={**optics.columns, _SIZE: [text] * len(optics)})
    for axis in "XY":
        pixels, angstrom = f"rlnOrigin{axis}", f"rlnOrigin{axis}Angst"
        if pixels in table.particles and angstrom not in table.particles and sizes is not None:
            added[angstrom] = format_column(table.numbers(pixels) * sizes)
            dropped.add(pixels)
    particles = table.particles
    if added:
        kept = {name: text for name, text in particles.columns.items() if name not in dropped}
        particles = replace(particles, columns={**kept, **added})
    blocks = {**document.blocks, "optics": optics, table.name: particles}
    return StarDocument({"particles" if key == table.name else key: blocks[key] for key in order})


def _pixel_sizes(table: ParticleTable, stack_pixel_size_angstrom: float | None) -> Numbers | None:
    """Pixel size of each particle in Å: the override, else the table's, else the stack's."""
    size = table.pixel_size_override_angstrom
    if size is None:
        stated = table.pixel_sizes()
        if stated is not None:
            return stated[1]
        size = stack_pixel_size_angstrom
    return None if size is None else np.full(len(table), size)


def _optics_groups(
    table: ParticleTable, sizes: Numbers | None, box_size: int | None
) -> tuple[StarBlock, list[str]]:
    """Return one optics group for each set of equal optics, and the group of each particle."""
    names = [name for name in _OPTICS if name in table]
    values = {name: table.numbers(name) for name in names}
    if sizes is not None:
        values[_SIZE] = sizes
    first, group_of = optics_groups([np.zeros(len(table)), *values.values()])
    columns = {name: format_column(column[first]) for name, column in values.items()}
    if box_size is not None:
        columns["rlnImageSize"] = [str(box_size)] * len(first)
    return optics_table(len(first), columns), group_of
