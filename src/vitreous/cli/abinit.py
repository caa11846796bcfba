"""``vitreous abinit``: particle images to two half maps, without poses and without a model."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.cryogan.options import CryoGanOptions


@options_command(
    CryoGanOptions,
    {
        "noise": typer.Option("--noise", metavar="white|FILE"),
        "noise_pixel_size_angstrom": "--noise-apix",
        "settings_file": typer.Option("--config", metavar="FILE.toml"),
        "save_minutes": "--checkpoint-every",
    },
    panels={
        "Noise and imaging": (
            "noise",
            "noise_pixel_size_angstrom",
            "shift",
            "poses",
            "envelope_nyquist",
            "b_factor_angstrom2",
        ),
        "Solver": (
            "preset",
            "settings_file",
            "effort",
            "mask_diameter_angstrom",
            "learning_rate_volume",
            "learning_rate_critic",
        ),
    },
)
def abinit(options: CryoGanOptions) -> object:
    """Reconstruct from particle images alone by CryoGAN: no orientations, no starting map.

    Splits the particles into two half sets (rlnRandomSubset is kept where given), reconstructs each
    in a process of its own, aligns the two maps, and says how far they agree. Writes half1.mrc,
    half2.mrc (unfiltered), map.mrc (averaged, weighted by the FSC), particles.star, fsc.csv,
    history.jsonl, report.html and checkpoints. The hand of the map is arbitrary. A quicker way to a
    map, with poses, is `vitreous auto`.

    Stop it with Ctrl-C and go on later with --continue: the result is the same.

    Example: `vitreous abinit SIM/particles.star --sym D2 -o OUT`
    """
    from vitreous.jobs.cryogan.run import abinit

    return abinit(options)
