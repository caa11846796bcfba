"""``vitreous simulate``: a data set with known truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from vitreous.core.errors import UsageError
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.signals import StopSignals

if TYPE_CHECKING:
    from torch import Tensor

_OPTICS, _NOISE, _MIXED = "Optics", "Noise", "Mixed particles"
# Options that determine the data and are not files; --snr and the envelope as dB and B factor.
_RECORDED = (
    *(
        "source",
        "also",
        "hinge",
        "states",
        "box",
        "apix",
        "n",
        "sym",
        "input_apix",
        "resolution",
        "poses",
        "shift",
    ),
    *("poses", "shift", "defocus", "n_micrographs", "kv", "cs", "q0", "b_factor", "snr_db"),
    *("noise_apix", "seed"),
)


def command(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="What to image: an atomic model (.cif, .pdb, gzipped or not), a map (.mrc), or "
            "`phantom:SEED`, a protein-like molecule made from a number.",
        ),
    ],
    output: Output,
    box: Annotated[int, typer.Option(min=8, max=4096, help="Image edge in pixels.")] = 64,
    apix: Annotated[float, typer.Option(min=0.1, help="Pixel size of the images in Å.")] = 4.0,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of particles.")] = 10000,
    sym: Annotated[
        str,
        typer.Option(
            help="Point group of a phantom (C1, C4, D2, T, O, I1 ...). A model or map must already "
            "have it about RELION's axes, and is averaged over it."
        ),
    ] = "C1",
    input_apix: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Pixel size of an input map in Å, if not its own."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Another molecule to mix in, an INPUT too; may be given again and again. All have "
            "equal shares of the particles.",
            metavar="INPUT",
            rich_help_panel=_MIXED,
        ),
    ] = None,
    hinge: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=180,
            help="The outermost domain of a phantom turns by up to this many degrees, in --states "
            "steps: a molecule that bends.",
            rich_help_panel=_MIXED,
        ),
    ] = None,
    states: Annotated[
        int, typer.Option(min=2, max=99, help="States of --hinge.", rich_help_panel=_MIXED)
    ] = 10,
    resolution: Annotated[
        float | None,
        typer.Option(min=0.1, help="Resolution of the imaged density in Å; Nyquist by default."),
    ] = None,
    poses: Annotated[
        str,
        typer.Option(
            help="Orientations: `uniform`, `gaussian:SIGMA` (Euler angles of variances "
            "SIGMA, 2 and 1 rad²) or `star:FILE` (drawn from its table)."
        ),
    ] = "uniform",
    shift: Annotated[
        str,
        typer.Option(
            help="Shifts in Å: `none`, `triangular:WIDTH` (full width), "
            "`pixels:WIDTH` (the same, whole pixels) or `gaussian:SIGMA`."
        ),
    ] = "none",
    ctf: Annotated[
        Path | None,
        typer.Option(
            help="CTFFIND4 results, a row for each micrograph; particles are spread over them.",
            metavar="FILE.txt",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    defocus: Annotated[
        str,
        typer.Option(
            help="Without --ctf: range of defocus in Å, underfocus positive.",
            metavar="LOW:HIGH",
            rich_help_panel=_OPTICS,
        ),
    ] = "10000:25000",
    n_micrographs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use only the first so many micrographs.", rich_help_panel=_OPTICS
        ),
    ] = None,
    kv: Annotated[
        float | None,
        typer.Option(min=1, help="Voltage in kV; the CTF file's or 300.", rich_help_panel=_OPTICS),
    ] = None,
    cs: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Spherical aberration in mm; the CTF file's or 2.7.",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    q0: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.999,
            help="Amplitude contrast, a fraction; the CTF file's or 0.1.",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    envelope_nyquist: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            help="Envelope of the CTF by its value at Nyquist, a fraction.",
            rich_help_panel=_OPTICS,
        ),
    ] = None,
    b_factor: Annotated[
        float | None,
        typer.Option(
            min=0, help="Envelope by its B factor in Å²: exp(-B k²/4).", rich_help_panel=_OPTICS
        ),
    ] = None,
    snr_db: Annotated[
        float | None,
        typer.Option(
            help="Signal over noise power in dB, over whole images after the CTF; 0 by default.",
            rich_help_panel=_NOISE,
        ),
    ] = None,
    snr: Annotated[
        float | None,
        typer.Option(min=1e-9, help="The same as a ratio.", rich_help_panel=_NOISE),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            help="Real background patches, no smaller than the images in Å; white noise without.",
            metavar="STACK.mrcs",
            rich_help_panel=_NOISE,
        ),
    ] = None,
    noise_apix: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="Pixel size of the patches in Å, if not their own.",
            rich_help_panel=_NOISE,
        ),
    ] = None,
    noise_micrographs: Annotated[
        Path | None,
        typer.Option(
            help="How many patches each micrograph has, a number a line, in the order of --ctf. "
            "Without it patches are dealt out in turn.",
            metavar="FILE.txt",
            rich_help_panel=_NOISE,
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Make a data set with known truth: project, shift, CTF, noise.

    Writes particles.mrcs and particles.star (what a user would have: CTF and micrograph of each
    particle, no orientations), truth.mrc (the map at the images' box and pixel size) and truth.star
    (the same rows with the true angles and origins). With --noise also noise.mrcs and noise.star,
    matching backgrounds for `vitreous abinit --noise`.

    Several molecules (--also) or states of one (--hinge) are mixed in equal shares; truth.star then
    says in rlnClassNumber which each particle shows, and truth01.mrc, truth02.mrc ... are the maps.

    Example: `vitreous simulate phantom:1 --sym D2 --box 32 --apix 6 --n 5000 -o SIM`
    """
    require_finite(context.params)
    if envelope_nyquist is not None and b_factor is not None:
        raise UsageError("--envelope-nyquist and --b-factor exclude each other; give one")
    if snr is not None and snr_db is not None:
        raise UsageError("--snr and --snr-db exclude each other; give one")
    decibel = 10 * math.log10(snr) if snr is not None else (snr_db or 0.0)
    place = use_device(device, threads)

    import torch

    from vitreous.data import simulation_inputs
    from vitreous.jobs.run.folder import OutputFolder
    from vitreous.jobs.run.progress import RunProgress
    from vitreous.jobs.simulate import run as simulation
    from vitreous.physics.ctf import b_factor_from_nyquist_value

    if envelope_nyquist is not None:
        b_factor = b_factor_from_nyquist_value(envelope_nyquist, apix)
    pose_sampler, shift_sampler = (
        simulation_inputs.parse_poses(poses),
        simulation_inputs.parse_shift(shift, apix),
    )
    defocus_range = simulation_inputs.parse_range(defocus, "--defocus")
    grid: dict[str, Any] = {
        "box_size": box,
        "pixel_size_angstrom": apix,
        "resolution_angstrom": resolution,
    }
    if hinge is not None:
        volumes = _bending(source, hinge, states, sym, also, grid)
    else:
        loaded = [
            simulation_inputs.load_volume(text, input_apix=input_apix, sym=sym, **grid)
            for text in (source, *(also or ()))
        ]
        volumes = torch.stack(loaded)
    if len(volumes) > simulation.MOST_STATES:
        raise UsageError(f"--also: at most {simulation.MOST_STATES} molecules can be mixed")
    micrographs = simulation_inputs.load_micrographs(
        ctf,
        seed=seed,
        count=n_micrographs,
        defocus_range_angstrom=defocus_range,
        voltage_kv=kv,
        cs_mm=cs,
        amplitude_contrast=q0,
        b_factor_angstrom2=b_factor or 0.0,
    )
    background = None
    if noise is not None:
        background = simulation_inputs.load_background(
            noise,
            box_size=box,
            pixel_size_angstrom=apix,
            n_micrographs=len(micrographs.names),
            noise_apix=noise_apix,
            counts=noise_micrographs,
        )
    files = {"input": Path(source), "ctf": ctf, "noise": noise, "noise counts": noise_micrographs}
    files |= {f"also {k}": Path(text) for k, text in enumerate(also or (), 1)}
    settled = {
        "states": None if hinge is None else states,
        "snr_db": decibel,
        "b_factor": b_factor,
        "defocus": None if ctf else defocus,
    }
    folder = OutputFolder(
        output,
        "simulate",
        {name: value for name, value in (context.params | settled).items() if name in _RECORDED},
        inputs={role: path for role, path in files.items() if path is not None and path.is_file()},
        outputs=simulation.OUTPUTS,
        machine={"device": str(place), "threads": threads},
        overwrite=overwrite,
    )
    with folder, StopSignals() as stop, RunProgress("simulating", quiet=quiet) as progress:

        def notify(fraction: float) -> None:
            progress.update(fraction)
            stop.exit_if_requested()

        truth = simulation.draw_truth(
            n, micrographs, pose_sampler, shift_sampler, seed, len(volumes)
        )
        summary = simulation.write_dataset(
            folder.path,
            volumes.to(place),
            truth,
            micrographs,
            pixel_size_angstrom=apix,
            snr_db=decibel,
            seed=seed,
            background=background,
            notify=notify,
        )
        folder.finish()
    if not quiet:
        say(
            f"{n} particles of {box} px at {apix:g} Å in {output}: {len(micrographs.names)} "
            f"micrographs, signal variance {summary.signal_variance:.4g}, "
            f"noise deviation {summary.noise_sigma:.4g} ({decibel:g} dB)"
        )


def _bending(
    source: str,
    degrees: float,
    states: int,
    sym: str,
    also: list[str] | None,
    grid: dict[str, Any],
) -> Tensor:
    """The states of a phantom that bends."""
    from vitreous.data import simulation_inputs

    kind, _, rest = source.partition(":")
    if kind != "phantom" or also or sym.upper() != "C1":
        raise UsageError(
            "--hinge bends a phantom without symmetry, alone: give phantom:SEED, and neither "
            "--also nor --sym"
        )
    return simulation_inputs.load_states(
        simulation_inputs.whole_number(rest, source), degrees, states, **grid
    )
