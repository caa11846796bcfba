"""Writing of RELION particle tables from optics and poses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
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


def pose_columns(pose: Pose) -> dict[str, list[str]]:
    """Return RELION's angle and origin columns of poses.

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


def _optics_block(
    optics: Optics, pixel_size_angstrom: float, box_size: int
) -> tuple[NDArray[np.int64], StarBlock]:
    """Return the 1-based optics group of each particle, and the table of groups."""
    shared = torch.stack([optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast], dim=-1)
    groups, group_of = np.unique(shared.double().cpu().numpy(), axis=0, return_inverse=True)
    count = len(groups)
    numbers = list(range(1, count + 1))
    columns = {
        "rlnOpticsGroup": format_column(numbers),
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        "rlnVoltage": format_column(groups[:, 0]),
        "rlnSphericalAberration": format_column(groups[:, 1]),
        "rlnAmplitudeContrast": format_column(groups[:, 2]),
        "rlnImagePixelSize": format_column([pixel_size_angstrom + 0.0] * count),
        "rlnImageSize": format_column([box_size] * count),
        "rlnImageDimensionality": ["2"] * count,
    }
    return np.asarray(group_of.reshape(-1) + 1, dtype=np.int64), StarBlock(columns)


def make_document(
    image_names: Sequence[str],
    optics: Optics,
    *,
    pixel_size_angstrom: float,
    box_size: int,
    micrograph_names: Sequence[str] | None = None,
    pose: Pose | None = None,
    half_set: Sequence[int] | None = None,
    class_number: Sequence[int] | None = None,
) -> StarDocument:
    """Make a RELION 3.1 document of particles, one row each.

    Equal voltage, Cs and amplitude contrast make an optics group. Where given, poses are written as
    angles and origins, half sets as ``rlnRandomSubset``, and classes, counted from 1, as
    ``rlnClassNumber``. Image names are ``000001@stack.mrcs`` and so on.

    Raises:
        ValueError: lengths differ.
    """
    group, optics_block = _optics_block(optics, pixel_size_angstrom, box_size)
    columns: dict[str, list[str]] = {"rlnImageName": list(image_names)}
    if micrograph_names is not None:
        columns["rlnMicrographName"] = list(micrograph_names)
    columns["rlnOpticsGroup"] = format_column(group)
    for key, name in list(CTF_COLUMNS.items())[:3] + list(OPTIONAL_CTF_COLUMNS.items()):
        columns[name] = format_column(getattr(optics, key).double().cpu().numpy())
    if pose is not None:
        columns |= pose_columns(pose)
    if half_set is not None:
        columns["rlnRandomSubset"] = format_column(half_set)
    if class_number is not None:
        columns["rlnClassNumber"] = format_column(class_number)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different length: {lengths}")
    return StarDocument({"optics": optics_block, "particles": StarBlock(columns)})
