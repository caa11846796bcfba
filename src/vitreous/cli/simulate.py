"""``vitreous simulate``: a data set with known truth."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.simulate.options import SimulateOptions


@options_command(
    SimulateOptions,
    {
        "source": typer.Argument(metavar="INPUT"),
        "input_pixel_size_angstrom": "--input-apix",
        "also": typer.Option("--also", metavar="INPUT"),
        "n_particles": "--n",
        "defocus": typer.Option("--defocus", metavar="LOW:HIGH"),
        "beam_tilt_mrad": typer.Option("--beam-tilt", metavar="X:Y"),
        "noise": typer.Option("--noise", metavar="STACK.mrcs"),
        "noise_pixel_size_angstrom": "--noise-apix",
        "noise_micrographs": typer.Option("--noise-micrographs", metavar="FILE.txt"),
    },
    panels={
        "Images": ("box_size", "pixel_size_angstrom", "n_particles", "poses", "shift"),
        "Molecule": ("symmetry", "input_pixel_size_angstrom", "resolution_angstrom"),
        "Mixed particles": ("also", "hinge_degrees", "states"),
        "Optics": (
            "ctf_file",
            "defocus",
            "n_micrographs",
            "voltage_kv",
            "cs_mm",
            "amplitude_contrast",
            "envelope_nyquist",
            "b_factor_angstrom2",
        ),
        "Noise": ("snr_db", "snr", "noise", "noise_pixel_size_angstrom", "noise_micrographs"),
        "Imperfections": (
            "ice_micrographs",
            "ice_particles",
            "defocus_spread_angstrom",
            "beam_tilt_mrad",
            "junk",
            "micelle",
        ),
    },
)
def simulate(options: SimulateOptions) -> object:
    """Make a data set with known truth: project, shift, CTF, noise.

    Writes particles.mrcs and particles.star (what a user would have: CTF and micrograph of each
    particle, no orientations), truth.mrc (the map at the images' box and pixel size) and truth.star
    (the same rows with the true angles and origins). With --noise also noise.mrcs and noise.star,
    matching backgrounds for `vitreous abinit --noise`.

    Several molecules (--also) or states of one (--hinge) are mixed in equal shares. Then truth.star
    says in rlnClassNumber which one each particle shows, and truth01.mrc, truth02.mrc ... are the
    maps.

    Imperfections: what particles.star cannot know is in truth.star: the defocus of each particle,
    vitreousContrast (1 on average), rlnBeamTiltX and Y, and vitreousJunk (0 particle, 1 background,
    2 contamination, 3 overlap). --poses star:FILE takes the views of a real set.

    Example: `vitreous simulate phantom:1 --sym D2 --box 32 --apix 6 --n 5000 -o SIM`

    As a microscope gives them: `vitreous simulate 5a1a.cif.gz --sym D2 --box 128 --apix 1.5
    --b-factor 80 --ice-micrographs 0.2 --ice-particles 0.1
    --defocus-spread 300 --beam-tilt 0.3:0 --junk 0.2 -o SIM`
    """
    from vitreous.jobs.simulate.run import simulate

    return simulate(options)
