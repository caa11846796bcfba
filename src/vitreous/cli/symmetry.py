"""``vitreous symmetry``: which point group do two half maps obey, and where are its axes?"""

from __future__ import annotations

from vitreous.cli.options.command import options_command
from vitreous.cli.options.flags import HALF_MAPS
from vitreous.jobs.maps.options import SymmetryOptions


@options_command(SymmetryOptions, HALF_MAPS)
def symmetry(options: SymmetryOptions) -> object:
    """Find the point group of a map that was reconstructed without one.

    Tries Cn and Dn of n = 2 to 8 and 12, T, O and I, anywhere in the map, and measures how well
    half map 1 agrees with half map 2 rotated about the axes found: 1 means as well as with it
    unrotated, which only a true symmetry reaches. Give half maps made in C1: symmetry that was
    imposed on a map is found again, whether the molecule has it or not. Prints each
    candidate with the rotation (rot, tilt, psi in degrees) and shift (x, y, z in Å) that bring its
    axes to RELION's.

    Example: `vitreous symmetry OUT/half1.mrc OUT/half2.mrc -o STANDARD`
    """
    from vitreous.jobs.maps.symmetry import find

    return find(options)
