"""Writing of RELION particle tables from optics and poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import matrix_to_euler
from vitreous.io.star import StarBlock, StarDocument, format_column

Numbers = NDArray[np.float64]

CTF_COLUMNS = {
    "defocus_u_angstrom": "rlnDefocusU",
    "defocus_v_angstrom": "rlnDefocusV",
    "defocus_angle_deg": "rlnDefocusAngle",
    "voltage_kv": "rlnVoltage",
    "cs_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
OPTIONAL_CTF_COLUMNS = {"phase_shift_deg": "rlnPhaseShift", "b_factor_angstrom2": "rlnCtfBfactor"}
ANGLES: tuple[str, ...] = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ABERRATIONS = ("rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike", "rlnEvenZernike")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")


def pose_columns(pose: Pose) -> dict[str, list[str]]:
    """Return RELION's angle and origin columns of poses.

    >>> import torch
    >>> pose = Pose(torch.eye(3)[None], torch.tensor([[1.5, 0.0]]))
    >>> pose_columns(pose)["rlnOriginXAngst"]
    ['-1.500000']
    """
    angles = matrix_to_euler(pose.rotation.detach().cpu().double())
    origin = 0.0 - pose.shift_angstrom.detach().cpu().double()
    columns = {name: format_column(angles[:, i].numpy()) for i, name in enumerate(ANGLES)}
    columns["rlnOriginXAngst"] = format_column(origin[:, 0].numpy())
    columns["rlnOriginYAngst"] = format_column(origin[:, 1].numpy())
    return columns


def optics_groups(columns: Sequence[Numbers]) -> tuple[NDArray[np.int64], list[str]]:
    """Group the particles whose numbers ``(n,)`` in all columns are equal.

    Returns the first particle of each group, and each particle's group, counted from 1.

    >>> optics_groups([np.array([300.0, 200.0, 300.0])])
    (array([1, 0]), ['2', '1', '2'])
    """
    _, first, group_of = np.unique(
        np.stack(columns, axis=-1), axis=0, return_index=True, return_inverse=True
    )
    return first, (group_of.reshape(-1) + 1).astype(str).tolist()


def optics_table(count: int, columns: Mapping[str, list[str]]) -> StarBlock:
    """Return an optics table of ``count`` groups, counted from 1, with more columns."""
    numbers = [str(number + 1) for number in range(count)]
    names = {"rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers]}
    dimensions = {"rlnImageDimensionality": ["2"] * count}
    return StarBlock({"rlnOpticsGroup": numbers, **names, **columns, **dimensions})


def _optics_block(
    optics: Optics, pixel_size_angstrom: float, box_size: int
) -> tuple[list[str], StarBlock]:
    """Return the optics group of each particle, and the table of groups."""
    shared = list(CTF_COLUMNS.items())[3:]
    values = {name: getattr(optics, key).double().cpu().numpy() for key, name in shared}
    first, group_of = optics_groups(list(values.values()))
    columns = {name: format_column(numbers[first]) for name, numbers in values.items()}
    columns["rlnImagePixelSize"] = format_column([pixel_size_angstrom + 0.0] * len(first))
    columns["rlnImageSize"] = [str(box_size)] * len(first)
    return group_of, optics_table(len(first), columns)


def make_document(
    image_names: Sequence[str],
    optics: Optics,
    *,
    pixel_size_angstrom: float,
    box_size: int,
    micrograph_names: Sequence[str] | None = None,
    pose: Pose | None = None,
    half_set: Sequence[int] | None = None,
    more: Mapping[str, Any] | None = None,
) -> StarDocument:
    """Make a RELION 3.1 document of particles, one row each.

    Equal voltage, Cs and amplitude contrast make an optics group. Where given, poses are written as
    angles and origins, half sets as ``rlnRandomSubset``, and ``more`` columns of numbers by name.
    Image names are ``000001@stack.mrcs`` and so on.

    Raises:
        ValueError: lengths differ.
    """
    group, optics_block = _optics_block(optics, pixel_size_angstrom, box_size)
    columns: dict[str, list[str]] = {"rlnImageName": list(image_names)}
    if micrograph_names is not None:
        columns["rlnMicrographName"] = list(micrograph_names)
    columns["rlnOpticsGroup"] = group
    for key, name in list(CTF_COLUMNS.items())[:3] + list(OPTIONAL_CTF_COLUMNS.items()):
        columns[name] = format_column(getattr(optics, key).double().cpu().numpy())
    if pose is not None:
        columns |= pose_columns(pose)
    if half_set is not None:
        columns["rlnRandomSubset"] = format_column(half_set)
    columns |= {name: format_column(values) for name, values in (more or {}).items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different length: {lengths}")
    document = StarDocument({"optics": optics_block, "particles": StarBlock(columns)})
    return with_optics_columns(document)


def with_optics_columns(document: StarDocument) -> StarDocument:
    """Return the document with columns of aberrations moved to its optics table.

    A column whose values differ within a group stays, without one of its name in the optics table.
    """
    particles = document.blocks["particles"].columns
    present = [name for name in ABERRATIONS if name in particles]
    if not present:
        return document
    optics, group_of = dict(document.blocks["optics"].columns), particles["rlnOpticsGroup"]
    first = {group: row for row, group in reversed(list(enumerate(group_of)))}
    rows = [first.get(group, 0) for group in optics["rlnOpticsGroup"]]
    moved = []
    for name in present:
        values = particles[name]
        optics.pop(name, None)
        if all(values[first[group]] == one for group, one in zip(group_of, values, strict=True)):
            optics[name] = [values[row] for row in rows]
            moved.append(name)
    kept = {name: values for name, values in particles.items() if name not in moved}
    blocks = {"optics": StarBlock(optics), "particles": StarBlock(kept)}
    return StarDocument({**document.blocks, **blocks})
