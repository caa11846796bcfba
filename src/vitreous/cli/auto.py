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
    the last. For each, an initial model is made from some of the particles (--images), several
    times (--starts), each time from other random density; the best one goes on. If the halves come
    to the same map, all particles are refined. If not, it is tried again (--tries), and in the end
    the verdict is NOT SOLVED. Writes start.mrc and half maps; if it is solved, without
    --only-start, also what `vitreous refine` writes. The hand of the map is arbitrary.

    Time grows with --box, --images, --starts and --shift-range, and falls with --sym.

    Example: `vitreous auto particles.star --sym D2 -o OUT`
    """
    from vitreous.jobs.refine.run import auto

    return auto(options)
