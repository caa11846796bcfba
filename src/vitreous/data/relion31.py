"""Tables of RELION 3.0 and unfinished ones of 3.1, brought to 3.1: optics groups, origins in Å."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vitreous.data.tables import Numbers, ParticleTable
from vitreous.io.star import StarBlock, StarDocument, format_column

_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_GROUP, _SIZE = "rlnOpticsGroup", "rlnImagePixelSize"


def to_relion31(
    document: StarDocument,
    path: Path,
    *,
    apix: float | None = None,
    stack_apix: float | None = None,
    box_size: int | None = None,
) -> StarDocument:
    """A document with ``data_optics`` and ``data_particles``; what is there already is kept.

    Args:
        document: of RELION 3.0 (one block with ``rlnImageName``) or later.
        path: the file, for messages.
        apix: pixel size in Å instead of the table's.
        stack_apix: Å, for a table that has none.
        box_size: of the images, for a table without optics block.

    Raises:
        InputError: no particles, or numbers that are none where they are needed; the row is named.
    """
    table = ParticleTable(document, path, apix=apix)
    sizes = _pixel_sizes(table, stack_apix)
    added: dict[str, list[str]] = {}
    dropped: set[str] = set()
    order = list(document.blocks)
    if table.optics is None:
        optics, added[_GROUP] = _made_optics(table, sizes, box_size)
        order.insert(0, "optics")
    else:
        optics = table.optics
        if _GROUP not in table.particles:
            added[_GROUP] = optics.text(_GROUP) * len(table)
    if apix is not None:
        text = format_column([apix])[0]
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
    return StarDocument({_name(key, table.name): blocks[key] for key in order})


def _name(block: str, particles: str) -> str:
    return "particles" if block == particles else block


def _pixel_sizes(table: ParticleTable, stack_apix: float | None) -> Numbers | None:
    """Pixel size of each particle in Å, from the best source."""
    if table.apix is not None:
        return np.full(len(table), table.apix)
    found = table.checked_pixel_sizes()
    if found is not None:
        return found[1]
    return None if stack_apix is None else np.full(len(table), stack_apix)


def _made_optics(
    table: ParticleTable, sizes: Numbers | None, box_size: int | None
) -> tuple[StarBlock, list[str]]:
    """A group for each set of equal optics, and the group of each particle."""
    names = [name for name in _OPTICS if name in table]
    values = {name: table.numbers(name) for name in names}
    if sizes is not None:
        values[_SIZE] = sizes
    keys = np.stack([np.zeros(len(table)), *values.values()], axis=-1)
    _, first, member = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    numbers = range(1, len(first) + 1)
    columns = {
        _GROUP: [str(number) for number in numbers],
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        **{name: format_column(column[first]) for name, column in values.items()},
    }
    if box_size is not None:
        columns["rlnImageSize"] = [str(box_size)] * len(first)
    columns["rlnImageDimensionality"] = ["2"] * len(first)
    return StarBlock(columns), [str(number) for number in (member.reshape(-1) + 1).tolist()]
