"""``vitreous backgrounds``: real noise, cut from micrographs where there is no particle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.options import prepare
from vitreous.cli.options.common import Output, Overwrite, Quiet, Seed, require_finite
from vitreous.cli.options.particles import AllowOutsideRoot, DataRoot, Passthrough, Permissive

_MICROGRAPHS = "Micrographs"


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES.star",
            help="The table given to `vitreous prepare`, with rlnMicrographName.",
        ),
    ],
    micrographs: Annotated[
        Path,
        typer.Option(
            help="Folder of the micrographs (.mrc, motion-corrected). The table's names are looked "
            "for below it as they are, then by their last part.",
            metavar="FOLDER",
            rich_help_panel=_MICROGRAPHS,
        ),
    ],
    output: Output,
    coordinates: Annotated[
        Path | None,
        typer.Option(
            help="Folder of picks, beside the table's rlnCoordinateX/Y or instead of them: "
            "NAME.box (EMAN), NAME.star or NAME_autopick.star for a micrograph NAME.mrc, in its "
            "pixels.",
            metavar="FOLDER",
            rich_help_panel=_MICROGRAPHS,
        ),
    ] = None,
    micrograph_apix: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="Pixel size of the micrographs in Å, if not what the table or the files say.",
            rich_help_panel=_MICROGRAPHS,
        ),
    ] = None,
    particle_diameter: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Diameter in Å of the disc around every particle that no window may touch; 75 % "
            "of the particles' box by default.",
            rich_help_panel=_MICROGRAPHS,
        ),
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing",
            help="Leave out micrographs that are not in the folder.",
            rich_help_panel=_MICROGRAPHS,
        ),
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Leave out damaged micrographs instead of stopping.",
            rich_help_panel=_MICROGRAPHS,
        ),
    ] = False,
    box: prepare.Box = None,
    apix: prepare.Apix = None,
    window: prepare.Window = None,
    normalise: prepare.Normalise = "ring",
    mask_diameter: prepare.MaskDiameter = None,
    ramp: prepare.Ramp = False,
    invert: prepare.Invert = False,
    float16: prepare.Float16 = False,
    input_apix: prepare.InputApix = None,
    passthrough: Passthrough = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    continue_: prepare.Continue = False,
    overwrite: Overwrite = False,
    threads: prepare.PieceThreads = 0,
    quiet: Quiet = False,
) -> None:
    """Cut background windows from micrographs: real noise for `vitreous abinit --noise`.

    For each micrograph as many windows as it has particles, touching none of them, holding nothing
    but the usual noise, overlapping only for want of room. They are cut with the particles' field
    of view and then treated as `vitreous prepare` treats particles: give the same options to both.
    Writes backgrounds.mrcs and backgrounds.star, which pairs each with its micrograph.

    Example: `vitreous backgrounds Extract/job012/particles.star --micrographs . --box 128 -o Noise`
    """
    require_finite(context.params)

    from vitreous.data.prepare import Preparation
    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.prepare.backgrounds import Request, backgrounds

    wanted = Preparation(
        box_size=box,
        target_pixel_size_angstrom=apix,
        window=window,
        normalise=normalise,
        mask_diameter_angstrom=mask_diameter,
        ramp=ramp,
        invert=invert,
    )
    found = ParticleFiles.of(context.params).open(need_ctf=False)
    request = Request(
        table=particles,
        particles=found,
        recipe=wanted,
        micrographs=micrographs,
        output=output,
        coordinates=coordinates,
        micrograph_apix=micrograph_apix,
        particle_diameter_angstrom=particle_diameter,
        float16=float16,
        skip_bad=skip_bad,
        skip_missing=skip_missing,
        allow_outside_root=allow_outside_root,
        permissive=permissive,
        seed=seed,
        resume=continue_,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    backgrounds(request)
