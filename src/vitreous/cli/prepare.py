"""``vitreous prepare``: particle images resampled and normalised, ready for a reconstruction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import prepare
from vitreous.cli.options.common import Output, Overwrite, Quiet, require_finite
from vitreous.cli.options.particles import AllowOutsideRoot, DataRoot, Passthrough, Permissive


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(metavar="PARTICLES.star", help="RELION table of the particles, 3.0 to 5."),
    ],
    output: Output,
    box: prepare.Box = None,
    apix: prepare.Apix = None,
    window: prepare.Window = None,
    normalise: prepare.Normalise = "ring",
    mask_diameter: prepare.MaskDiameter = None,
    ramp: prepare.Ramp = False,
    invert: prepare.Invert = False,
    phase_flip: Annotated[
        bool,
        typer.Option(
            "--phase-flip",
            help="Multiply each spectrum by the sign of its CTF, and say so in the table "
            "(rlnCtfDataArePhaseFlipped). For other programs: `vitreous abinit` wants images as "
            "recorded and refuses flipped ones.",
            rich_help_panel="Grey values",
        ),
    ] = False,
    float16: prepare.Float16 = False,
    first: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first so many rows.", rich_help_panel="Input"),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out images with NaN or infinite pixels instead of stopping. Constant "
            "images are left out in any case.",
            rich_help_panel="Input",
        ),
    ] = False,
    input_apix: prepare.InputApix = None,
    passthrough: Passthrough = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    continue_: prepare.Continue = False,
    overwrite: Overwrite = False,
    threads: prepare.PieceThreads = 0,
    quiet: Quiet = False,
) -> None:
    """Resample, normalise and invert particle images, into a new stack with its table.

    Works in this order: phase flip, window, Fourier crop, inversion, ramp, normalisation. Writes
    particles.mrcs and particles.star (all columns of the input, same order; image names, pixel size
    and image size updated; the old names in rlnImageOriginalName), and excluded.txt if images had
    to be left out. Memory stays below 1 GB whatever the size of the input, which is never changed.

    Stop it with Ctrl-C and go on with --continue: the result is the same, bit for bit.

    Example: `vitreous prepare Extract/job012/particles.star --box 128 -o Prepared`
    """
    require_finite(context.params)

    from vitreous.data.prepare import Preparation
    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.prepare.run import Request, prepare

    wanted = Preparation(
        box_size=box,
        pixel_size_angstrom=apix,
        window=window,
        normalise=normalise,
        mask_diameter_angstrom=mask_diameter,
        ramp=ramp,
        invert=invert,
        phase_flip=phase_flip,
    )
    found = ParticleFiles.of(context.params).open(need_ctf=False)
    if first is not None:
        found = found.select(slice(0, first))
    request = Request(
        table=particles,
        particles=found,
        recipe=wanted,
        output=output,
        float16=float16,
        skip_bad=skip_bad,
        resume=continue_,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    prepare(request)
