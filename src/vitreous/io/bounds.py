"""Physical bounds of the columns of a particle table, beyond which a number is a mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError

_DEGREES = (-1e4, 1e4)
_SHIFT_ANGSTROM = (-1e5, 1e5)
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), _DEGREES),
    **dict.fromkeys(("rlnDefocusAngle", "rlnPhaseShift"), _DEGREES),
    **dict.fromkeys(("rlnDefocusU", "rlnDefocusV"), (-1e6, 1e6)),  # Å
    **dict.fromkeys(("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst"), _SHIFT_ANGSTROM),
    **dict.fromkeys(("rlnOriginX", "rlnOriginY", "rlnOriginZ"), (-1e5, 1e5)),  # px
    **dict.fromkeys(("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"), (-1e7, 1e7)),
    **dict.fromkeys(("rlnBeamTiltX", "rlnBeamTiltY"), (-1e3, 1e3)),  # mrad
    **dict.fromkeys(("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"), (-10, 10)),
    "rlnVoltage": (1, 1e4),  # kV
    "rlnSphericalAberration": (-100, 100),  # mm
    "rlnCtfBfactor": (-1e6, 1e6),  # Å²
    "rlnCtfScalefactor": (-1e6, 1e6),
    "rlnMicrographPreExposure": (-1e5, 1e5),  # e/Å²
    "rlnMagnification": (-1e9, 1e9),
    "rlnImageSize": (0, 1e6),  # px
}
PIXEL_SIZE_ANGSTROM = (1e-3, 1e5)


def check_bounds(name: str, numbers: NDArray[np.float64], source: Path | str) -> None:
    """Refuse numbers of a column that are beyond its physical bounds.

    Raises:
        InputError: the text names the row and the bounds.

    >>> check_bounds("rlnVoltage", np.array([300.0, 200.0]), "x.star")
    """
    low, high = BOUNDS.get(name, (-np.inf, np.inf))
    bad = np.flatnonzero((numbers < low) | (numbers > high))
    if bad.size:
        raise InputError(
            f"{source}: column _{name}, row {bad[0] + 1}: must be from {low:g} to {high:g}, got "
            f"{numbers[bad[0]]:g}; correct it or leave the row out"
        )
