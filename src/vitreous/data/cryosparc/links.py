"""Links between RELION columns and cryoSPARC fields, for conversion in both directions.

Angles, shifts and defoci are computed in float64. Columns have six decimals, as RELION writes them;
the optics table has the shortest text that gives the number back.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.rotation import (
    axis_angle_to_matrix,
    euler_to_matrix,
    matrix_to_axis_angle,
    matrix_to_euler,
)
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import split_image_names
from vitreous.data.tables import ANGLES
from vitreous.io.star import format_column

_DECIMALS = 6e-6  # RELION writes five or six
Numbers = NDArray[np.float64]
Columns = dict[str, list[str]]
Fields = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class CsFields:
    """Fields of a ``.cs`` file by name, each ``(n, ...)``.

    ``path`` is for messages; ``names`` are all fields of the file, including those without values
    here.
    """

    path: Path
    columns: Mapping[str, NDArray[Any]]
    names: Collection[str] = field(default=())

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def numbers(self, name: str, width: int | None = None) -> Numbers:
        """Return a field as finite float64, ``(n,)`` or ``(n, width)``.

        Raises:
            InputError: another shape, no numbers, or not finite (the text names the row).
        """
        values = self.columns[name]
        if values.dtype.kind not in "biuf" or values.shape[1:] != (
            () if width is None else (width,)
        ):
            raise InputError(
                f"{self.path}: field {name}: {width or 1} number(s) per row expected, found "
                f"{values.dtype} of shape {values.shape[1:]}"
            )
        numbers = values.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1))
        if bad.size:
            raise InputError(
                f"{self.path}: field {name}, row {bad[0] + 1}: {values[bad[0]]} is not finite"
            )
        return numbers

    def text(self, name: str) -> list[str]:
        """Return a field of text; InputError names the row of unprintable characters."""
        values = self.columns[name]
        if values.dtype.kind not in "SU" or values.ndim != 1:
            raise InputError(f"{self.path}: field {name}: text expected, found {values.dtype}")
        try:
            text = [v.decode("utf-8") if isinstance(v, bytes) else v for v in values.tolist()]
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: field {name}: is no UTF-8 text") from error
        for row, value in enumerate(text):
            if not value.isprintable():
                raise InputError(
                    f"{self.path}: field {name}, row {row + 1}: {value!r:.80} is no name"
                )
        return text


def _same_rows(now: ParticleTable, then: ParticleTable, link: Link) -> NDArray[np.bool_]:
    """Mask of rows whose columns of a link agree in two tables, to RELION's decimals."""
    same = np.ones(len(now), dtype=np.bool_)
    for name in link.columns:
        if name not in now or name not in then:
            same &= (name in now) == (name in then)
            continue
        a, b = now.numbers_or_none(name), then.numbers_or_none(name)
        if a is None or b is None:
            pairs = zip(now.joined_text(name), then.joined_text(name), strict=True)
            same &= np.array([x == y for x, y in pairs], dtype=np.bool_)
        else:
            same &= np.abs(a - b) < _DECIMALS
    return same


@dataclass(frozen=True)
class Link:
    """cryoSPARC fields and RELION columns of the same meaning.

    Args:
        fields: names in cryoSPARC.
        columns: names in RELION's particle or optics table.
        to_star: computes particle columns from fields; empty where the fields are missing.
        to_cs: computes fields from a table and the file's other fields; empty where the columns
            are missing.
        unchanged: computes the mask of rows that agree in two tables.
    """

    fields: tuple[str, ...]
    columns: tuple[str, ...]
    to_star: Callable[[CsFields], Columns]
    to_cs: Callable[[ParticleTable, CsFields], Fields]
    unchanged: Callable[[ParticleTable, ParticleTable, Link], NDArray[np.bool_]] = _same_rows


def _single(values: Numbers, table: ParticleTable, column: str) -> NDArray[np.float32]:
    if values.size and np.abs(values).max() > np.finfo(np.float32).max:
        raise InputError(f"{table.path}: column _{column}: {np.abs(values).max():g} is too large")
    return values.astype(np.float32)


def _bytes(values: list[str]) -> NDArray[np.bytes_]:
    encoded = [value.encode("utf-8") for value in values]
    return np.array(encoded, dtype=f"S{max(1, *map(len, encoded))}")


def _image_to_star(a: CsFields) -> Columns:
    if "blob/path" not in a or "blob/idx" not in a:
        return {}
    indices = a.numbers("blob/idx")
    if (indices < 0).any() or (indices > np.iinfo(np.uint32).max).any():
        raise InputError(
            f"{a.path}: field blob/idx: {indices.min():g} to {indices.max():g} are no image indices"
        )
    numbers = indices.astype(np.int64) + 1
    stacks = (path.removeprefix(">") for path in a.text("blob/path"))
    return {"rlnImageName": [f"{i:06d}@{s}" for i, s in zip(numbers.tolist(), stacks, strict=True)]}


def _image_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    names = table.text("rlnImageName")
    numbers, stacks = split_image_names(names, str(table.path))
    if numbers.max() > np.iinfo(np.uint32).max:
        raise InputError(
            f"{table.path}: column _rlnImageName, row {int(numbers.argmax()) + 1}: image number "
            "too large for a .cs file"
        )
    return {
        "uid": _uids(names),
        "blob/path": _bytes(stacks),
        "blob/idx": (numbers - 1).astype(np.uint32),
    }


def _uids(names: list[str]) -> NDArray[np.uint64]:
    """Return a 64-bit number for each image, from its name and the count of earlier equal names."""
    seen: Counter[str] = Counter()
    digests = []
    for name in names:
        suffix = f"#{seen[name]}" if name in seen else ""
        seen[name] += 1
        digests.append(hashlib.blake2b((name + suffix).encode("utf-8"), digest_size=8).digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _has_pose(table: ParticleTable) -> bool:
    return all(name in table.particles for name in ANGLES)


def _pose_to_star(a: CsFields) -> Columns:
    if "alignments3D/pose" not in a:
        return {}
    rotation = axis_angle_to_matrix(torch.from_numpy(a.numbers("alignments3D/pose", 3)))
    angles = matrix_to_euler(rotation.transpose(-1, -2)).numpy()
    return {name: format_column(angles[:, i]) for i, name in enumerate(ANGLES)}


def _pose_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    if not _has_pose(table):
        return {}
    angles = np.stack([table.numbers(name) for name in ANGLES], axis=-1)
    rotation = euler_to_matrix(torch.from_numpy(angles)).transpose(-1, -2)
    return {"alignments3D/pose": matrix_to_axis_angle(rotation).numpy().astype(np.float32)}


def _in_plane_to_star(a: CsFields) -> Columns:
    if "alignments2D/pose" not in a or "alignments3D/pose" in a:
        return {}
    return {"rlnAnglePsi": format_column(np.rad2deg(a.numbers("alignments2D/pose")))}


def _in_plane_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    if "rlnAnglePsi" not in table.particles or _has_pose(table):
        return {}
    psi = np.deg2rad(table.numbers("rlnAnglePsi"))
    return {"alignments2D/pose": psi.astype(np.float32)}


_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")


def _shift_link(kind: str) -> Link:
    shift, size = f"{kind}/shift", f"{kind}/psize_A"
    in_space = kind == "alignments3D"

    def to_star(a: CsFields) -> Columns:
        sizes = [name for name in (size, "blob/psize_A") if name in a]
        if shift not in a or not sizes or ("alignments3D/pose" in a) != in_space:
            return {}
        origin = a.numbers(shift, 2) * a.numbers(sizes[0])[:, None]
        return {name: format_column(origin[:, i]) for i, name in enumerate(_ORIGINS)}

    def to_cs(table: ParticleTable, a: CsFields) -> Fields:
        if _has_pose(table) != in_space or any(name not in table for name in _ORIGINS):
            return {}
        if size in a:
            pixel = a.numbers(size)
        elif "rlnImagePixelSize" in table:
            pixel = table.numbers("rlnImagePixelSize")
        else:
            raise InputError(
                f"{table.path}: pixel size: none in the table; give `pixel_size_angstrom`"
            )
        stored = _single(pixel, table, "rlnImagePixelSize")
        if not (stored > 0).all():
            raise InputError(
                f"{table.path}: pixel size: must be positive; give `pixel_size_angstrom`"
            )
        origin = np.stack([table.numbers(name) for name in _ORIGINS], axis=-1)
        # by the stored size, so that shift times size gives the origin back
        pixels = origin / stored.astype(np.float64)[:, None]
        return {shift: _single(pixels, table, _ORIGINS[0]), size: stored}

    return Link((shift, size), _ORIGINS, to_star, to_cs)


def _number_link(name: str, column: str, per: float = 1.0) -> Link:
    """Link a number of each particle; ``per`` field units are one column unit.

    A number of RELION's optics table has no column of its own per particle.
    """

    def to_star(a: CsFields) -> Columns:
        if name not in a or name in OPTICS:
            return {}
        return {column: format_column(a.numbers(name) / per)}

    def to_cs(table: ParticleTable, _: CsFields) -> Fields:
        if column not in table:
            return {}
        return {name: _single(table.numbers(column) * per, table, column)}

    return Link((name,), (column,), to_star, to_cs)


def _shape_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    if "rlnImageSize" not in table:
        return {}
    sizes = table.numbers("rlnImageSize")
    if (sizes < 1).any() or (sizes > 1 << 20).any():
        raise InputError(f"{table.path}: column _rlnImageSize: {sizes.min():g} is no image size")
    return {"blob/shape": np.stack([sizes, sizes], axis=-1).astype(np.uint32)}


def _group_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    groups = table.particles.integers("rlnOpticsGroup", table.path)
    if groups.min() < 0 or groups.max() > np.iinfo(np.uint32).max:
        raise InputError(f"{table.path}: column _rlnOpticsGroup: {groups.min()} is no group number")
    return {"ctf/exp_group_id": groups.astype(np.uint32)}


def _same_groups(now: ParticleTable, then: ParticleTable, _: Link) -> NDArray[np.bool_]:
    """Mask of all rows if both tables have the same groups under any numbers, else of none."""
    pairs = set(zip(now.text("rlnOpticsGroup"), then.text("rlnOpticsGroup"), strict=True))
    alike = len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    return np.full(len(now), alike)


def _half_to_star(a: CsFields) -> Columns:
    if "alignments3D/split" not in a:
        return {}
    halves = a.numbers("alignments3D/split")
    if not np.isin(halves, (0, 1)).all():
        return {}
    return {"rlnRandomSubset": format_column((halves + 1).astype(np.int64))}


def _half_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    halves = table.numbers_or_none("rlnRandomSubset") if "rlnRandomSubset" in table else None
    if halves is None or not np.isin(halves, (1, 2)).all():
        return {}
    return {"alignments3D/split": (halves - 1).astype(np.uint32)}


_CLASSES = ("alignments3D/class", "alignments2D/class")


def _class_to_star(a: CsFields) -> Columns:
    for name in _CLASSES:
        if name in a:
            return {"rlnClassNumber": format_column(a.numbers(name).astype(np.int64) + 1)}
    return {}


def _class_to_cs(table: ParticleTable, a: CsFields) -> Fields:
    classes = table.numbers_or_none("rlnClassNumber") if "rlnClassNumber" in table else None
    if classes is None:
        return {}
    if not ((classes >= 1) & (classes == classes.round())).all() or classes.max() > 1 << 31:
        return {}
    known = [name for name in _CLASSES if name in a.names]
    name = known[0] if known else _CLASSES[0 if _has_pose(table) else 1]
    return {name: (classes - 1).astype(np.uint32)}


_MICROGRAPH = "location/micrograph_path"


def _micrograph_to_star(a: CsFields) -> Columns:
    if _MICROGRAPH not in a:
        return {}
    return {"rlnMicrographName": [path.removeprefix(">") for path in a.text(_MICROGRAPH)]}


def _micrograph_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    known = "rlnMicrographName" in table.particles
    return {_MICROGRAPH: _bytes(table.text("rlnMicrographName"))} if known else {}


def _centre_link(axis: str, index: int) -> Link:
    name, shape = f"location/center_{axis}_frac", "location/micrograph_shape"
    column = f"rlnCoordinate{axis.upper()}"

    def to_star(a: CsFields) -> Columns:
        if name not in a or shape not in a:
            return {}
        return {column: format_column(a.numbers(name) * a.numbers(shape, 2)[:, index])}

    def to_cs(table: ParticleTable, a: CsFields) -> Fields:
        if column not in table.particles or shape not in a:
            return {}
        edges = a.numbers(shape, 2)[:, index]
        if not (edges > 0).all():
            return {}
        return {name: _single(table.numbers(column) / edges, table, column)}

    return Link((name,), (column,), to_star, to_cs)


OPTICS = {
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "blob/psize_A": "rlnImagePixelSize",
    "blob/shape": "rlnImageSize",
}
"""Fields that RELION stores once for each optics group."""

LINKS: tuple[Link, ...] = (
    Link(("blob/path", "blob/idx"), ("rlnImageName",), _image_to_star, _image_to_cs),
    Link(("blob/shape",), ("rlnImageSize",), lambda a: {}, _shape_to_cs),
    _number_link("blob/psize_A", OPTICS["blob/psize_A"]),
    Link((_MICROGRAPH,), ("rlnMicrographName",), _micrograph_to_star, _micrograph_to_cs),
    _centre_link("x", 1),
    _centre_link("y", 0),
    Link(("ctf/exp_group_id",), ("rlnOpticsGroup",), lambda a: {}, _group_to_cs, _same_groups),
    *(_number_link(name, column) for name, column in list(OPTICS.items())[:3]),
    _number_link("ctf/df1_A", "rlnDefocusU"),
    _number_link("ctf/df2_A", "rlnDefocusV"),
    _number_link("ctf/df_angle_rad", "rlnDefocusAngle", np.pi / 180),
    _number_link("ctf/phase_shift_rad", "rlnPhaseShift", np.pi / 180),
    _number_link("ctf/bfactor", "rlnCtfBfactor"),
    Link(("alignments3D/split",), ("rlnRandomSubset",), _half_to_star, _half_to_cs),
    _shift_link("alignments3D"),
    Link(("alignments3D/pose",), ANGLES, _pose_to_star, _pose_to_cs),
    _shift_link("alignments2D"),
    Link(("alignments2D/pose",), ("rlnAnglePsi",), _in_plane_to_star, _in_plane_to_cs),
    Link(_CLASSES, ("rlnClassNumber",), _class_to_star, _class_to_cs),
)
"""All links, in cryoSPARC's order of the fields."""
