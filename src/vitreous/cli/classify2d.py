"""``vitreous classify2d``: class averages of particles, free of noise and CTF."""

from __future__ import annotations

from vitreous.cli.hetero import CLUSTERS, LATENT_FLAGS, MODEL
from vitreous.cli.options.command import options_command
from vitreous.jobs.class2d.options import Classify2dOptions


@options_command(
    Classify2dOptions,
    {**LATENT_FLAGS, "symmetry": None},
    panels={"Model": MODEL, "Clusters": CLUSTERS},
)
def classify2d(options: Classify2dOptions) -> object:
    """Class images of particles: their views, without noise and CTF.

    Every particle finds its class, its in-plane rotation and its shift, every class its image, low
    frequencies first. Writes classes.mrcs (an image for each class, the largest first),
    classes.star, particles.star (class, angle and origin of every particle, as in RELION's 2D
    classification), report.html and checkpoints. To go on with the particles of some classes:
    `vitreous select OUT/particles.star good.star --where 'rlnClassNumber < 12'`.

    Example: `vitreous classify2d particles.star -o OUT`
    """
    from vitreous.jobs.class2d.run import classify2d

    return classify2d(options)
