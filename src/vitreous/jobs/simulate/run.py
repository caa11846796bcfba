"""Make a data set with known truth: projections of a molecule with shift, CTF and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.data.hinged_phantom import hinged_states
from vitreous.data.micelle import with_micelle
from vitreous.data.simulation_inputs import (
    Background,
    MicrographSet,
    load_background,
    load_micrographs,
    load_volume,
    parse_pair,
    parse_poses,
    parse_range,
    parse_shift,
    whole_number,
)
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.summary import JobResult
from vitreous.jobs.simulate.dataset import MOST_STATES, OUTPUTS, draw_truth, write_dataset
from vitreous.jobs.simulate.imperfections import Imperfections
from vitreous.jobs.simulate.options import SimulateOptions

_IMPERFECTIONS = {
    "ice_micrographs",
    "ice_particles",
    "defocus_spread_angstrom",
    "junk",
}


@dataclass(frozen=True)
class SimulateResult(JobResult):
    """A simulated data set."""

    n_particles: int
    signal_variance: float  # of the noiseless images, mean
    noise_sigma: float  # standard deviation of the noise


def simulate(options: SimulateOptions) -> SimulateResult:
    """Make a data set with known truth.

    Raises:
        UsageError: options that make no sense together.
        InputError: an input cannot be read.
        ResourceError: disk full.
        SystemExit: stopped by a signal.
    """
    device = use_device(options.device, options.threads)
    pixel = options.pixel_size_angstrom
    b_factor = options.b_factor(pixel)
    snr_db = options.snr_db or 0.0 if options.snr is None else 10 * math.log10(options.snr)
    poses, shifts = parse_poses(options.poses), parse_shift(options.shift, pixel)
    imperfections = Imperfections(
        beam_tilt_mrad=parse_pair(options.beam_tilt_mrad, "`beam_tilt_mrad`"),
        **options.model_dump(include=_IMPERFECTIONS),
    )
    volumes = _volumes(options)
    micrographs = _micrographs(options, b_factor or 0.0)
    background = _background(options, len(micrographs.names))
    with (
        _folder(options, snr_db, b_factor, str(device)) as folder,
        StopSignals() as stop,
        RunProgress("simulating", quiet=options.quiet) as progress,
    ):

        def notify(fraction: float) -> None:
            progress.update(fraction)
            stop.exit_if_requested()

        n, seed = options.n_particles, options.seed
        truth = draw_truth(n, micrographs, poses, shifts, seed, len(volumes), imperfections)
        variance, sigma = write_dataset(
            folder.path,
            volumes.to(device),
            truth,
            micrographs,
            pixel_size_angstrom=pixel,
            snr_db=snr_db,
            seed=seed,
            background=background,
            notify=notify,
        )
        folder.finish()
    text = (
        f"{n} particles of {options.box_size} px at {pixel:g} Å in {folder.root}: "
        f"{len(micrographs.names)} micrographs, signal variance {variance:.4g}, "
        f"noise deviation {sigma:.4g} ({snr_db:g} dB)"
    )
    return SimulateResult(None, "", text, folder.root, n, variance, sigma)


def _volumes(options: SimulateOptions) -> Tensor:
    """Return the molecules to image, ``(k, n, n, n)``, with their micelles."""
    volumes = _molecules(options)
    if options.micelle is None:
        return volumes
    pixel, density = options.pixel_size_angstrom, options.micelle
    return torch.stack([with_micelle(volume, pixel, density) for volume in volumes])


def _molecules(options: SimulateOptions) -> Tensor:
    grid: dict[str, Any] = {
        "box_size": options.box_size,
        "pixel_size_angstrom": options.pixel_size_angstrom,
        "resolution_angstrom": options.resolution_angstrom,
    }
    if options.hinge_degrees is not None:
        seed = whole_number(options.source.partition(":")[2], options.source)
        return hinged_states(seed, options.hinge_degrees, options.states, **grid)
    sources = (options.source, *options.also)
    if len(sources) > MOST_STATES:
        raise UsageError(f"`also`: at most {MOST_STATES} molecules can be mixed")
    grid |= {"input_apix": options.input_pixel_size_angstrom, "sym": options.symmetry}
    return torch.stack([load_volume(text, **grid) for text in sources])


def _micrographs(options: SimulateOptions, b_factor_angstrom2: float) -> MicrographSet:
    return load_micrographs(
        options.ctf_file,
        seed=options.seed,
        count=options.n_micrographs,
        defocus_range_angstrom=parse_range(options.defocus, "`defocus`"),
        voltage_kv=options.voltage_kv,
        cs_mm=options.cs_mm,
        amplitude_contrast=options.amplitude_contrast,
        b_factor_angstrom2=b_factor_angstrom2,
    )


def _background(options: SimulateOptions, n_micrographs: int) -> Background | None:
    if options.noise is None:
        return None
    return load_background(
        options.noise,
        box_size=options.box_size,
        pixel_size_angstrom=options.pixel_size_angstrom,
        n_micrographs=n_micrographs,
        noise_apix=options.noise_pixel_size_angstrom,
        counts=options.noise_micrographs,
    )


def _folder(
    options: SimulateOptions, snr_db: float, b_factor: float | None, device: str
) -> OutputFolder:
    sources = [Path(text) for text in (options.source, *options.also)]
    molecules = {f"molecule {k}": path for k, path in enumerate(sources, 1) if path.is_file()}
    resolved = {"snr_db": snr_db, "b_factor_angstrom2": b_factor}
    machine = {"device": device}
    return OutputFolder.of(
        "simulate", options, OUTPUTS, resolved=resolved, inputs=molecules, machine=machine
    )
