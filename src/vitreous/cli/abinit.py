"""``vitreous abinit``: particle images to two half maps, without poses and without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitreous.cli.options.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    require_finite,
)
from vitreous.cli.options.particles import (
    Q0,
    AllowOutsideRoot,
    Apix,
    Cs,
    CtfFile,
    DataRoot,
    Invert,
    Kv,
    Passthrough,
    Permissive,
    SkipBad,
)
from vitreous.cli.options.refine import Sym
from vitreous.core.errors import UsageError

_OPTICS, _NOISE, _SOLVER = "Optics", "Noise and imaging", "Solver"


def command(
    context: typer.Context,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="Particle table of RELION (.star, 3.0 to 5) or cryoSPARC (.cs). Or a stack "
            "(.mrcs) with --ctf and --particles-per-micrograph.",
        ),
    ],
    output: Output,
    sym: Sym = "C1",
    box: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Crop images to this many pixels in Fourier space (the field of view stays, the "
            "pixel grows); the particles' own box, at most 64, by default.",
        ),
    ] = None,
    invert: Invert = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    skip_bad: SkipBad = False,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    ctf: CtfFile = None,
    particles_per_micrograph: Annotated[
        Path | None,
        typer.Option(
            help="For a stack: how many particles each micrograph has, a number a line, in the "
            "order of --ctf. Also pairs --noise patches of a stack without table.",
            metavar="FILE.txt",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    kv: Kv = None,
    cs: Cs = None,
    q0: Q0 = None,
    envelope_nyquist: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            help="Envelope of the CTF by its value at the Nyquist frequency of the images as "
            "stored, a fraction; replaces the table's.",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    b_factor: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Envelope by its B factor in Å²: exp(-B k²/4); replaces the table's.",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            help="`white`, or background patches: a STAR table or a stack (.mrcs) with its table "
            "beside it, paired with particles by micrograph name. A stack without table serves "
            "all micrographs.",
            metavar="white|FILE",
            rich_help_panel=_NOISE,
        ),
    ] = "white",
    noise_apix: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="Pixel size of the patches in Å, if not their own.",
            rich_help_panel=_NOISE,
        ),
    ] = None,
    shift: Annotated[
        str,
        typer.Option(
            help="How far particles are off centre, in Å: `none`, `triangular:WIDTH` (full width), "
            "`pixels:WIDTH` (the same, whole pixels) or `gaussian:SIGMA`.",
            rich_help_panel=_NOISE,
        ),
    ] = "none",
    poses: Annotated[
        str,
        typer.Option(
            help="How orientations are distributed: `uniform`, `gaussian:SIGMA` (Euler angles of "
            "variances SIGMA, 2 and 1 rad²) or `star:FILE` (drawn from its table).",
            rich_help_panel=_NOISE,
        ),
    ] = "uniform",
    preset: Annotated[
        Literal["default", "paper"],
        typer.Option(
            help="`default`: coarse to fine, fast. `paper`: the settings of the CryoGAN papers, "
            "for hours on a GPU.",
            rich_help_panel=_SOLVER,
        ),
    ] = "default",
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of solver settings, on top of the preset; config.toml of a run lists "
            "them all, docs/cryogan.md explains them.",
            metavar="FILE.toml",
            rich_help_panel=_SOLVER,
        ),
    ] = None,
    effort: Annotated[
        float,
        typer.Option(
            min=1e-3, help="Multiplies the iterations of every stage.", rich_help_panel=_SOLVER
        ),
    ] = 1.0,
    mask_diameter: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Diameter in Å of the sphere that holds the molecule; by default 90 % of the "
            "box, 95 % with `--preset paper`.",
            rich_help_panel=_SOLVER,
        ),
    ] = None,
    learning_rate_volume: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            help="Adam's step for the volume, instead of the preset's.",
            rich_help_panel=_SOLVER,
        ),
    ] = None,
    learning_rate_critic: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            help="Adam's step for the critic, instead of the preset's.",
            rich_help_panel=_SOLVER,
        ),
    ] = None,
    seed: Seed = 0,
    continue_: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Go on with the run in the folder from its checkpoints; give the same options.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    allow_config_change: Annotated[
        bool,
        typer.Option(
            "--allow-config-change",
            help="Let --continue go on although options or data differ; the difference is "
            "recorded.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(min=0, help="Minutes between checkpoints.")
    ] = 2.0,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Reconstruct from particle images alone: no orientations, no starting map.

    Splits the particles into two half sets (rlnRandomSubset is kept where given), reconstructs each
    on its own in a process of its own, aligns the two maps, and says how far they agree. Writes
    half1.mrc, half2.mrc (unfiltered), map.mrc (averaged, weighted by the FSC), particles.star,
    fsc.csv, history.jsonl, report.html and checkpoints. The hand of the map is arbitrary.

    Stop it with Ctrl-C and go on later with --continue: the result is the same.

    Example: `vitreous abinit SIM/particles.star --sym D2 -o OUT`
    """
    require_finite(context.params)
    if envelope_nyquist is not None and b_factor is not None:
        raise UsageError("--envelope-nyquist and --b-factor exclude each other; give one")

    from vitreous.data.noise_files import NoiseFiles
    from vitreous.jobs.cryogan.run import Request, reconstruct
    from vitreous.jobs.inputs.particles import ParticleFiles

    files = ParticleFiles.of(context.params)
    patches = NoiseFiles(
        None if noise == "white" else Path(noise),
        apix=noise_apix,
        counts=particles_per_micrograph if ctf is not None else None,
        invert=invert,
    )
    request = Request(
        files=files,
        noise=patches,
        output=output,
        symmetry=sym,
        box_size=box,
        invert=invert,
        skip_bad=skip_bad,
        envelope_nyquist=envelope_nyquist,
        b_factor_angstrom2=b_factor,
        shift=shift,
        poses=poses,
        preset=preset,
        config=config,
        effort=effort,
        mask_diameter_angstrom=mask_diameter,
        overrides={
            "learning_rate_volume": learning_rate_volume,
            "learning_rate_critic": learning_rate_critic,
        },
        seed=seed,
        resume=continue_,
        overwrite=overwrite,
        allow_config_change=allow_config_change,
        checkpoint_minutes=checkpoint_every,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    done = reconstruct(request)
    typer.secho(f"{done.result.verdict}.", bold=True)
    typer.echo(done.text)
