"""Table of prepared particles: the rows and columns of the input, updated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vitreous.data.aberrations import UNDONE
from vitreous.data.particles import Particles
from vitreous.data.prepare import Geometry
from vitreous.data.tables import pose_columns
from vitreous.io.star import StarBlock, StarDocument, format_column

_MULTIPLIED = ("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped")
_ORIGINS = (("rlnOriginX", "rlnOriginXAngst"), ("rlnOriginY", "rlnOriginYAngst"))


def prepared_document(
    particles: Particles, geometry: Geometry, stack: str, *, phase_flipped: bool = False
) -> StarDocument:
    """Return the RELION 3.1 table of particles that were written to one stack, in order.

    All columns of the input are kept but those of what is undone in the images: magnification, odd
    aberrations, multiplication by the CTF. Names, pixel size and box become those of the new
    stack; old names go to ``rlnImageOriginalName`` unless it exists; ``rlnMagnification`` follows
    the pixel size; origins in pixels become origins in Å; ``phase_flipped`` sets
    ``rlnCtfDataArePhaseFlipped``.
    """
    document = particles.to_star_document()
    old, new = particles.pixel_size_angstrom, geometry.pixel_size_angstrom
    table = dict(document.blocks["particles"].columns)
    table.setdefault("rlnImageOriginalName", list(table["rlnImageName"]))
    table["rlnImageName"] = [f"{i + 1:06d}@{stack}" for i in range(len(particles))]
    for pixels, angstrom in _ORIGINS:
        origin = table.pop(pixels, None)
        if origin is not None and angstrom not in table:
            table[angstrom] = format_column(np.array(origin, dtype=np.float64) * old)
    optics = dict(document.blocks["optics"].columns)
    if particles.pose is not None and any(name in optics or name in table for name in UNDONE):
        shifts = pose_columns(particles.pose)
        table |= {angstrom: shifts[angstrom] for _, angstrom in _ORIGINS}
    for name in (*UNDONE, *_MULTIPLIED):
        optics.pop(name, None)
        table.pop(name, None)
    groups = len(document.blocks["optics"])
    updated = {"rlnImagePixelSize": format_column([new])[0], "rlnImageSize": str(geometry.box_size)}
    if phase_flipped:
        updated["rlnCtfDataArePhaseFlipped"] = "1"
    for name, value in updated.items():
        optics[name] = [value] * groups
        if name in table:
            table[name] = [value] * len(particles)
    for columns in (table, optics):
        if "rlnMagnification" in columns:
            columns["rlnMagnification"] = _magnification(columns, old, new)
    blocks = dict(document.blocks)
    blocks["optics"] = replace(blocks["optics"], columns=optics)
    blocks["particles"] = StarBlock(table)
    return StarDocument(blocks)


def _magnification(columns: Mapping[str, list[str]], old: float, new: float) -> list[str]:
    """Return the column for a new pixel size in Å; by the detector's, where that is known."""
    magnification = np.array(columns["rlnMagnification"], dtype=np.float64) * old / new
    if "rlnDetectorPixelSize" in columns:
        magnification = 1e4 * np.array(columns["rlnDetectorPixelSize"], dtype=np.float64) / new
    return format_column(magnification)
