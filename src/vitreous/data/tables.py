"""RELION particle tables to optics, poses and pixel sizes, and back."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix, matrix_to_euler
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
_UNUSED = (
    *("rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike", "rlnEvenZernike"),
    *("cs/ctf/tilt_A", "cs/ctf/trefoil_A", "cs/ctf/tetra_A"),
)
_SIGN = "cs/blob/sign"
_TEXT = ("rlnImageName", "rlnMicrographName")
_NUMBERS = (
    *(*CTF_COLUMNS.values(), *OPTIONAL_CTF_COLUMNS.values(), *ANGLES, "rlnOpticsGroup"),
    *("rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"),
)


class ParticleTable:
    """A particle table joined with its optics groups.

    Args:
        document: RELION 3.1 or later (``data_optics``, ``data_particles``) or 3.0 (one block).
        path: the file, for messages.
        pixel_size_angstrom: overrides the table's, Å.
    """

    def __init__(
        self, document: StarDocument, path: Path, *, pixel_size_angstrom: float | None = None
    ) -> None:
        size = pixel_size_angstrom
        if size is not None and not (math.isfinite(size) and size > 0):
            raise InputError(f"`pixel_size_angstrom` {size:g}: must be positive")
        self.document, self.path, self.pixel_size_override_angstrom = document, path, size
        self.name = self._particle_block()
        self.particles = document.blocks[self.name]
        self.optics = document.blocks.get("optics")
        if len(self.particles) == 0:
            raise InputError(f"{path}: block data_{self.name}: has no rows")
        self.particles.load(numbers=_NUMBERS, text=_TEXT)
        self._group: NDArray[np.int64] | None = self._groups()

    def __len__(self) -> int:
        return len(self.particles)

    def _particle_block(self) -> str:
        blocks = self.document.blocks
        if "particles" in blocks:
            return "particles"
        having = [name for name, block in blocks.items() if "rlnImageName" in block]
        if len(having) != 1:
            listing = ", ".join(f"data_{name}" for name in having or blocks)
            raise InputError(
                f"{self.path}: block data_particles: missing, and not exactly one block has a "
                f"column _rlnImageName; found {listing}"
            )
        return having[0]

    def _groups(self) -> NDArray[np.int64] | None:
        """Row of the optics table of each particle; None for RELION 3.0."""
        if self.optics is None:
            if "rlnOpticsGroup" in self.particles and "rlnVoltage" not in self.particles:
                raise InputError(
                    f"{self.path}: block data_optics: missing; export the particles with it"
                )
            return None
        source = f"{self.path}: block data_optics"
        if not len(self.optics):
            raise InputError(f"{source}: has no rows")
        known = self.optics.integers("rlnOpticsGroup", source)
        if len(set(known.tolist())) != len(known):
            raise InputError(f"{source}: column _rlnOpticsGroup: a group appears twice")
        if "rlnOpticsGroup" not in self.particles and len(known) == 1:
            return np.zeros(len(self), dtype=np.int64)
        wanted = self.particles.integers("rlnOpticsGroup", self.path)
        order = np.argsort(known)
        place = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        lost = np.flatnonzero(known[place] != wanted)
        if lost.size:
            raise InputError(
                f"{self.path}: column _rlnOpticsGroup, row {lost[0] + 1}: group "
                f"{wanted[lost[0]]} is not in data_optics"
            )
        return np.asarray(place, dtype=np.int64)

    def __contains__(self, name: object) -> bool:
        return name in self.particles or (self.optics is not None and name in self.optics)

    def numbers(self, name: str) -> Numbers:
        """A column for each particle; the optics table wins where both have it.

        Raises:
            InputError: missing, or a value that is no finite number; the row is named.
        """
        if self.optics is not None and name in self.optics and self._group is not None:
            return self.optics.numbers(name, f"{self.path}: block data_optics")[self._group]
        return self.particles.numbers(name, self.path)

    def text(self, name: str) -> list[str]:
        """A column of the particle table.

        Raises:
            InputError: missing.
        """
        return self.particles.text(name, self.path)

    def joined_text(self, name: str) -> list[str]:
        """A column for each particle as text; the optics table wins where both have it.

        Raises:
            InputError: missing.
        """
        if self.optics is not None and name in self.optics and self._group is not None:
            values = self.optics.text(name, f"{self.path}: block data_optics")
            return [values[place] for place in self._group.tolist()]
        return self.text(name)

    def numbers_or_none(self, name: str) -> Numbers | None:
        """As :meth:`numbers`, NaN included; None where a value is no number."""
        if self.optics is not None and name in self.optics and self._group is not None:
            values = self.optics.numbers_or_none(name, self.path)
            return None if values is None else values[self._group]
        return self.particles.numbers_or_none(name, self.path)

    def refuse_unsupported(self) -> None:
        """Refuse images that are not what a CTF model expects; warn of aberrations not modelled.

        Raises:
            InputError: premultiplied or phase-flipped images, or volumes.
        """
        for name, refused, remedy in (
            ("rlnCtfDataAreCtfPremultiplied", 1, "extract them without premultiplying"),
            ("rlnCtfDataArePhaseFlipped", 1, "extract them without phase flipping"),
            ("rlnImageDimensionality", 3, "extract 2D images"),
        ):
            if name in self and bool((self.numbers(name) == refused).any()):
                raise InputError(
                    f"{self.path}: column _{name}: {refused} is not supported; {remedy}"
                )
        for name in _UNUSED:
            block = self.optics if self.optics is not None and name in self.optics else None
            block = block or (self.particles if name in self.particles else None)
            if block is not None and any(map(_is_not_zero, set(block.columns[name]))):
                warnings.warn(f"{self.path}: column _{name} is not used", stacklevel=3)

    def stated_contrast(self) -> Literal["dark", "light"] | None:
        """What cryoSPARC's ``blob/sign`` says of the protein; None where it says nothing."""
        if _SIGN not in self.particles:
            return None
        signs = self.particles.numbers_or_none(_SIGN, self.path)
        if signs is None or not ((signs < 0).all() or (signs > 0).all()):
            return None
        return "dark" if signs[0] < 0 else "light"

    @property
    def missing_ctf(self) -> list[str]:
        """Columns without which there is no CTF."""
        return [f"_{name}" for name in CTF_COLUMNS.values() if name not in self]

    @property
    def ctf_fault(self) -> str:
        """What is missing for a CTF, for a person."""
        return (
            f"{self.path}: CTF parameters: {', '.join(self.missing_ctf)} missing; estimate the "
            "CTF or export the particles with it"
        )

    def parse_optics(self) -> Optics:
        """CTF parameters of each particle, float32.

        Raises:
            InputError: columns missing (all named), values that are no numbers, or impossible.
        """
        if self.missing_ctf:
            raise InputError(self.ctf_fault)
        values = {key: self.numbers(name) for key, name in CTF_COLUMNS.items()}
        for key, name in OPTIONAL_CTF_COLUMNS.items():
            values[key] = self.numbers(name) if name in self else np.zeros(len(self))
        for key, wrong, rule in (
            ("voltage_kv", values["voltage_kv"] <= 0, "positive"),
            ("amplitude_contrast", ~_in_unit(values["amplitude_contrast"]), "in [0, 1)"),
        ):
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise InputError(
                    f"{self.path}: column _{CTF_COLUMNS[key]}, row {row + 1}: must be {rule}, "
                    f"got {values[key][row]:g}"
                )
        return Optics(**{key: torch.from_numpy(value).float() for key, value in values.items()})

    def pixel_sizes(self) -> tuple[str, Numbers] | None:
        """Pixel size of each particle in Å, unchecked, and where it is from; None without."""
        if "rlnImagePixelSize" in self:
            return "_rlnImagePixelSize", self.numbers("rlnImagePixelSize")
        if "rlnDetectorPixelSize" in self and "rlnMagnification" in self:
            detector, factor = (
                self.numbers("rlnDetectorPixelSize"),
                self.numbers("rlnMagnification"),
            )
            sizes = 1e4 * detector / np.where(factor > 0, factor, np.nan)
            return "_rlnDetectorPixelSize / _rlnMagnification", sizes
        return None

    def checked_pixel_sizes(self) -> tuple[str, Numbers] | None:
        """As :meth:`pixel_sizes`.

        Raises:
            InputError: one is not positive; the row is named.
        """
        found = self.pixel_sizes()
        if found is None:
            return None
        name, sizes = found
        bad = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)))
        if bad.size:
            raise InputError(
                f"{self.path}: {name}, row {bad[0] + 1}: pixel size must be positive; give it "
                "with `pixel_size_angstrom`"
            )
        return found

    def pixel_size_angstrom(self) -> float | None:
        """The one pixel size of the table, Å; None where it has none.

        Groups within 0.1 % of each other count as one, with the size of the first particle.

        Raises:
            InputError: not positive, or groups that differ by more; both are named.
        """
        found = self.checked_pixel_sizes()
        if found is None:
            return None
        name, sizes = found
        if sizes.max() > 1.001 * sizes.min():
            raise InputError(
                f"{self.path}: {name}: particles of several pixel sizes: "
                f"{self._by_group(sizes, ' Å')}; take one with `vitreous select --optics-group`"
            )
        return float(sizes[0])

    def check_box_size(self, box_size: int) -> None:
        """Compare ``rlnImageSize`` with the images.

        Raises:
            InputError: it differs; the groups are named.
        """
        if "rlnImageSize" in self:
            sizes = self.numbers("rlnImageSize")
            if (sizes != box_size).any():
                raise InputError(
                    f"{self.path}: column _rlnImageSize: {self._by_group(sizes, ' px')}, but the "
                    f"images have {box_size} px; take one with `vitreous select "
                    "--optics-group`, or correct the table"
                )

    def _by_group(self, values: Numbers, unit: str) -> str:
        parts = []
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            where = f"rows {rows[0] + 1} to {rows[-1] + 1}"
            if self._group is not None and "rlnOpticsGroup" in self.particles:
                groups = sorted({self.particles.columns["rlnOpticsGroup"][row] for row in rows})
                where = f"optics group {', '.join(groups)}"
            parts.append(f"{value:g}{unit} in {where}")
        return "; ".join(parts)

    def parse_pose(self, pixel_size_angstrom: float) -> Pose | None:
        """Orientations and shifts, float32; None unless all three angles are there.

        Raises:
            InputError: values that are no finite numbers; the row is named.
        """
        if any(name not in self.particles for name in ANGLES):
            return None
        angles = np.stack([self.particles.numbers(name, self.path) for name in ANGLES], axis=-1)
        origins = []
        for axis in "XY":
            if f"rlnOrigin{axis}Angst" in self.particles:
                origins.append(self.particles.numbers(f"rlnOrigin{axis}Angst", self.path))
            elif f"rlnOrigin{axis}" in self.particles:
                pixels = self.particles.numbers(f"rlnOrigin{axis}", self.path)
                origins.append(pixels * pixel_size_angstrom)
            else:
                origins.append(np.zeros(len(self)))
        shift = torch.from_numpy(-np.stack(origins, axis=-1))
        return Pose(euler_to_matrix(torch.from_numpy(angles)).float(), shift.float() + 0.0)

    def micrographs(self, stacks: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Which micrograph each particle is from, by name or else by stack."""
        names = self.particles.columns.get("rlnMicrographName", list(stacks))
        which = {name: place for place, name in enumerate(dict.fromkeys(names))}
        return np.array([which[name] for name in names], dtype=np.int64), tuple(which)

    def half_sets(self) -> NDArray[np.int64]:
        """``rlnRandomSubset``: 1 or 2, 0 where the table has none.

        Raises:
            InputError: another value.
        """
        if "rlnRandomSubset" not in self.particles:
            return np.zeros(len(self), dtype=np.int64)
        halves = self.particles.integers("rlnRandomSubset", self.path)
        bad = np.flatnonzero((halves < 0) | (halves > 2))
        if bad.size:
            raise InputError(
                f"{self.path}: column _rlnRandomSubset, row {bad[0] + 1}: {halves[bad[0]]} is "
                "neither 1 nor 2"
            )
        return halves


def _is_not_zero(value: str) -> bool:
    """Whether a number, or any of a vector ``[a,b]``, is something else than zero."""
    return bool(re.search(r"[1-9]", re.sub(r"[eE][-+]?\d+", "", value)))


def _in_unit(values: Numbers) -> NDArray[np.bool_]:
    return np.asarray((values >= 0) & (values < 1))


def pose_columns(pose: Pose) -> dict[str, list[str]]:
    """RELION's angle and origin columns of poses.

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
    """1-based optics group of each particle, and the table of groups."""
    shared = torch.stack([optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast], dim=-1)
    groups, member = np.unique(shared.double().cpu().numpy(), axis=0, return_inverse=True)
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
    return np.asarray(member.reshape(-1) + 1, dtype=np.int64), StarBlock(columns)


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
    """A RELION 3.1 document for particles, one row each.

    Args:
        image_names: ``000001@stack.mrcs`` and so on.
        optics: CTF parameters; groups are made of equal voltage, Cs and amplitude contrast.
        pixel_size_angstrom: Å.
        box_size: pixels.
        micrograph_names: of each particle.
        pose: written as angles and origins where given.
        half_set: written as ``rlnRandomSubset`` where given.
        class_number: written as ``rlnClassNumber`` where given; from 1.

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
