"""``vitreous refine``: particle images and a rough map to poses and a refined map."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.refine.options import ROUNDS, RefineOptions

SOLVER = ("shift_range_angstrom", "mask_diameter_angstrom", *ROUNDS)


@options_command(
    RefineOptions,
    {"start_map": typer.Option("--map", metavar="FILE.mrc")},
    panels={"Solver": SOLVER},
)
def refine(options: RefineOptions) -> object:
    """Refine poses and map from a rough map: find every particle's pose, reconstruct, repeat.

    The first round searches all rotations and shifts of every particle under the map; poses of the
    table are not used. Two half sets (rlnRandomSubset where given, else random) are refined apart;
    only the FSC between them is shared, which sets the band. Ends when the halves agree no better.
    Writes half1.mrc and half2.mrc (unfiltered), map.mrc (all particles, regularised),
    sharpened.mrc, local_resolution.mrc, mask.mrc, particles.star (with the refined poses),
    rejected.star (particles that noise explains better), micrographs.csv (with --refine-defocus or
    --scale micrograph), fsc.csv, history.jsonl and report.html.

    Example: `vitreous refine particles.star --map abinit/map.mrc --sym D2 -o OUT`

    Optics too: `vitreous refine particles.star --map map.mrc --start-resolution 10
    --refine-aberrations --refine-defocus particle --scale micrograph -o OUT`
    """
    from vitreous.jobs.refine.run import refine

    return refine(options)
