"""``vitreous check``: do the images agree with what their table says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options.common import Overwrite, Quiet, Seed, Threads, require_finite
from vitreous.cli.options.particles import (
    Q0,
    AllowOutsideRoot,
    Apix,
    Cs,
    CtfFile,
    DataRoot,
    Invert,
    Kv,
    Passthrough,
    PerMicrograph,
    Permissive,
)
from vitreous.core.errors import UsageError

WRONG = 3


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="Particle table (.star, .cs); or a stack (.mrcs) with --ctf and "
            "--particles-per-micrograph.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the evidence here as well: report.html, findings.json.",
            metavar="FOLDER",
        ),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Write a corrected table beside the original: NAME_fixed.star. Images are not "
            "changed; bad ones are left out.",
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Look at so many images only, evenly spaced: a quick look at a large stack. By "
            "default every image is read once.",
        ),
    ] = None,
    invert: Invert = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    ctf: CtfFile = None,
    particles_per_micrograph: PerMicrograph = None,
    kv: Kv = None,
    cs: Cs = None,
    q0: Q0 = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Test a particle table against its images: signs, units, conventions, damaged images.

    Needs no map and no model. Rings in the images' power spectra tell whether pixel size, voltage
    and defocus are right; the particles' centres tell dark protein from white; with orientations,
    quick reconstructions of two halves tell in which convention angles and shifts were written.
    Every verdict comes with its evidence and a remedy.

    Exit code 0: nothing is wrong. 3: something is; the remedy says what to do.

    Example: `vitreous check particles.star -o CHECK --fix`
    """
    require_finite(context.params)
    if fix and sample is not None:
        raise UsageError("--fix and --sample exclude each other: a table is mended as a whole")

    from vitreous.jobs.check import run as check_run
    from vitreous.jobs.inputs.particles import ParticleFiles

    files = ParticleFiles.of(context.params)
    faults = check_run.check(
        files,
        output=output,
        fix=fix,
        sample=sample,
        invert=invert,
        seed=seed,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    if faults:
        raise typer.Exit(WRONG)
