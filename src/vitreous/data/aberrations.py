"""Aberrations of particle tables: RELION's columns as polynomials of the frequency, and back.

RELION has the beam tilt in mrad, and Zernike polynomials of frequencies in 1/Å; the polynomials
here are those of :mod:`vitreous.physics.aberrations`.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.data.particle_table import ParticleTable
from vitreous.data.tables import ABERRATIONS, Numbers
from vitreous.io.star import format_column
from vitreous.physics.aberrations import Distortion
from vitreous.physics.ctf import electron_wavelength_angstrom

MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
TILT, (ODD, EVEN) = ABERRATIONS[:2], ABERRATIONS[2:]
UNDONE = (*MAGNIFICATION, *TILT, ODD)
"""Columns of what is undone in images that are read; even terms are part of the CTF."""
_CS, _VOLTAGE = "rlnSphericalAberration", "rlnVoltage"
_ODD_TERMS, _EVEN_TERMS = 6, 9
_LARGEST_MAGNIFICATION = 1.5
_IDENTITY = (1.0, 0.0, 0.0, 1.0)

# Columns: Zernike polynomials in RELION's order; rows: p, or e without the factor 2 pi.
_ODD_MATRIX = np.diag([1.0, 1, 1, 3, 3, 1])
_ODD_MATRIX[0, 3] = _ODD_MATRIX[1, 4] = -2
_EVEN_MATRIX = np.array(
    [  # 1, (-2,2), (0,2), (2,2), (-4,4), (-2,4), (0,4), (2,4), (4,4)
        [0, 0, 2, 1, 0, 0, -6, -3, 0],  # kx^2
        [0, 0, 2, -1, 0, 0, -6, 3, 0],  # ky^2
        [0, 2, 0, 0, 0, -6, 0, 0, 0],  # kx ky
        [0, 0, 0, 0, 0, 0, 6, 0, 0],  # k^4
        [1, 0, -1, 0, 0, 0, 1, 0, 0],  # 1
        [0, 0, 0, 0, 0, 0, 0, 4, 0],  # k^4 cos 2
        [0, 0, 0, 0, 0, 4, 0, 0, 0],  # k^4 sin 2
        [0, 0, 0, 0, 0, 0, 0, 0, 1],  # k^4 cos 4
        [0, 0, 0, 0, 1, 0, 0, 0, 0],  # k^4 sin 4
    ],
    dtype=np.float64,
)


def odd_polynomial(zernike: Numbers) -> Numbers:
    """Return p ``(..., 6)`` of RELION's odd Zernike coefficients ``(..., 6)``."""
    return np.asarray(zernike @ _ODD_MATRIX.T)


def odd_zernike(polynomial: Numbers) -> Numbers:
    """Return RELION's odd Zernike coefficients of p, both ``(..., 6)``.

    >>> odd_zernike(odd_polynomial(np.arange(6.0))).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    return np.asarray(polynomial @ np.linalg.inv(_ODD_MATRIX).T)


def even_polynomial(zernike: Numbers) -> Numbers:
    """Return e ``(..., 9)``, in turns, of RELION's even Zernike coefficients ``(..., 9)``."""
    return np.asarray(zernike @ _EVEN_MATRIX.T / (2 * math.pi))


def even_zernike(polynomial: Numbers) -> Numbers:
    """Return RELION's even Zernike coefficients of e, both ``(..., 9)``."""
    return np.asarray(2 * math.pi * polynomial @ np.linalg.inv(_EVEN_MATRIX).T)


def tilt_factors(cs_mm: Tensor, voltage_kv: Tensor) -> Numbers:
    """Return Cs lambda^2 of particles in Å^3, ``(n,)``."""
    wavelength = electron_wavelength_angstrom(voltage_kv.double())
    return np.asarray(cs_mm.double() * 1e7 * wavelength**2)


def tilt_polynomial(tilt_mrad: Numbers, factors: Numbers) -> Numbers:
    """Return p ``(n, 6)`` of beam tilts x, y ``(n, 2)``; ``factors`` are Cs lambda^2 in Å^3."""
    polynomial = np.zeros((len(tilt_mrad), _ODD_TERMS))
    polynomial[:, [4, 3]] = -2e-3 * math.pi * factors[:, None] * tilt_mrad
    return polynomial


def aberration_columns(odd: Numbers, even: Numbers, factors: Numbers) -> dict[str, list[str]]:
    """Return RELION's columns of polynomials p ``(n, 6)`` and e ``(n, 9)``.

    Beam tilt holds what it can of p, odd Zernike coefficients the rest; ``factors`` are
    Cs lambda^2 in Å^3, ``(n,)``.
    """
    unique, row_of = np.unique(np.column_stack([odd, even, factors]), axis=0, return_inverse=True)
    odd, even, factors = unique[:, :_ODD_TERMS], unique[:, _ODD_TERMS:-1], unique[:, -1]
    scale = -2e-3 * math.pi * factors[:, None]
    tilt = np.divide(odd[:, [4, 3]], scale, out=np.zeros((len(odd), 2)), where=scale != 0)
    rest = odd_zernike(odd - tilt_polynomial(tilt, factors))
    columns = {name: format_column(tilt[:, axis]) for axis, name in enumerate(TILT)}
    for name, rows in ((ODD, rest), (EVEN, even_zernike(even))):
        columns[name] = [f"[{','.join(f'{value:.9g}' for value in row)}]" for row in rows]
    return {
        name: [values[row] for row in row_of.reshape(-1).tolist()]
        for name, values in columns.items()
    }


def zernike_coefficients(table: ParticleTable, column: str) -> Numbers | None:
    """Return the coefficients of a vector column, ``(n, 6)`` or ``(n, 9)``; None where all are 0.

    Those of higher orders are named in a warning: they are not used.

    Raises:
        InputError: text that is no vector of numbers.
    """
    if column not in table:
        return None
    count = _ODD_TERMS if column == ODD else _EVEN_TERMS
    texts = table.joined_text(column)
    parsed: dict[str, list[float]] = {}
    for row, text in enumerate(texts):
        if text in parsed:
            continue
        try:
            parsed[text] = [float(part) for part in text.strip("[]").split(",") if part.strip()]
        except ValueError:
            parsed[text] = [math.nan]
        if not np.isfinite(parsed[text]).all():
            raise InputError(
                f"{table.path}: column _{column}, row {row + 1}: {text!r:.80} is no vector of "
                "numbers [a,b,c]"
            )
    if any(any(values[count:]) for values in parsed.values()):
        warnings.warn(
            f"{table.path}: column _{column}: coefficients after the first {count} are not used",
            stacklevel=4,
        )
    rows = {
        text: [*values[:count], *[0.0] * (count - len(values))] for text, values in parsed.items()
    }
    coefficients = np.array([rows[text] for text in texts])
    return coefficients if coefficients.any() else None


def read_odd_polynomial(table: ParticleTable) -> Numbers | None:
    """Return p of each particle by beam tilt and odd Zernike coefficients; None where all are 0."""
    zernike = zernike_coefficients(table, ODD)
    polynomial = np.zeros((len(table), _ODD_TERMS)) if zernike is None else odd_polynomial(zernike)
    tilt = table.numbers_or(TILT, (0, 0))
    if tilt.any():
        missing = [name for name in (_CS, _VOLTAGE) if name not in table]
        if missing:
            warnings.warn(
                f"{table.path}: beam tilt is not used: _{missing[0]} is missing", stacklevel=4
            )
        else:
            cs, voltage = (torch.from_numpy(table.numbers(name)) for name in (_CS, _VOLTAGE))
            polynomial += tilt_polynomial(tilt, tilt_factors(cs, voltage))
    return polynomial if polynomial.any() else None


def read_magnification(table: ParticleTable) -> Numbers | None:
    """Return M of each particle, ``(n, 2, 2)``; None without or where all are the identity.

    Raises:
        InputError: a matrix that no microscope has.
    """
    values = table.numbers_or(MAGNIFICATION, _IDENTITY)
    if (values == _IDENTITY).all():
        return None
    matrices = values.reshape(-1, 2, 2)
    stretch = np.linalg.svd(matrices, compute_uv=False)
    wrong = (stretch[:, 0] > _LARGEST_MAGNIFICATION) | (stretch[:, 1] * _LARGEST_MAGNIFICATION < 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{table.path}: columns _rlnMagMat00 to _rlnMagMat11, row {row + 1}: "
            f"{values[row].tolist()} stretches by {stretch[row, 0]:.3g} and {stretch[row, 1]:.3g}; "
            f"at most {_LARGEST_MAGNIFICATION:g} is possible, and none is 1, 0, 0, 1"
        )
    return matrices


def read_distortion(table: ParticleTable) -> Distortion | None:
    """Return magnification and odd phases of each particle; None where there are none."""
    matrices, odd = read_magnification(table), read_odd_polynomial(table)
    if matrices is None and odd is None:
        return None
    matrices = np.tile(np.eye(2), (len(table), 1, 1)) if matrices is None else matrices
    odd = np.zeros((len(table), _ODD_TERMS)) if odd is None else odd
    return Distortion(torch.from_numpy(matrices), torch.from_numpy(odd))


def read_even_polynomial(table: ParticleTable) -> Numbers | None:
    """Return e of each particle by the even Zernike coefficients; None where all are 0."""
    zernike = zernike_coefficients(table, EVEN)
    return None if zernike is None else even_polynomial(zernike)
