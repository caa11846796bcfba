"""``vitreous reconstruct``: particle images with known poses to two half maps and a map."""

from __future__ import annotations

import os

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.reconstruct.options import ReconstructOptions


@options_command(
    ReconstructOptions,
    {
        "wiener": typer.Option("--wiener", metavar="auto|none|NUMBER"),
        "scale": typer.Option("--scale", metavar="S|S..S|S,S"),
        "strength": typer.Option("--strength", metavar="auto|NUMBER"),
    },
    panels={
        "Method direct": ("wiener",),
        "Methods tv, wavelet, l2": ("scale", "strength", "allow_negative", "iterations"),
    },
)
def reconstruct(options: ReconstructOptions) -> object:
    """Reconstruct a map from particles whose orientations and shifts are known.

    Reads the poses from rlnAngleRot, rlnAngleTilt, rlnAnglePsi and rlnOriginXAngst,
    rlnOriginYAngst, and every image once (`direct`) or once for each scale. Writes half1.mrc and
    half2.mrc (not sharpened or weighted; the half sets are rlnRandomSubset where given, else
    random), map.mrc (all particles, regularised), fsc.csv, particles.star and report.html. The maps
    have the grey values of the imaged volume.

    Example: `vitreous reconstruct Refine3D/job012/run_data.star --sym D2 -o OUT`; for few or noisy
    particles `vitreous reconstruct few.star --method tv -o OUT`
    """
    # torch's threads, while they have nothing to do, must not take the cores from the others
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vitreous.jobs.reconstruct.run import reconstruct

    return reconstruct(options)
