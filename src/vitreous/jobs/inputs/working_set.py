"""Particles opened and checked against the options that every pass over them has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.symmetry import point_group
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.particles import Particles
from vitreous.jobs.inputs.options import ParticleJobOptions
from vitreous.jobs.inputs.particles import ParticleFiles, check_images, open_particles
from vitreous.jobs.run.device import use_device
from vitreous.methods.em.config import SHIFT_SHARE

_FIELDS = {  # of an option, its field in ProcessingOptions
    "sym": "symmetry",
    "box": "box_size",
    "mask_diameter": "mask_diameter_angstrom",
    "invert": "invert",
    "ignore_ctf": "ignore_ctf",
    "skip_bad": "skip_bad",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
}


@dataclass(frozen=True)
class ProcessingOptions:
    """How particles are to be worked on; the options of these names.

    Args:
        symmetry: ``--sym``.
        box_size: ``--box``; the particles' own by default.
        mask_diameter_angstrom: ``--mask-diameter``.
        invert: whether protein is dark in the files.
        ignore_ctf: take the images as free of CTF.
        skip_bad: leave out images that are constant, NaN or infinite.
        seed: of the half sets, where the table has none.
    """

    symmetry: str = "C1"
    box_size: int | None = None
    mask_diameter_angstrom: float | None = None
    invert: bool = False
    ignore_ctf: bool = False
    skip_bad: bool = False
    seed: int = 0
    device: str = "auto"
    threads: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From all options of a command."""
        told = {field: options[name] for name, field in _FIELDS.items() if name in options}
        return cls(**told)


@dataclass(frozen=True)
class WorkingSet:
    """Particles, their half sets (long ``(n,)`` of 1 and 2), and the grid to work on.

    ``digest`` is a hash of all pixels, where all were looked at.
    """

    particles: Particles
    half_set: Tensor
    box_size: int
    pixel_size_angstrom: float
    device: torch.device
    digest: str = ""

    def shift_range(self, given_angstrom: float | None) -> float:
        """How far particles are looked for, Å: as given, or the default."""
        edge = self.box_size * self.pixel_size_angstrom
        return SHIFT_SHARE * edge if given_angstrom is None else given_angstrom


def open_working_set(
    files: ParticleFiles | ParticleJobOptions,
    options: ProcessingOptions | None = None,
    *,
    check_all: bool = False,
    quiet: bool = True,
) -> WorkingSet:
    """Open particles and check options against them.

    Args:
        files: all options of a job; or where the particles are, with ``options``.
        options: how they are processed.
        check_all: look through all images, and refuse bad ones unless they are to be skipped.
        quiet: show no progress of that.

    Raises:
        UsageError: options that do not fit the images.
        InputError: files that cannot be read, or bad images.
    """
    if isinstance(files, ParticleJobOptions):
        how: ParticleJobOptions | ProcessingOptions = files
        quiet = files.quiet
    else:
        how = options or ProcessingOptions()
    point_group(how.symmetry)
    device = use_device(how.device, how.threads)
    if isinstance(files, ParticleJobOptions):
        particles = open_particles(files, need_ctf=not how.ignore_ctf)
    else:
        particles = files.open(need_ctf=not how.ignore_ctf)
    digest = ""
    if how.skip_bad or check_all:
        checked = check_images(particles, skip_bad=how.skip_bad, quiet=quiet)
        particles, digest = checked.particles, checked.digest
    full = particles.box_size
    n = how.box_size or full
    if n > full:
        raise UsageError(f"`box_size` {n}: larger than the images ({full} px); choose up to {full}")
    edge = full * particles.pixel_size_angstrom
    diameter = how.mask_diameter_angstrom
    if diameter is not None and diameter > edge:
        raise UsageError(
            f"`mask_diameter_angstrom` {diameter:g}: wider than the images ({edge:.0f} Å)"
        )
    half_set = assign_half_sets(particles.half_set, how.seed)
    return WorkingSet(particles, half_set, n, edge / n, device, digest)
