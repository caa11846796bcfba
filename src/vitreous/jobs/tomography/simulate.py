"""The run behind ``vitreous tomo simulate``."""

from __future__ import annotations

from dataclasses import dataclass
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
from vitreous.methods.tomography.total_variation import SIMULATION_WINDOW
from vitreous.physics.tomography.projector import TiltProjector

FILES = ("tilts.mrc", "tilts.tlt", "mask.mrc", "truth.mrc")
_FIELD_ANGSTROM = 10240.0
_TILTS_AT_ONCE = 10  # between looks at the clock and at signals


@dataclass(frozen=True)
class SimulationRequest:
    """The options of the command; see its help. ``shape`` is (z, y, x)."""

    source: str
    output: Path
    shape: tuple[int, int, int]
    apix: float | None
    max_tilt: float
    increment: float
    scheme: str
    dose: float
    downsampling: str
    snr: float
    seed: int
    overwrite: bool
    device: str
    threads: int
    quiet: bool


def parse_shape(text: str) -> tuple[int, int, int]:
    """``XxYxZ`` as (z, y, x).

    Raises:
        UsageError: not three whole numbers from 8 to 8192.

    >>> parse_shape("64x48x32")
    (32, 48, 64)
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdecimal() and 8 <= int(p) <= 8192 for p in parts):
        raise UsageError(f"--shape {text}: give three edges from 8 to 8192, as in 256x256x128")
    x, y, z = map(int, parts)
    return z, y, x


def simulate_tilts(request: SimulationRequest) -> str:
    """Run ``vitreous tomo simulate``; the line to print.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    place = use_device(request.device, request.threads)
    density, pixel = _density(request)
    if request.scheme == "linear":
        tilts = linear_tilts(-request.max_tilt, request.max_tilt, request.increment)
    else:
        tilts = saxton_tilts(request.max_tilt, request.increment)
    options = {
        "shape_zyx": tuple(density.shape),
        "apix": pixel,
        **{
            name: getattr(request, name)
            for name in ("source", "max_tilt", "increment", "scheme", "dose", "downsampling")
        },
        "snr": request.snr,
        "seed": request.seed,
    }
    source = Path(request.source)
    folder = OutputFolder(
        request.output,
        "tomo simulate",
        options,
        inputs={"input": source} if source.is_file() else {},
        outputs=FILES,
        machine={"device": str(place), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
    )
    with folder, StopSignals() as stop, RunProgress("simulating", quiet=request.quiet) as bar:
        parts = []
        for chosen in torch.split(torch.arange(len(tilts)), _TILTS_AT_ONCE):
            projector = TiltProjector(tilts[chosen], tuple(density.shape), SIMULATION_WINDOW)
            parts.append(projector(density.to(place)).cpu())
            bar.update((int(chosen[-1]) + 1) / len(tilts))
            stop.exit_if_requested()
        truth = projector.expand(density)
        images, tilts, scanned = _measure(request, torch.cat(parts), tilts)
        write_mrc(folder.path("truth.mrc"), truth.numpy(), pixel)
        write_mrc(folder.path("tilts.mrc"), images.numpy(), pixel, is_stack=True)
        mask = scanned.numpy().astype(np.int8)
        write_mrc(folder.path("mask.mrc"), mask, pixel, is_stack=True, mode=0)
        write_angles(folder.path("tilts.tlt"), tilts)
        folder.finish()
    return (
        f"{len(tilts)} tilts of {images.shape[2]} x {images.shape[1]} px at {pixel:g} Å in "
        f"{request.output}, {100 * float(scanned.float().mean()):.3g} % of their pixels scanned"
    )


def _measure(
    request: SimulationRequest, clean: Tensor, tilts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, the tilts that they have, and what was scanned of them."""
    sigma = (clean.var() / request.snr).sqrt()
    noise = torch.randn(clean.shape, generator=generator(request.seed, "tomo noise"))
    images = clean + sigma * noise
    if request.downsampling == "tilt":
        kept = tilt_downsampling(len(tilts), request.dose)
        images = images[kept]
        return images, tilts[kept], torch.ones(images.shape, dtype=torch.bool)
    height, width = images.shape[1:]
    shape = (len(images), height, width)
    scanned = random_downsampling(shape, request.dose, generator(request.seed, "tomo scan"))
    return images * scanned, tilts, scanned


def _density(request: SimulationRequest) -> tuple[Tensor, float]:
    """What is imaged, ``(z, y, x)``, and Å per voxel."""
    kind, _, number = request.source.partition(":")
    if kind == "phantom":
        if not number.isdecimal():
            raise UsageError(f"{request.source}: give the phantom's seed, as in phantom:1")
        pixel = request.apix or _FIELD_ANGSTROM / request.shape[2]
        return cell_phantom(request.shape, pixel, seed=int(number)), pixel
    data, header = read_mrc(request.source)
    if np.iscomplexobj(data) or not np.isfinite(data).all():
        raise InputError(f"{request.source}: data: complex values, NaN or infinity; give a map")
    return torch.from_numpy(data.astype(np.float32)), header.pixel_size_or(request.apix)
