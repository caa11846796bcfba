"""``vitreous auto``: particle images to poses and a refined map, without a start."""

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

_START = "Finding a start"


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="Particle table of RELION (.star) or cryoSPARC (.cs); poses in it are not used.",
        ),
    ],
    output: Output,
    sym: Sym = "C1",
    box: WorkingBox = None,
    shift_range: ShiftRange = None,
    mask_diameter: MaskDiameter = None,
    rounds: Rounds = 20,
    assignment: Assignment = "soft",
    scale: Scale = "one",
    refine_defocus: RefineDefocus = False,
    keep_all: KeepAll = False,
    images: Annotated[
        int,
        typer.Option(
            min=4,
            help="Particles of each half set from which a start is looked for; every further try "
            "takes twice as many.",
            rich_help_panel=_START,
        ),
    ] = 1000,
    starts: Annotated[
        int,
        typer.Option(
            min=1,
            help="Random starts of each half set; the one that explains the images best goes on.",
            rich_help_panel=_START,
        ),
    ] = 2,
    tries: Annotated[
        int,
        typer.Option(
            min=1,
            help="How often it is tried until both halves come to the same map.",
            rich_help_panel=_START,
        ),
    ] = 3,
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
    """From raw particles to a refined map: no orientations, no starting map, one command.

    Two half sets (rlnRandomSubset where given, else random) are independent from the first step to
    the last. Of each, some particles are taken from random blobs to a map at low resolution,
    several times; the best goes on. If the halves come to the same map, all particles are refined;
    if not, it is tried again with other starts and more particles, and in the end said that there
    is nothing. Writes what `vitreous refine` writes, and start.mrc.
    The hand of the map is arbitrary.

    Example: `vitreous auto particles.star --sym D2 -o OUT`
    """
    require_finite(context.params)

    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.inputs.working_set import ProcessingOptions
    from vitreous.jobs.refine.run import Request, refine
    from vitreous.methods.em.initial_model import InitialModelConfig

    request = Request(
        files=ParticleFiles.of(context.params),
        output=output,
        working=ProcessingOptions.of(context.params),
        search=InitialModelConfig(images=images, starts=starts, tries=tries),
        shift_range_angstrom=shift_range,
        settings=settings(rounds, assignment, scale, refine_defocus, keep_all),
        overwrite=overwrite,
        resume=resume,
        quiet=quiet,
    )
    done = refine(request)
    typer.secho(f"{done.verdict}.", bold=True)
    typer.echo(done.text)
