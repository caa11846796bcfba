r"""Links between cryoSPARC's aberration fields and RELION's columns of the optics table.

cryoSPARC has lengths in Å: a shift of the beam, the coefficients of coma (``tilt_A``, Cs times the
beam tilt), trefoil and fourth order (secondary astigmatism and tetrafoil), and the magnification
matrix less the identity. Their phases are, with the wavelength :math:`\lambda`,

.. math::

    \varphi &= -2 \pi k \cdot s - 2 \pi \lambda^2 |k|^2 k \cdot t
        - \tfrac{2 \pi}{3} \lambda^2 |k|^3 (f_0 \cos 3\theta + f_1 \sin 3\theta), \\
    \gamma &\mathrel{+}= 2 \pi \lambda^3 |k|^4 (q_0 \cos 2\theta + q_1 \sin 2\theta)
        + \tfrac{\pi}{2} \lambda^3 |k|^4 (q_2 \cos 4\theta + q_3 \sin 4\theta),

as other programs read them; cryoSPARC does not document them.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.data.aberrations import (
    EVEN,
    MAGNIFICATION,
    ODD,
    TILT,
    even_polynomial,
    even_zernike,
    odd_polynomial,
    odd_zernike,
    zernike_coefficients,
)
from vitreous.data.cryosparc.links import Columns, CsFields, Fields, Link
from vitreous.data.particle_table import ParticleTable
from vitreous.data.tables import Numbers
from vitreous.physics.ctf import electron_wavelength_angstrom

WIDTHS = {
    "ctf/shift_A": 2,
    "ctf/tilt_A": 2,
    "ctf/trefoil_A": 2,
    "ctf/tetra_A": 4,
    "ctf/anisomag": 4,
}
_TETRA = np.array([2 * math.pi, 2 * math.pi, math.pi / 2, math.pi / 2])
_NEGLIGIBLE = 1e-9


def nonzero_fields(a: CsFields) -> dict[str, Numbers]:
    """Return the aberration fields that are not zero for all particles."""
    fields = {name: a.numbers(name, width) for name, width in WIDTHS.items() if name in a}
    return {name: values for name, values in fields.items() if values.any()}


def aberration_columns(a: CsFields, rows: NDArray[np.int64]) -> Columns:
    """Return columns of the optics table, a value for each of ``rows`` of the particles."""
    fields = {name: values[rows] for name, values in nonzero_fields(a).items()}
    if not fields or "ctf/accel_kv" not in a or "ctf/cs_mm" not in a:
        return {}
    columns: Columns = {}
    wavelength = _wavelengths(a.numbers("ctf/accel_kv")[rows])
    if "ctf/tilt_A" in fields:
        cs = a.numbers("ctf/cs_mm")[rows] * 1e4  # Å for each mrad
        tilt = fields["ctf/tilt_A"] / np.where(cs > 0, cs, np.inf)[:, None]
        columns |= {name: tilt[:, i].astype(str).tolist() for i, name in enumerate(TILT)}
    if "ctf/shift_A" in fields or "ctf/trefoil_A" in fields:
        none = np.zeros((len(rows), 2))
        shift, trefoil = (fields.get(f"ctf/{name}_A", none) for name in ("shift", "trefoil"))
        odd = np.zeros((len(rows), 6))
        odd[:, [1, 0]] = -2 * math.pi * shift
        odd[:, [5, 2]] = -2 * math.pi / 3 * wavelength[:, None] ** 2 * trefoil
        columns[ODD] = _vectors(odd_zernike(odd))
    if "ctf/tetra_A" in fields:
        even = np.zeros((len(rows), 9))
        even[:, 5:] = _TETRA * wavelength[:, None] ** 3 * fields["ctf/tetra_A"] / (2 * math.pi)
        columns[EVEN] = _vectors(even_zernike(even))
    if "ctf/anisomag" in fields:
        matrix = fields["ctf/anisomag"] + [1, 0, 0, 1]
        columns |= {name: matrix[:, i].astype(str).tolist() for i, name in enumerate(MAGNIFICATION)}
    return columns


def _wavelengths(voltage_kv: Numbers) -> Numbers:
    return np.asarray(electron_wavelength_angstrom(torch.from_numpy(voltage_kv)).numpy())


def _vectors(values: Numbers) -> list[str]:
    return [f"[{','.join(row)}]" for row in (values + 0.0).astype(str).tolist()]


def _odd_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    """Compute shift, tilt and trefoil, those that are not zero for all particles."""
    zernike, tilt = zernike_coefficients(table, ODD), table.numbers_or(TILT, (0, 0))
    needed = ("rlnVoltage", "rlnSphericalAberration")
    if (zernike is None and not tilt.any()) or any(name not in table for name in needed):
        return {}
    odd = np.zeros((len(table), 6)) if zernike is None else odd_polynomial(zernike)
    squared = _wavelengths(table.numbers("rlnVoltage"))[:, None] ** 2
    values = {
        "ctf/shift_A": odd[:, [1, 0]] / (-2 * math.pi),
        "ctf/tilt_A": tilt * table.numbers("rlnSphericalAberration")[:, None] * 1e4
        - odd[:, [4, 3]] / (2 * math.pi * squared),
        "ctf/trefoil_A": odd[:, [5, 2]] * 3 / (-2 * math.pi * squared),
    }
    return {name: (v + 0.0).astype(np.float32) for name, v in values.items() if v.any()}


def warn_of_terms_without_field(table: ParticleTable) -> None:
    """Warn of even terms of the table that no field of cryoSPARC can hold."""
    zernike = zernike_coefficients(table, EVEN)
    even = np.zeros((1, 9)) if zernike is None else np.abs(even_polynomial(zernike))
    if even[:, :5].max() > _NEGLIGIBLE * even.max():
        warnings.warn(
            f"{table.path}: column _{EVEN}: cryoSPARC has no field for its terms of orders 0 and 2 "
            "and its spherical term; they are kept for a conversion back only",
            stacklevel=4,
        )


def _even_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    zernike = zernike_coefficients(table, EVEN)
    if zernike is None or "rlnVoltage" not in table:
        return {}
    even = even_polynomial(zernike)
    cubed = _wavelengths(table.numbers("rlnVoltage"))[:, None] ** 3
    tetra = 2 * math.pi * even[:, 5:] / (_TETRA * cubed)
    return {"ctf/tetra_A": (tetra + 0.0).astype(np.float32)} if tetra.any() else {}


def _magnification_to_cs(table: ParticleTable, _: CsFields) -> Fields:
    matrix = table.numbers_or(MAGNIFICATION, (1, 0, 0, 1)) - [1, 0, 0, 1]
    return {"ctf/anisomag": matrix.astype(np.float32)} if matrix.any() else {}


LINKS: tuple[Link, ...] = (
    Link(tuple(WIDTHS)[:3], (*TILT, ODD), lambda a: {}, _odd_to_cs),
    Link(("ctf/tetra_A",), (EVEN,), lambda a: {}, _even_to_cs),
    Link(("ctf/anisomag",), MAGNIFICATION, lambda a: {}, _magnification_to_cs),
)
"""All links; their columns are those of the optics table, see :func:`aberration_columns`."""
