"""Resolutions and how they are written."""

from __future__ import annotations

import math


class AtNyquist(float):
    """Resolution in Å of a curve that never falls below its threshold: Nyquist is a bound only.

    >>> angstrom(AtNyquist(8.0))
    'no worse than Nyquist (8.0 Å)'
    """


def angstrom(value: float, digits: int = 1) -> str:
    """Format a resolution.

    >>> angstrom(7.25), angstrom(float("inf"))
    ('7.2 Å', 'none')
    """
    text = f"{value:.{digits}f} Å" if math.isfinite(value) else "none"
    return f"no worse than Nyquist ({text})" if isinstance(value, AtNyquist) else text
