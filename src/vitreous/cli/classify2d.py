"""``vitreous classify2d``: class images of particles, free of noise and CTF."""

from __future__ import annotations

from typing import Annotated

import typer

from vitreous.cli.common import Device, Output, Overwrite, Quiet, Seed, Threads, require_finite
from vitreous.cli.hetero import request, tell
from vitreous.cli.hetero_options import (
    Config,
    Effort,
    Latent,
    MinCluster,
    MinSamples,
    Particles,
    Shift,
    Space,
)
from vitreous.cli.particle_options import (
    AllowOutsideRoot,
    Apix,
    DataRoot,
    Invert,
    Passthrough,
    Permissive,
    SkipBad,
    WorkingBox,
)
from vitreous.cli.refine_options import Continue


def command(
    context: typer.Context,
    particles: Particles,
    output: Output,
    classes: Annotated[
        int, typer.Option(min=1, help="Class images of each cluster, at most.")
    ] = 16,
    box: WorkingBox = None,
    latent: Latent = None,
    shift: Shift = "none",
    effort: Effort = 1.0,
    config: Config = None,
    min_cluster: MinCluster = None,
    min_samples: MinSamples = 10,
    space: Space = "auto",
    invert: Invert = False,
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
    """Class images of particles: a model of their views, without noise and CTF.

    Trains a VAE-GAN whose generator makes images instead of volumes. Finds clusters of its
    embedding by density, and in each cluster class images by k-means. Writes classes.mrcs (an image
    for each class), classes.star, particles.star (class and latents of every particle), report.html
    and checkpoints.

    Example: `vitreous classify2d particles.star -o OUT`
    """
    require_finite(context.params)
    from vitreous.cli.hetero_maps import Clustering
    from vitreous.cli.hetero_run import run

    clustering = Clustering(min_cluster, min_samples, space, assign_all=True)
    given = {**context.params, "method": "classes"}
    tell(run(request(given, clustering=clustering, points=classes)))
