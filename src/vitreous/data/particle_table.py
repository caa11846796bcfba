"""Reading of RELION particle tables: optics, poses, pixel sizes and half sets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.tables import ANGLES, CTF_COLUMNS, OPTIONAL_CTF_COLUMNS, Numbers
from vitreous.io.bounds import PIXEL_SIZE_ANGSTROM
from vitreous.io.mrc_header import MrcHeader
from vitreous.io.star import StarDocument

_SIGN = "cs/blob/sign"
_SCALE, _EXPOSURE = "rlnCtfScalefactor", "rlnMicrographPreExposure"
_WARP = ("rlnCtfBfactor", _SCALE)
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

    Raises:
        InputError: no particle block, no rows, or optics groups that do not fit the particles.
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
        candidates = [name for name, block in blocks.items() if "rlnImageName" in block]
        if any("rlnTomoTiltSeriesStarFile" in block for block in blocks.values()):
            raise InputError(
                f"{self.path}: lists tilt series, not particles; give the particles.star of "
                "extracted particles, or the optimisation_set.star"
            )
        if len(candidates) != 1:
            listing = ", ".join(f"data_{name}" for name in candidates or blocks)
            raise InputError(
                f"{self.path}: block data_particles: missing, and not exactly one block has a "
                f"column _rlnImageName; found {listing}"
            )
        return candidates[0]

    def _groups(self) -> NDArray[np.int64] | None:
        """Return the optics table's row of each particle; None for RELION 3.0."""
        if self.optics is None:
            if "rlnOpticsGroup" in self.particles and "rlnVoltage" not in self.particles:
                raise InputError(
                    f"{self.path}: block data_optics: missing, and with it "
                    f"{', '.join(self.missing_ctf)}; export the particles with it"
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
        row = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        missing = np.flatnonzero(known[row] != wanted)
        if missing.size:
            raise InputError(
                f"{self.path}: column _rlnOpticsGroup, row {missing[0] + 1}: group "
                f"{wanted[missing[0]]} is not in data_optics"
            )
        return np.asarray(row, dtype=np.int64)

    def __contains__(self, name: object) -> bool:
        return name in self.particles or (self.optics is not None and name in self.optics)

    def numbers(self, name: str) -> Numbers:
        """Return a number of each particle; the optics table has precedence.

        Raises:
            InputError: missing, or a value that is no finite number (the text names the row).
        """
        if self.optics is not None and name in self.optics and self._group is not None:
            return self.optics.numbers(name, f"{self.path}: block data_optics")[self._group]
        return self.particles.numbers(name, self.path)

    def text(self, name: str) -> list[str]:
        """Return a column of the particle table; InputError if it is missing."""
        return self.particles.text(name, self.path)

    def joined_text(self, name: str) -> list[str]:
        """Return a text of each particle, from the optics table first; InputError if missing."""
        if self.optics is not None and name in self.optics and self._group is not None:
            values = self.optics.text(name, f"{self.path}: block data_optics")
            return [values[row] for row in self._group.tolist()]
        return self.text(name)

    def numbers_or_none(self, name: str) -> Numbers | None:
        """Return :meth:`numbers` with NaN included, or None if a value is no number."""
        if self.optics is not None and name in self.optics and self._group is not None:
            values = self.optics.numbers_or_none(name, self.path)
            return None if values is None else values[self._group]
        return self.particles.numbers_or_none(name, self.path)

    def refuse_unsupported(self) -> None:
        """Refuse volumes.

        Raises:
            InputError: the particles are volumes.
        """
        name = "rlnImageDimensionality"
        if name in self and bool((self.numbers(name) == 3).any()):
            raise InputError(f"{self.path}: column _{name}: 3 is not supported; extract 2D images")

    def stated_contrast(self) -> Literal["dark", "light"] | None:
        """Return the contrast of protein from cryoSPARC's ``blob/sign``; None where unknown."""
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

    def parse_optics(self) -> Optics | str:
        """Return the CTF parameters of each particle, float32, or why there are none.

        Raises:
            InputError: values that are no numbers or impossible.
        """
        if self.missing_ctf:
            return (
                f"{self.path}: CTF parameters: {', '.join(self.missing_ctf)} missing; estimate "
                "the CTF or export the particles with it"
            )
        values = {key: self.numbers(name) for key, name in CTF_COLUMNS.items()}
        for key, name in OPTIONAL_CTF_COLUMNS.items():
            values[key] = self.numbers(name) if name in self else np.zeros(len(self))
        if _SCALE in self:
            values["scale"] = self.numbers(_SCALE)
        if self.tilt_particles() is not None:
            if "rlnTomoParticleName" not in self.particles:  # Warp: negative ones damp
                values["b_factor_angstrom2"] = -values["b_factor_angstrom2"]
            elif _EXPOSURE in self.particles:
                values["exposure_e_per_angstrom2"] = self.numbers(_EXPOSURE)
        q = values["amplitude_contrast"]
        wrong = np.flatnonzero(~((q >= 0) & (q < 1)))
        if wrong.size:
            raise InputError(
                f"{self.path}: column _{CTF_COLUMNS['amplitude_contrast']}, row {wrong[0] + 1}: "
                f"must be in [0, 1), got {q[wrong[0]]:g}"
            )
        return Optics(**{key: torch.from_numpy(value).float() for key, value in values.items()})

    def pixel_sizes(self) -> tuple[str, Numbers] | None:
        """Return the source and the pixel size of each particle in Å; None without.

        Raises:
            InputError: a size is not positive; the text names the row.
        """
        if "rlnImagePixelSize" in self:
            name, sizes = "_rlnImagePixelSize", self.numbers("rlnImagePixelSize")
        elif "rlnDetectorPixelSize" in self and "rlnMagnification" in self:
            name = "_rlnDetectorPixelSize / _rlnMagnification"
            factor = self.numbers("rlnMagnification")
            detector = self.numbers("rlnDetectorPixelSize")
            sizes = 1e4 * detector / np.where(factor > 0, factor, np.nan)
        else:
            return None
        low, high = PIXEL_SIZE_ANGSTROM
        bad = np.flatnonzero(~((sizes >= low) & (sizes <= high)))
        if bad.size:
            raise InputError(
                f"{self.path}: {name}, row {bad[0] + 1}: pixel size must be positive, {low:g} to "
                f"{high:g} Å; give it with `pixel_size_angstrom`"
            )
        return name, sizes

    def pixel_sizes_with(self, header: MrcHeader) -> Numbers:
        """Return the pixel size of each image in Å: override, else the table's, else the header's.

        A header that differs from the table by more than 1 % is warned about.

        Raises:
            InputError: none of them has one.
        """
        if self.pixel_size_override_angstrom is not None:
            return np.full(len(self), self.pixel_size_override_angstrom)
        stated, in_header = self.pixel_sizes(), header.pixel_size_angstrom
        if stated is None:
            return np.full(len(self), header.pixel_size_or(None))
        first = float(stated[1][0])
        if in_header is not None and abs(in_header - first) > 0.01 * first:
            warnings.warn(
                f"{self.path}: pixel size {first:g} Å is used; {header.path} says {in_header:g} Å",
                stacklevel=4,
            )
        return stated[1]

    def numbers_or(self, names: Sequence[str], others: Sequence[float]) -> Numbers:
        """Return columns ``(n, k)``, with the other numbers in place of those that are missing."""
        columns = [
            self.numbers(name) if name in self else np.full(len(self), other)
            for name, other in zip(names, others, strict=True)
        ]
        return np.stack(columns, axis=-1)

    def flagged(self, name: str) -> NDArray[np.bool_]:
        """Return the images ``(n,)`` whose column, such as ``rlnCtfDataArePhaseFlipped``, is 1."""
        if name not in self:
            return np.zeros(len(self), dtype=np.bool_)
        return np.asarray(self.numbers(name) == 1)

    def check_box_sizes(self, box_sizes: NDArray[np.int64]) -> None:
        """Compare ``rlnImageSize`` with the edge of each image in pixels, ``(n,)``.

        Raises:
            InputError: it differs; the text names the groups.
        """
        if "rlnImageSize" in self:
            sizes = self.numbers("rlnImageSize")
            if (sizes != box_sizes).any():
                raise InputError(
                    f"{self.path}: column _rlnImageSize: {self._by_group(sizes, ' px')}, but the "
                    f"images have {self._by_group(box_sizes, ' px')}; correct the column"
                )

    def _by_group(self, values: NDArray[Any], unit: str) -> str:
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
        """Return rotations and shifts, float32; None unless the table has all three angles.

        Raises:
            InputError: values that are no finite numbers; the text names the row.
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
        """Return each particle's micrograph index, and the names; stacks stand in for names."""
        names = self.particles.columns.get("rlnMicrographName", list(stacks))
        index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([index[name] for name in names], dtype=np.int64), tuple(index)

    def tilt_particles(self) -> list[str] | None:
        """Return the particle that each image is a tilt of; None where the table has no tilts.

        RELION 5 names it in ``rlnTomoParticleName``. Warp and M name it in ``rlnGroupName``, which
        single-particle tables use for groups of micrographs: a group is a particle if its images
        all differ in exposure, which these programs write as B factor, 0 or below, beside a scale.
        """
        if "rlnTomoParticleName" in self.particles:
            names = self.text("rlnTomoParticleName")
        elif {"rlnGroupName", *_WARP} <= self.particles.columns.keys():
            names = self.text("rlnGroupName")
            exposure = self.numbers(_WARP[0])
            pairs = set(zip(names, exposure.tolist(), strict=True))
            if len(pairs) < len(self) or exposure.max() > 0:
                return None
        else:
            return None
        return names if len(set(names)) < len(self) else None

    def optics_group(self) -> NDArray[np.int64]:
        """Return the optics table's row of each particle, ``(n,)``."""
        return np.zeros(len(self), dtype=np.int64) if self._group is None else self._group

    def half_sets(self) -> NDArray[np.int64]:
        """Return ``rlnRandomSubset (n,)``: 1 or 2, 0 without; InputError for another value."""
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
