"""``vitreous reconstruct``: particle images with known poses to two half maps and a map."""

from __future__ import annotations

import os
from enum import StrEnum
from itertools import pairwise
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
    number_or_auto,
    refuse_options,
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
    WorkingBox,
)
from vitreous.core.errors import UsageError

_DIRECT, _REGULARISED = "Method direct", "Methods tv, wavelet, l2"
_OWN = {  # options that only one kind of method has
    True: {"wiener"},
    False: {"scale", "strength", "allow_negative", "iterations", "resume"},
}


class Method(StrEnum):
    """Ways to a map when poses are known."""

    DIRECT = "direct"
    TV = "tv"
    WAVELET = "wavelet"
    L2 = "l2"


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
        Method,
        typer.Option(
            help="`direct`: weighted Fourier gridding, in one pass. The others solve regularised "
            "least squares: `tv` (total variation), for few or noisy particles; `wavelet` (l1 norm "
            "of wavelet coefficients); `l2` (squared norm)."
        ),
    ] = Method.DIRECT,
    sym: Annotated[
        str,
        typer.Option(
            help="Point group of the molecule (C1, C4, D2, T, O, I1 ...), imposed exactly about "
            "RELION's axes."
        ),
    ] = "C1",
    box: WorkingBox = None,
    wiener: Annotated[
        str,
        typer.Option(
            help="How map.mrc is regularised: `auto` (by the FSC between the half maps), `none`, "
            "or the noise's power over the signal's, a number. The half maps never are.",
            metavar="auto|none|NUMBER",
            rich_help_panel=_DIRECT,
        ),
    ] = "auto",
    scale: Annotated[
        str,
        typer.Option(
            help="Spacing of the basis in pixels, 1 to 4. `2` solves at that scale; `4..1` or "
            "`4,2,1` go from coarse to fine. Coarse scales are fast and bear wrong angles better, "
            "but end at 2 s pixels.",
            metavar="S|S..S|S,S",
            rich_help_panel=_REGULARISED,
        ),
    ] = "2..1",
    strength: Annotated[
        str,
        typer.Option(
            help="Weight of the regulariser for all particles: `auto` (the one whose map of either "
            "half set fits the other's images best) or a number; a run prints the one it took.",
            metavar="auto|NUMBER",
            rich_help_panel=_REGULARISED,
        ),
    ] = "auto",
    allow_negative: Annotated[
        bool,
        typer.Option(
            "--allow-negative",
            help="Do not forbid densities below the solvent's.",
            rich_help_panel=_REGULARISED,
        ),
    ] = False,
    iterations: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most iterations for each of the three maps; they end earlier once settled.",
            rich_help_panel=_REGULARISED,
        ),
    ] = 100,
    mask_diameter: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Diameter in Å of a sphere around the molecule: the FSC is taken within it and "
            "map.mrc is zero outside; regularised methods look for density only there. By default "
            "the FSC's mask is found from the map.",
        ),
    ] = None,
    invert: Invert = False,
    ignore_ctf: IgnoreCtf = False,
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
    resume: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Go on with the run in the folder from its checkpoints (regularised methods); "
            "give the same options.",
        ),
    ] = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Reconstruct a map from particles whose orientations and shifts are known.

    Reads the poses from rlnAngleRot, rlnAngleTilt, rlnAnglePsi and rlnOriginXAngst,
    rlnOriginYAngst, and every image once (`direct`) or once for each scale. Writes half1.mrc and
    half2.mrc (not sharpened or weighted; the half sets are rlnRandomSubset where given, else
    random), map.mrc (all particles, regularised), fsc.csv, particles.star and report.html. The maps
    have the grey values of the imaged volume.

    Example: `vitreous reconstruct Refine3D/job012/run_data.star --sym D2 -o OUT`; for few or noisy
    particles `vitreous reconstruct few.star --method tv -o OUT`
    """
    require_finite(context.params)
    noise_to_signal = 0.0 if wiener == "none" else number_or_auto("--wiener", wiener)
    scales, weight = _scales(scale), number_or_auto("--strength", strength)
    refuse_options(context, _OWN[method is not Method.DIRECT], method.value)
    # torch's threads, while they have nothing to do, must not take the cores from the others
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.reconstruct.plan import Request
    from vitreous.jobs.reconstruct.run import reconstruct
    from vitreous.methods.reconstruct.model_based import ModelBasedConfig

    files = ParticleFiles.of(context.params)
    prior = None
    if method is not Method.DIRECT:
        prior = ModelBasedConfig(
            regulariser=method.value,
            strength=weight,
            scales=scales,
            nonnegative=not allow_negative,
            iterations=iterations,
        )
    request = Request(
        files=files,
        output=output,
        method=method.value,
        prior=prior,
        symmetry=sym,
        box_size=box,
        noise_to_signal=noise_to_signal,
        mask_diameter_angstrom=mask_diameter,
        invert=invert,
        ignore_ctf=ignore_ctf,
        skip_bad=skip_bad,
        seed=seed,
        overwrite=overwrite,
        resume=resume,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    done = reconstruct(request)
    typer.secho(f"{done.verdict}.", bold=True)
    typer.echo(done.text)


def _scales(text: str) -> tuple[int, ...]:
    """The scales of ``--scale``.

    >>> _scales("2"), _scales("4..1"), _scales("4,2,1")
    ((2,), (4, 3, 2, 1), (4, 2, 1))
    """
    first, dots, last = text.partition("..")
    try:
        if dots:
            scales = tuple(range(int(first), int(last) - 1, -1))
        else:
            scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        scales = ()
    falling = all(a > b for a, b in pairwise(scales))
    if not scales or not falling or scales[0] > 4 or scales[-1] < 1:
        raise UsageError(
            f"--scale {text}: give 1 to 4, from coarse to fine, such as 2, 4..1, 4,2,1"
        )
    return scales
