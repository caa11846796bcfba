"""``vitreous auto``: particle images to poses and a refined map, without a start."""

from __future__ import annotations

from vitreous.cli.options.command import options_command
from vitreous.cli.refine import SOLVER
from vitreous.jobs.refine.options import AutoOptions


@options_command(
    AutoOptions,
    panels={"Initial model": ("images", "starts", "tries", "only_start"), "Solver": SOLVER},
)
def auto(options: AutoOptions) -> object:
    """From raw particles to a refined map: no orientations, no starting map, one command.

    Two half sets (rlnRandomSubset where given, else random) are independent from the first step to
    the last. For each, some particles are taken from random blobs to a map at low resolution,
    several times; the best goes on. If the halves come to the same map, all particles are refined;
    if not, it is tried again with other starts and more particles, and in the end the verdict is
    NOT SOLVED. Writes what `vitreous refine` writes, and start.mrc. With --only-start it ends with
    the initial model and its half maps. The hand of the map is arbitrary.

    Example: `vitreous auto particles.star --sym D2 -o OUT`
    """
    from vitreous.jobs.refine.run import auto

    return auto(options)
