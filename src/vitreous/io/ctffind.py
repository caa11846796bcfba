"""CTFFIND4's text output: defocus, astigmatism and phase shift of each micrograph.

Instead of it a table with a header line is read, whose words name the columns: ``micrograph``,
``defocus_u_A``, ``defocus_v_A``, ``angle_deg``, and ``phase_shift_deg`` and ``score`` if known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.params import Optics
from vitreous.io.bounds import check_bounds
from vitreous.io.inflate import read_text

_COLUMNS = (
    *("micrograph number", "defocus 1", "defocus 2", "azimuth of astigmatism", "phase shift"),
    *("score", "fit resolution"),
)
_NAMED = (  # columns of a table with a header line, and their default
    *((name, "") for name in ("micrograph", "defocus_u_A", "defocus_v_A", "angle_deg")),
    *(("phase_shift_deg", "0"), ("score", "0")),
)
_COMMENTS = {
    "pixel_size_angstrom": r"pixel size:\s*([-+.\deE]+)\s*angstrom",
    "voltage_kv": r"acceleration voltage:\s*([-+.\deE]+)\s*kev",
    "cs_mm": r"spherical aberration:\s*([-+.\deE]+)\s*mm",
    "amplitude_contrast": r"amplitude contrast:\s*([-+.\deE]+)",
}


@dataclass(frozen=True)
class CtffindTable:
    """CTF estimates of micrographs; arrays are float64 ``(n,)``.

    Args:
        micrograph_names: derived from the name of the input file where the text has none.
        defocus_u_angstrom, defocus_v_angstrom: defocus 1 and 2, Å, positive for underfocus.
        defocus_angle_deg: azimuth of defocus 1 from x, degrees.
        phase_shift_deg: additional phase shift, degrees (CTFFIND4 writes radians).
        score: cross-correlation of the fit.
        fit_resolution_angstrom: Å; may be infinite where no Thon ring was fitted.
        pixel_size_angstrom, voltage_kv, cs_mm, amplitude_contrast: from the comments, else None.
    """

    micrograph_names: tuple[str, ...]
    defocus_u_angstrom: NDArray[np.float64]
    defocus_v_angstrom: NDArray[np.float64]
    defocus_angle_deg: NDArray[np.float64]
    phase_shift_deg: NDArray[np.float64]
    score: NDArray[np.float64]
    fit_resolution_angstrom: NDArray[np.float64]
    pixel_size_angstrom: float | None = None
    voltage_kv: float | None = None
    cs_mm: float | None = None
    amplitude_contrast: float | None = None

    def __len__(self) -> int:
        return len(self.micrograph_names)

    def optics(
        self,
        *,
        voltage_kv: float,
        cs_mm: float,
        amplitude_contrast: float,
        b_factor_angstrom2: float = 0.0,
    ) -> Optics:
        """Return the optics of every micrograph, float32."""
        defocus = self.defocus_u_angstrom, self.defocus_v_angstrom, self.defocus_angle_deg
        estimated = (torch.from_numpy(a).float() for a in (*defocus, self.phase_shift_deg))
        shared = voltage_kv, cs_mm, amplitude_contrast, b_factor_angstrom2
        return Optics(*estimated, *(torch.full((len(self),), value) for value in shared))


def _row(path: Path, number: int, words: list[str]) -> tuple[str | None, list[float]]:
    """Return the optional leading name and the seven numbers of a line."""
    where = f"{path}: line {number}"
    name: str | None = None
    values: Sequence[str] = words
    try:
        float(words[0])
    except ValueError:
        name, values = words[0], words[1:]
    if len(values) < len(_COLUMNS):
        raise InputError(
            f"{where}: {len(values)} values, CTFFIND4 writes {len(_COLUMNS)}; was the file cut?"
        )
    numbers = []
    for column, text in zip(_COLUMNS, values, strict=False):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or (math.isinf(value) and column not in ("score", "fit resolution")):
            raise InputError(f"{where}: {column}: {text!r} is not a finite number")
        numbers.append(value)
    return name, numbers


def _ctffind_words(path: Path, number: int, header: list[str], words: list[str]) -> list[str]:
    """Return the words of a line below a header in the order of CTFFIND4's columns."""
    values = {name: default for name, default in _NAMED if default}
    values |= dict(zip(header, words, strict=False))
    missing = [name for name, _ in _NAMED if name not in values]
    if missing:
        raise InputError(f"{path}: line {number}: {missing[0]}: no value; was the file cut?")
    name, *defocus, phase, score = (values[name] for name, _ in _NAMED)
    with suppress(ValueError):
        phase = str(math.radians(float(phase)))
    return [name, "0", *defocus, phase, score, "inf"]


def _stated(path: Path, key: str, match: re.Match[str] | None) -> float | None:
    """Return the number that a comment states, or None."""
    if match is None:
        return None
    try:
        return float(match.group(1))
    except ValueError as error:
        field = key.rpartition("_")[0].replace("_", " ")
        raise InputError(f"{path}: comment: {field}: {match.group(1)!r} is no number") from error


def read_ctffind(path: Path | str) -> CtffindTable:
    """Read CTFFIND4's text output, the same rows after micrograph names, or a table with a header.

    Args:
        path: table as in the module's text, or text with ``#`` comments and rows of micrograph
            number, defocus 1, defocus 2 (Å), azimuth (degrees), phase shift (radians), score, fit
            resolution (Å); further columns are ignored.

    Raises:
        InputError: no rows, short rows or values that are no numbers; the text names the line.
    """
    path = Path(path)
    names: list[str | None] = []
    header: list[str] = []
    rows: list[list[float]] = []
    comments: list[str] = []
    lines = read_text(path, "is it CTFFIND4's .txt output?").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if words[0].startswith("#"):
            comments.append(line)
            continue
        if not header and not rows and words[0] == _NAMED[0][0]:
            header = words
            continue
        words = _ctffind_words(path, number, header, words) if header else words
        name, values = _row(path, number, words)
        names.append(name)
        rows.append(values)
    if not rows:
        raise InputError(f"{path}: no rows; is it CTFFIND4's .txt output?")
    table = np.array(rows, dtype=np.float64).T
    for position, name in enumerate(("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"), start=1):
        check_bounds(name, table[position], path)
    check_bounds("rlnPhaseShift", np.rad2deg(table[4]), path)
    stated = "\n".join(comments)
    source = re.search(r"input file:\s*(.*?)\s*(?:;|$)", stated, re.IGNORECASE | re.MULTILINE)
    stem = Path(source.group(1)).name if source else path.stem
    default = [stem if len(rows) == 1 else f"{i + 1:06d}@{stem}" for i in range(len(rows))]
    matches = {key: re.search(regex, stated, re.IGNORECASE) for key, regex in _COMMENTS.items()}
    return CtffindTable(
        micrograph_names=tuple(
            other if name is None else name for name, other in zip(names, default, strict=True)
        ),
        defocus_u_angstrom=table[1],
        defocus_v_angstrom=table[2],
        defocus_angle_deg=table[3],
        phase_shift_deg=np.rad2deg(table[4]),
        score=table[5],
        fit_resolution_angstrom=table[6],
        **{key: _stated(path, key, match) for key, match in matches.items()},
    )
