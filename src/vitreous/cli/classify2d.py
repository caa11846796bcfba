"""``vitreous classify2d``: class images of particles, free of noise and CTF."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitreous.cli.hetero import request, tell
from vitreous.cli.options.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    require_finite,
)
from vitreous.cli.options.hetero import (
    Config,
    Effort,
    Latent,
    MinCluster,
    MinSamples,
    Particles,
    Shift,
    Space,
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
from vitreous.cli.options.refine import Continue, MaskDiameter, ShiftRange
from vitreous.core.errors import UsageError

IN_EACH_CLUSTER = 16
_GAN_ONLY = {"latent": None, "shift": "none", "min_cluster": None, "min_samples": 10}


def command(
    context: typer.Context,
    particles: Particles,
    output: Output,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Class images, at most. By default 50, or one for every 100 particles; with "
            "--no-align 16 in each cluster.",
        ),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align/--no-align",
            help="Find classes together with the turn and shift of every particle. --no-align: "
            "by a VAE-GAN that looks for neither, whose classes tell views apart less well.",
        ),
    ] = True,
    box: WorkingBox = None,
    mask_diameter: MaskDiameter = None,
    shift_range: ShiftRange = None,
    latent: Latent = None,
    shift: Shift = "none",
    effort: Effort = 1.0,
    config: Config = None,
    min_cluster: MinCluster = None,
    min_samples: MinSamples = 10,
    space: Space = "auto",
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
    """Class images of particles: their views, without noise and CTF.

    Every particle finds its class, its turn in the plane and its shift, every class its image, low
    frequencies first. Writes classes.mrcs (an image for each class, the largest first),
    classes.star, particles.star (class, angle and origin of every particle, as of RELION's 2D
    classification), report.html and checkpoints. To go on with the particles of some classes:
    `vitreous select OUT/particles.star good.star --where 'rlnClassNumber < 12'`.

    Example: `vitreous classify2d particles.star -o OUT`
    """
    require_finite(context.params)
    given = dict(context.params)
    if align:
        tell(_averages(given))
        return
    from vitreous.jobs.hetero.class_maps import Clustering
    from vitreous.jobs.hetero.run import run

    clustering = Clustering(min_cluster, min_samples, space, assign_all=True)
    given |= {"align": False, "method": "classes"}
    more = {"clustering": clustering, "shift_range_angstrom": shift_range}
    tell(run(request(given, points=classes or IN_EACH_CLUSTER, **more)))


def _averages(given: dict[str, Any]) -> Any:
    from vitreous.jobs.class2d.run import Request, run
    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.inputs.working_set import ProcessingOptions

    for name, usual in _GAN_ONLY.items():
        if given[name] != usual:
            raise UsageError(f"--{name.replace('_', '-')}: goes with --no-align")
    return run(
        Request(
            files=ParticleFiles.of(given),
            output=given["output"],
            working=ProcessingOptions.of(given),
            classes=given["classes"],
            shift_range_angstrom=given["shift_range"],
            effort=given["effort"],
            config=given["config"],
            overwrite=given["overwrite"],
            resume=given["resume"],
            quiet=given["quiet"],
        )
    )
