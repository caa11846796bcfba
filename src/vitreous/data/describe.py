"""Describe a file: what it is, and the numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.data.copies import joined_labels, split_labels
from vitreous.data.cryosparc.tables import from_cryosparc
from vitreous.data.formats import read_particles_document
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import open_stacks
from vitreous.data.tables import ANGLES
from vitreous.data.tomo_particles import is_tomo_particles
from vitreous.io.atoms import read_atoms
from vitreous.io.cryosparc import read_cs_with_passthrough
from vitreous.io.cryosparc_jobs import particle_files, read_csg
from vitreous.io.ctffind import read_ctffind
from vitreous.io.mrc import MrcStack, read_mrc
from vitreous.io.mrc_header import Statistics
from vitreous.io.star import StarBlock, StarDocument, read_star

_CHUNK_VALUES = 1 << 24
_RANGES = (
    ("rlnDefocusU", "defocus U", "Å"),
    ("rlnDefocusV", "defocus V", "Å"),
    ("rlnVoltage", "voltage", "kV"),
    ("rlnOriginXAngst", "origin x", "Å"),
    ("rlnOriginYAngst", "origin y", "Å"),
)


def describe(file: Path) -> Iterator[tuple[str, str]]:
    """Yield label and value of each fact about a file: kind, sizes, pixel size, statistics.

    The file is a map, stack, STAR, .cs or .csg table, CTFFIND4 result or atomic model, or the
    folder of a cryoSPARC job.

    Raises:
        InputError: no such file, an unknown kind, or a damaged file.
    """
    file, passthrough = particle_files(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file; check the path")
    name = file.name.lower().removesuffix(".gz")
    if name.endswith((".mrc", ".mrcs", ".map", ".st", ".rec")):
        yield from _mrc(file)
    elif name.endswith(".star"):
        yield from _star(file)
    elif name.endswith((".cs", ".csg")):
        yield from _cs(file, passthrough)
    elif name.endswith((".cif", ".pdb", ".ent", ".mmcif")):
        yield from _atoms(file)
    elif name.endswith(".txt"):
        yield from _ctffind(file)
    else:
        raise InputError(
            f"{file}: unknown kind of file; known: .mrc .mrcs .map .st .star .cs .txt .cif .pdb"
        )


def _mrc(file: Path) -> Iterator[tuple[str, str]]:
    if file.name.lower().endswith(".gz"):
        data, header = read_mrc(file)
        read: Callable[[slice], NDArray[Any]] = data.__getitem__
    else:
        stack = MrcStack(file)
        header, read = stack.header, stack.read
    nz, ny, nx = header.shape
    images = header.is_stack
    yield "kind", "stack of images" if images else "map"
    yield "size", f"{nz} images of {nx} x {ny}" if images else f"{nx} x {ny} x {nz}"
    pixel = header.pixel_size_angstrom
    yield "pixel size", "not in the header" if pixel is None else f"{pixel:.5g} Å"
    yield "mode", f"{header.mode} ({header.dtype.name})"
    yield from _statistics(read, nz, max(1, _CHUNK_VALUES // (ny * nx)))


def _statistics(
    read: Callable[[slice], NDArray[Any]], length: int, step: int
) -> Iterator[tuple[str, str]]:
    """Yield range, mean and deviation of the finite values, read a few sections at a time."""
    found, bad = Statistics(), 0
    for start in range(0, length, step):
        part = read(slice(start, start + step))
        values = np.abs(part) if np.iscomplexobj(part) else part.astype(np.float64)
        finite = values[np.isfinite(values)]
        bad += values.size - finite.size
        if finite.size:
            found.add(finite)
    if found.count:
        yield (
            "values",
            f"{found.low:.5g} to {found.high:.5g}, mean {found.mean:.5g}, "
            f"deviation {found.deviation:.5g}",
        )
    if bad:
        yield "bad values", f"{bad} are NaN or infinite"


def _star(file: Path) -> Iterator[tuple[str, str]]:
    document = read_star(file)
    yield "kind", "STAR table"
    for name, block in document.blocks.items():
        rows = f"{len(block)} row{'s' * (len(block) != 1)}" if block.is_loop else "pairs"
        yield "block", f"data_{name}: {rows}, columns {', '.join(block.columns)}"
    if is_tomo_particles(document):
        try:
            document = read_particles_document(file)
        except InputError as error:
            yield "images", f"cannot be used: {error}"
            return
    for block in document.blocks.values():
        if block.is_loop and len(block):
            yield from _ranges(file, block)
    if any("rlnImageName" in block for block in document.blocks.values()):
        yield from _images(file, document)


def _cs(file: Path, passthrough: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    group = file.suffix.lower() == ".csg"
    table = read_csg(file) if group else read_cs_with_passthrough(file, passthrough)
    yield "kind", "cryoSPARC table"
    yield "rows", f"{len(table)}, fields {', '.join(table.fields)}"
    if "blob/path" not in table.fields:
        yield "particles", "none (a passthrough file?)"
        return
    document = from_cryosparc(table, file)
    particles, optics = document.blocks["particles"], document.blocks["optics"]
    yield from _ranges(file, particles)
    yield from _ranges(file, optics)
    yield from _images(file, document)


def _images(file: Path, document: StarDocument) -> Iterator[tuple[str, str]]:
    """Yield what a particle table says of its images, and whether their stacks are there."""
    try:
        table = ParticleTable(document, file)
        tilts = table.tilt_particles()
        if tilts is not None:
            yield "tilt series", f"{len(tilts)} images of {len(set(tilts))} particles"
        yield "half sets", _half_sets(table, tilts)
        stated = table.stated_contrast()
        yield "contrast", f"protein {stated}" if stated else "not stated; `vitreous check` tests it"
        for name, done in (("CtfPremultiplied", "the CTF"), ("PhaseFlipped", "its sign")):
            if table.flagged(f"rlnCtfDataAre{name}").any():
                yield "multiplied by", f"{done}; undone where the images are used"
        sizes = table.pixel_sizes()
        values = [] if sizes is None else np.unique(sizes[1]).tolist()
        yield "pixel size", ", ".join(f"{one:.5g} Å" for one in values) or "not in the table"
        source = open_stacks(table.particles.text("rlnImageName"), file)
        boxes = np.unique(source.box_sizes).tolist()
        yield "box", ", ".join(f"{box} px" for box in boxes)
        yield "stacks", f"{len(source.headers)}, all found"
        table.check_box_sizes(source.box_sizes)
    except InputError as error:
        yield "images", f"cannot be used: {error}"


def _half_sets(table: ParticleTable, tilts: list[str] | None) -> str:
    half = torch.from_numpy(table.half_sets())
    first, second = (int((half == number).sum()) for number in (1, 2))
    if not first + second:
        return "none; made when they are needed"
    labels = joined_labels(table.text("rlnImageName"), tilts or range(len(half)))
    split = len(split_labels(half, labels))
    kind = "copies of an image" if tilts is None else "tilts of a particle"
    return f"{first} and {second} images" + (f"; {split} times {kind} are in both" if split else "")


def _ranges(file: Path, block: StarBlock) -> Iterator[tuple[str, str]]:
    if "rlnImageName" in block:
        yield "particles", f"{len(block)}"
        known = all(name in block for name in ANGLES)
        yield "orientations", "given" if known else "none"
    if "rlnMicrographName" in block:
        yield "micrographs", f"{len(set(block.text('rlnMicrographName')))}"
    for column, label, unit in _RANGES:
        if column in block:
            values = block.numbers(column, file)
            low, high = f"{values.min():g}", f"{values.max():g}"
            yield label, f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _ctffind(file: Path) -> Iterator[tuple[str, str]]:
    table = read_ctffind(file)
    yield "kind", "CTFFIND4 results"
    yield "micrographs", f"{len(table.micrograph_names)}"
    for label, values in (("defocus U", table.defocus_u_angstrom), ("V", table.defocus_v_angstrom)):
        yield label, f"{float(values.min()):.0f} to {float(values.max()):.0f} Å"
    phase = table.phase_shift_deg
    yield "phase shift", f"{float(phase.min()):g} to {float(phase.max()):g} degrees"


def _atoms(file: Path) -> Iterator[tuple[str, str]]:
    positions, masses = read_atoms(file)
    extent = positions.max(axis=0) - positions.min(axis=0)
    yield "kind", "atomic model"
    yield "atoms", f"{len(positions)} (no waters, no hydrogens)"
    yield "mass", f"{masses.sum() / 1000:.0f} kDa"
    yield "extent", " x ".join(f"{length:.0f}" for length in extent) + " Å"
