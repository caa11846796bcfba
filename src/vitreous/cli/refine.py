"""``vitreous refine``: particle images and a rough map to poses and a refined map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    require_finite,
)
from vitreous.cli.options.particles import (
    AllowOutsideRoot,
    Apix,
    DataRoot,
    IgnoreCtf,
    Invert,
    Passthrough,
    Permissive,
    SkipBad,
    WorkingBox,
)
from vitreous.cli.options.refine import (
    Assignment,
    Continue,
    KeepAll,
    MaskDiameter,
    RefineDefocus,
    Rounds,
    Scale,
    ShiftRange,
    Sym,
    settings,
)


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="Particle table of RELION (.star) or cryoSPARC (.cs); poses in it are not used.",
        ),
    ],
    map_: Annotated[
        Path,
        typer.Option(
            "--map",
            help="Map to start from (.mrc), of any pixel size and grey scale. With --sym its axes "
            "must be RELION's.",
            metavar="FILE.mrc",
        ),
    ],
    output: Output,
    sym: Sym = "C1",
    start_resolution: Annotated[
        float,
        typer.Option(
            min=1,
            help="What the map is good for, in Å; nothing finer of it is used. Lower is bolder: "
            "both halves start from it, and share what it holds.",
        ),
    ] = 40.0,
    box: WorkingBox = None,
    shift_range: ShiftRange = None,
    mask_diameter: MaskDiameter = None,
    rounds: Rounds = 20,
    assignment: Assignment = "soft",
    scale: Scale = "one",
    refine_defocus: RefineDefocus = False,
    keep_all: KeepAll = False,
    invert: Invert = False,
    ignore_ctf: IgnoreCtf = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    skip_bad: SkipBad = False,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Continue = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Refine poses and map from a rough map: find every particle's pose, reconstruct, repeat.

    Two half sets (rlnRandomSubset where given, else random) are refined apart; only the FSC between
    them is shared, which leads the band. Ends when the halves agree no better. Writes half1.mrc and
    half2.mrc (unfiltered), map.mrc (all particles, regularised), sharpened.mrc,
    local_resolution.mrc, mask.mrc, particles.star (with the poses found), rejected.star (particles
    that noise explains better), micrographs.csv (with --refine-defocus or --scale micrograph),
    fsc.csv, history.jsonl and report.html.

    Example: `vitreous refine particles.star --map abinit/map.mrc --sym D2 -o OUT`
    """
    require_finite(context.params)

    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.inputs.working_set import ProcessingOptions
    from vitreous.jobs.refine.run import Request, refine

    request = Request(
        files=ParticleFiles.of(context.params),
        output=output,
        working=ProcessingOptions.of(context.params),
        start=map_,
        start_resolution_angstrom=start_resolution,
        shift_range_angstrom=shift_range,
        settings=settings(rounds, assignment, scale, refine_defocus, keep_all),
        overwrite=overwrite,
        resume=resume,
        quiet=quiet,
    )
    done = refine(request)
    typer.secho(f"{done.verdict}.", bold=True)
    typer.echo(done.text)
