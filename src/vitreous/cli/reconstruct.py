"""``vitreous reconstruct``: particle images with known poses to two half maps and a map."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitreous.cli.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    require_finite,
)
from vitreous.cli.particle_options import (
    AllowOutsideRoot,
    Apix,
    DataRoot,
    Invert,
    Passthrough,
    Permissive,
)
from vitreous.core.errors import UsageError


class Method(StrEnum):
    """Ways to a map when poses are known."""

    DIRECT = "direct"


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="Particle table with angles (.star, .cs); of a refinement, say.",
        ),
    ],
    output: Output,
    method: Annotated[
        Method, typer.Option(help="`direct`: weighted Fourier gridding, in one pass.")
    ] = Method.DIRECT,
    sym: Annotated[
        str,
        typer.Option(
            help="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
            "RELION's axes."
        ),
    ] = "C1",
    box: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Crop to this many pixels in Fourier space (the field of view stays, the pixel "
            "grows); the particles' own box by default.",
        ),
    ] = None,
    wiener: Annotated[
        str,
        typer.Option(
            help="How map.mrc is regularised: `auto` (by the FSC between the half maps), `none`, "
            "or the noise's power over the signal's, a number. The half maps never are.",
            metavar="auto|none|NUMBER",
        ),
    ] = "auto",
    mask_diameter: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Diameter in Å of a sphere around the molecule: the FSC is taken within it and "
            "map.mrc is zero outside. By default the FSC's mask is found from the map.",
        ),
    ] = None,
    invert: Invert = False,
    ignore_ctf: Annotated[
        bool,
        typer.Option("--ignore-ctf", help="Take the images as free of CTF (already corrected)."),
    ] = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Look through all images first and leave out those that are constant, NaN or "
            "infinite.",
        ),
    ] = False,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Reconstruct a map from particles whose orientations and shifts are known.

    Reads the poses from rlnAngleRot, rlnAngleTilt, rlnAnglePsi and rlnOriginXAngst,
    rlnOriginYAngst, and every image once. Writes half1.mrc and half2.mrc (unfiltered; the half sets
    are rlnRandomSubset where given, else random), map.mrc (all particles, regularised), fsc.csv,
    particles.star and report.html. The maps have the grey values of the imaged volume.

    Example: `vitreous reconstruct Refine3D/job012/run_data.star --sym D2 -o OUT`
    """
    require_finite(context.params)
    noise_to_signal = _noise_to_signal(wiener)
    # torch's threads, while they have nothing to do, must not take the cores from the others
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from vitreous.cli.particle_sources import ParticleFiles
    from vitreous.cli.reconstruct_run import Request, reconstruct

    files = ParticleFiles(
        particles,
        apix=apix,
        data_root=data_root,
        allow_outside_root=allow_outside_root,
        passthrough=tuple(passthrough or ()),
        permissive=permissive,
    )
    request = Request(
        files=files,
        output=output,
        method=method.value,
        symmetry=sym,
        box_size=box,
        noise_to_signal=noise_to_signal,
        mask_diameter_angstrom=mask_diameter,
        invert=invert,
        ignore_ctf=ignore_ctf,
        skip_bad=skip_bad,
        seed=seed,
        overwrite=overwrite,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    done = reconstruct(request)
    typer.secho(f"{done.verdict}.", bold=True)
    typer.echo(done.text)


def _noise_to_signal(wiener: str) -> float | None:
    """The number of ``--wiener``; None stands for ``auto``.

    >>> _noise_to_signal("auto"), _noise_to_signal("none"), _noise_to_signal("0.5")
    (None, 0.0, 0.5)
    """
    if wiener in ("auto", "none"):
        return None if wiener == "auto" else 0.0
    try:
        number = float(wiener)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"--wiener {wiener}: give auto, none or a number from 0 on")
    return number
