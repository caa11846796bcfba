"""Job of ``vitreous tomo simulate``."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.core.random import generator
from vitreous.data.cells import cell_phantom
from vitreous.data.tilts import (
    linear_tilts,
    random_downsampling,
    saxton_tilts,
    tilt_downsampling,
    write_angles,
)
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.summary import JobResult
from vitreous.jobs.tomography.options import TomoSimulateOptions
from vitreous.methods.tomography.total_variation import SIMULATION_WINDOW
from vitreous.physics.tomography.projector import TiltProjector

FILES = ("tilts.mrc", "tilts.tlt", "mask.mrc", "truth.mrc")
_FIELD_ANGSTROM = 10240.0
_TILTS_AT_ONCE = 10  # between looks at the clock and at signals


def simulate_tilts(options: TomoSimulateOptions) -> JobResult:
    """Simulate a tilt series, scanned fully or in part.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    device = use_device(options.device, options.threads)
    density, pixel = _density(options)
    largest, increment = options.max_tilt_degrees, options.increment_degrees
    if options.scheme == "linear":
        tilts = linear_tilts(-largest, largest, increment)
    else:
        tilts = saxton_tilts(largest, increment)
    grid = {"shape": "x".join(map(str, density.shape[::-1])), "pixel_size_angstrom": pixel}
    source = Path(options.source)
    folder = OutputFolder.of(
        "tomo simulate",
        options,
        FILES,
        resolved=grid,
        inputs={"source": source} if source.is_file() else {},
        machine={"device": str(device), "threads": torch.get_num_threads()},
    )
    with folder, StopSignals() as stop, RunProgress("simulating", quiet=options.quiet) as bar:
        parts = []
        for chosen in torch.split(torch.arange(len(tilts)), _TILTS_AT_ONCE):
            projector = TiltProjector(tilts[chosen], tuple(density.shape), SIMULATION_WINDOW)
            parts.append(projector(density.to(device)).cpu())
            bar.update((int(chosen[-1]) + 1) / len(tilts))
            stop.exit_if_requested()
        truth = projector.expand(density)
        images, tilts, scanned = _measure(options, torch.cat(parts), tilts)
        write_mrc(folder.path("truth.mrc"), truth.numpy(), pixel)
        write_mrc(folder.path("tilts.mrc"), images.numpy(), pixel, is_stack=True)
        mask = scanned.numpy().astype(np.int8)
        write_mrc(folder.path("mask.mrc"), mask, pixel, is_stack=True, mode=0)
        write_angles(folder.path("tilts.tlt"), tilts)
        folder.finish()
    text = (
        f"{len(tilts)} tilts of {images.shape[2]} x {images.shape[1]} px at {pixel:g} Å in "
        f"{options.output}, {100 * float(scanned.float().mean()):.3g} % of their pixels scanned"
    )
    return JobResult(None, "", text, options.output)


def _measure(
    options: TomoSimulateOptions, clean: Tensor, tilts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy images, their tilts, and which pixels were scanned."""
    sigma = (clean.var() / options.snr).sqrt()
    noise = torch.randn(clean.shape, generator=generator(options.seed, "tomo noise"))
    images = clean + sigma * noise
    if options.downsampling == "tilt":
        kept = tilt_downsampling(len(tilts), options.dose)
        images = images[kept]
        return images, tilts[kept], torch.ones(images.shape, dtype=torch.bool)
    height, width = images.shape[1:]
    shape = (len(images), height, width)
    scanned = random_downsampling(shape, options.dose, generator(options.seed, "tomo scan"))
    return images * scanned, tilts, scanned


def _density(options: TomoSimulateOptions) -> tuple[Tensor, float]:
    """Return the density to image, ``(z, y, x)``, and its voxel edge in Å."""
    kind, _, number = options.source.partition(":")
    if kind == "phantom":
        if not number.isdecimal():
            raise UsageError(f"{options.source}: give the phantom's seed, as in phantom:1")
        pixel = options.pixel_size_angstrom or _FIELD_ANGSTROM / options.shape_zyx[2]
        return cell_phantom(options.shape_zyx, pixel, seed=int(number)), pixel
    data, header = read_mrc(options.source)
    if np.iscomplexobj(data) or not np.isfinite(data).all():
        raise InputError(f"{options.source}: data: complex values, NaN or infinity; give a map")
    return torch.from_numpy(data.astype(np.float32)), header.pixel_size_or(
        options.pixel_size_angstrom
    )
