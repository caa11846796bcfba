"""Particles of tomograms (RELION 5, and Warp's for RELION) as a table of their tilt images.

RELION 5 stores a particle as a stack of its visible tilts. Its table has the 3D pose; the tilt
series have rotation, exposure and CTF of each tilt. An image of tilt f of a particle then has

.. math:: R = R_f A_s A_p, \\quad R_f = R_z R_y R_x, \\quad t = -(R_f A_s o)_{xy}, \\quad
    \\Delta d = h s\\, (R_f (r - A_s o))_z

with the Euler matrices of particle and subtomogram, the counter-clockwise rotations by
``rlnTomoZRot``, ``YTilt`` and ``XTilt`` (or the normalised rows of RELION 4's ``rlnTomoProjX``,
``Y``, ``Z``), the particle's origin o and position r from the centre of the tomogram in Å, and
``rlnTomoHand`` h and ``rlnTomoDefocusSlope`` s, by which the defocus grows.

Source: RELION 5, ``jaz/tomography/tomogram.cpp`` and ``particle_set.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vitreous.core.errors import InputError
from vitreous.core.rotation import euler_to_matrix, matrix_to_euler
from vitreous.data.stacks import find_stack
from vitreous.data.tables import ANGLES, Numbers
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star

_ROWS = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ")
_SERIES, _EXPOSURE = "rlnTomoTiltSeriesStarFile", "rlnMicrographPreExposure"
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV")
_OF_TILT = {"rlnDefocusAngle": 0.0, "rlnPhaseShift": 0.0, "rlnCtfScalefactor": 1.0}
_REPLACED = (
    *("rlnImageName", "rlnTomoVisibleFrames", "rlnOriginXAngst", "rlnOriginYAngst"),
    *(
        "rlnOriginZAngst",
        "rlnMicrographName",
        *ANGLES,
        *(f"rlnTomoSubtomogram{a[8:]}" for a in ANGLES),
    ),
)


@dataclass(frozen=True)
class _TiltSeries:
    """Rotation ``(f, 3, 3)``, columns, and depth factor of the tilts of a tomogram."""

    rotation: Numbers
    columns: dict[str, Numbers]
    names: list[str]
    slope: float
    centre_px: Numbers
    pixel_size_angstrom: float


def is_tomo_particles(document: StarDocument) -> bool:
    """Return whether a document has particles as stacks of tilt images, or names such a table."""
    block = document.blocks.get("particles")
    named = any("rlnTomoParticlesFile" in block for block in document.blocks.values())
    optics = document.blocks.get("optics", StarBlock({}))
    if "3" in optics.columns.get("rlnImageDimensionality", ()):  # refused where images are read
        return False
    return named or (block is not None and "rlnTomoVisibleFrames" in block)


def tilt_images_document(
    document: StarDocument, path: Path, images_in: Callable[[str], int | None]
) -> StarDocument:
    """Return a table with a row for each tilt image of particles of tomograms.

    Args:
        document: a particle table, or an optimisation set, which names it.
        path: its file.
        images_in: number of images of a stack; None where the stack is not there.

    Raises:
        InputError: tilt series that are not found, or do not fit the particles.
    """
    tomograms: Path | None = None
    for block in document.blocks.values():
        if "rlnTomoParticlesFile" in block:
            tomograms = _found(block.text("rlnTomoTomogramsFile", path)[0], path)
            document = read_star(_found(block.text("rlnTomoParticlesFile", path)[0], path))
            break
    if "particles" not in document.blocks:
        raise InputError(f"{path}: block data_particles: missing; give the particles of tomograms")
    particles = document.blocks["particles"]
    series = _read_series(tomograms or _beside(path), particles, path)
    visible = _visible(particles, series, path)
    stacks = particles.text("rlnImageName", path)
    tilts = [np.flatnonzero(one) for one in visible]
    for row, stack in enumerate(stacks):
        count = images_in(stack)
        if count is not None and count != len(tilts[row]):
            raise InputError(
                f"{path}: row {row + 1}: rlnTomoVisibleFrames has {len(tilts[row])} tilts, but "
                f"{stack} holds {count} images; give the stacks of this table"
            )
    owner = np.repeat(np.arange(len(particles)), [len(one) for one in tilts])
    columns = {
        name: [column[row] for row in owner.tolist()]
        for name, column in particles.columns.items()
        if name not in _REPLACED
    }
    columns["rlnImageName"] = [
        f"{i + 1:06d}@{stack}"
        for stack, one in zip(stacks, tilts, strict=True)
        for i in range(len(one))
    ]
    columns |= _tilt_columns(particles, series, tilts, path)
    kept = {name: block for name, block in document.blocks.items() if name != "general"}
    return StarDocument({**kept, "particles": replace(particles, columns=columns)})


def _tilt_columns(
    particles: StarBlock, series: list[_TiltSeries], tilts: list[NDArray[np.int64]], path: Path
) -> dict[str, list[str]]:
    """Return pose, CTF and micrograph of each tilt image, particle by particle."""
    subtomogram = _matrices(particles, "rlnTomoSubtomogram", path)
    posed = all(name in particles for name in ANGLES)
    pose = subtomogram @ _matrices(particles, "rlnAngle", path)
    origin = _vectors(particles, "rlnOrigin{}Angst", path)
    moved = np.einsum("nij,nj->ni", subtomogram, origin)
    place = _vectors(particles, "rlnCenteredCoordinate{}Angst", path)
    in_pixels = "rlnCenteredCoordinateXAngst" not in particles
    found: dict[str, list[Numbers]] = {}
    names: list[str] = []
    if in_pixels:
        place = _vectors(particles, "rlnCoordinate{}", path)
    for row, (tomogram, one) in enumerate(zip(series, tilts, strict=True)):
        turn = tomogram.rotation[one]
        centre = tomogram.centre_px if in_pixels else np.zeros(3)
        scale = tomogram.pixel_size_angstrom if in_pixels else 1.0
        depth = (turn @ ((place[row] - centre) * scale - moved[row]))[:, 2] * tomogram.slope
        shift = turn @ moved[row]
        angles = matrix_to_euler(torch.from_numpy(turn @ pose[row])).numpy()
        values = dict(zip(ANGLES, angles.T, strict=True)) if posed else {}
        values |= {"rlnOriginXAngst": shift[:, 0], "rlnOriginYAngst": shift[:, 1]}
        for name, column in tomogram.columns.items():
            values[name] = column[one] + (depth if name in _DEFOCUS else 0.0)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
        names += [tomogram.names[i] for i in one.tolist()]
    written = {name: format_column(np.concatenate(parts)) for name, parts in found.items()}
    return {"rlnMicrographName": names, **written}


def _read_series(tomograms: Path, particles: StarBlock, path: Path) -> list[_TiltSeries]:
    """Read the tilt series of each particle."""
    blocks = read_star(tomograms).blocks
    table = next((block for block in blocks.values() if "rlnTomoName" in block), None)
    if table is None:
        raise InputError(f"{tomograms}: column _rlnTomoName: missing; give the tomograms' table")
    listed = {name: row for row, name in enumerate(table.text("rlnTomoName", tomograms))}
    wanted = particles.text("rlnTomoName", path)
    found: dict[str, _TiltSeries] = {}
    for name in dict.fromkeys(wanted):
        if name not in listed:
            raise InputError(f"{path}: column _rlnTomoName: {name} is not in {tomograms}")
        if _SERIES in table:
            file = _found(table.text(_SERIES, tomograms)[listed[name]], tomograms)
            tilts = next(iter(read_star(file).blocks.values()))
        elif name in blocks:
            file, tilts = tomograms, blocks[name]
        else:
            raise InputError(f"{tomograms}: block data_{name} or column _{_SERIES}: missing")
        found[name] = _tilt_series(tilts, file, _numbers_of(table, listed[name], tomograms))
    return [found[name] for name in wanted]


def _tilt_series(tilts: StarBlock, file: Path, of_tomogram: dict[str, float]) -> _TiltSeries:
    if all(name in tilts for name in _ROWS):
        rows = [[_vector(text, file) for text in tilts.text(name, file)] for name in _ROWS]
        rotation = np.array(rows)[..., :3].transpose(1, 0, 2)
        rotation /= np.linalg.norm(rotation, axis=-1, keepdims=True)
    else:
        none = np.zeros(len(tilts))
        x = tilts.numbers("rlnTomoXTilt", file) if "rlnTomoXTilt" in tilts else none
        turns = [tilts.numbers("rlnTomoZRot", file), tilts.numbers("rlnTomoYTilt", file), x]
        rotation = Rotation.from_euler("ZYX", np.stack(turns, -1), degrees=True).as_matrix()
    columns = {name: tilts.numbers(name, file) for name in (*_DEFOCUS, _EXPOSURE)}
    for name, default in (*_OF_TILT.items(), ("rlnCtfBfactor", 0.0)):
        columns[name] = tilts.numbers(name, file) if name in tilts else np.full(len(tilts), default)
    per_dose = of_tomogram.get("rlnCtfBfactorPerElectronDose", 0.0)
    if per_dose > 0:  # instead of the critical exposure
        columns["rlnCtfBfactor"] = columns["rlnCtfBfactor"] + per_dose * columns[_EXPOSURE]
        columns[_EXPOSURE] = np.zeros(len(tilts))
    names = [f"{file.stem}_{i + 1:03d}" for i in range(len(tilts))]
    return _TiltSeries(
        rotation,
        columns,
        tilts.text("rlnMicrographName", file) if "rlnMicrographName" in tilts else names,
        of_tomogram.get("rlnTomoHand", 1.0) * of_tomogram.get("rlnTomoDefocusSlope", 1.0),
        np.array([of_tomogram.get(f"rlnTomoSize{axis}", 0.0) / 2 for axis in "XYZ"]),
        of_tomogram.get("rlnTomoTiltSeriesPixelSize", 1.0),
    )


def _visible(
    particles: StarBlock, series: list[_TiltSeries], path: Path
) -> list[NDArray[np.bool_]]:
    found = []
    texts = particles.text("rlnTomoVisibleFrames", path)
    for row, (text, tomogram) in enumerate(zip(texts, series, strict=True)):
        flags = np.array(_vector(text, path))
        if len(flags) != len(tomogram.names) or not np.isin(flags, (0, 1)).all():
            raise InputError(
                f"{path}: column _rlnTomoVisibleFrames, row {row + 1}: {text!r:.40} must have 0 or "
                f"1 for each of the {len(tomogram.names)} tilts"
            )
        found.append(flags == 1)
    return found


def _vector(text: str, file: Path) -> list[float]:
    """Parse ``[1,2.5,3]``."""
    try:
        return [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise InputError(f"{file}: {text!r:.40} is no vector such as [1,0,1]") from None


def _numbers_of(table: StarBlock, row: int, file: Path) -> dict[str, float]:
    columns = {name: table.numbers_or_none(name, file) for name in table.columns}
    return {name: float(column[row]) for name, column in columns.items() if column is not None}


def _vectors(particles: StarBlock, pattern: str, path: Path) -> Numbers:
    """Return ``(n, 3)``, zeros for columns that are missing."""
    names = [pattern.format(axis) for axis in "XYZ"]
    zeros = np.zeros(len(particles))
    return np.stack([particles.numbers(n, path) if n in particles else zeros for n in names], -1)


def _matrices(particles: StarBlock, prefix: str, path: Path) -> Numbers:
    """Return the Euler matrices ``(n, 3, 3)`` of three columns; unit matrices without them."""
    names = [f"{prefix}{part}" for part in ("Rot", "Tilt", "Psi")]
    if any(name not in particles for name in names):
        return np.broadcast_to(np.eye(3), (len(particles), 3, 3))
    angles = np.stack([particles.numbers(name, path) for name in names], axis=-1)
    return np.asarray(euler_to_matrix(torch.from_numpy(angles)).numpy())


def _found(name: str, beside: Path) -> Path:
    try:
        return find_stack(name, beside)
    except InputError:
        raise InputError(
            f"{beside}: {name}: not found in its folder or up to four above it; copy it there"
        ) from None


def _beside(path: Path) -> Path:
    """Return the table of tomograms that lies nearest to a particle table."""
    for name in (f"{path.stem}_tomograms.star", "tomograms.star"):
        try:
            return find_stack(name, path)
        except InputError:
            continue
    raise InputError(
        f"{path}: particles of tomograms, but no tomograms.star in its folder or up to four above "
        "it: rotation, exposure and CTF of the tilts are in it; copy it there, or give the "
        "optimisation_set.star, which names it"
    )
