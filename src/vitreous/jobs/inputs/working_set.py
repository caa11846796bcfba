"""Open particles and check them against the options of a job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.images import ImageCache
from vitreous.core.params import Optics
from vitreous.core.symmetry import point_group
from vitreous.data.grey_values import GreyValues, decide_grey_values
from vitreous.data.particles import Particles
from vitreous.data.working_images import SignedImages
from vitreous.jobs.inputs.options import ParticleJobOptions
from vitreous.jobs.inputs.particles import check_images, open_particles
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.signals import SignalsBeforeRun
from vitreous.methods.em.config import SHIFT_SHARE


@dataclass(frozen=True)
class WorkingSet:
    """Particles, their half sets, and the grid to work on.

    Args:
        options: of the job.
        particles: particles whose images can be used.
        half_set: 1 or 2 for each of them, long ``(n,)``.
        box_size: box size to work at, in pixels.
        pixel_size_angstrom: pixel size at that box, in Å.
        device: where to compute.
        grey: rule of the images' grey values.
        digest: a hash of all pixels, where all images were read; else empty.
    """

    options: ParticleJobOptions
    particles: Particles
    half_set: Tensor
    box_size: int
    pixel_size_angstrom: float
    device: torch.device
    grey: GreyValues
    digest: str = ""

    @cached_property
    def images(self) -> ImageCache:
        """Images of the particles, protein positive, at the working box size."""
        return ImageCache(self.whole_images, self.box_size, torch.device("cpu"))

    @property
    def whole_images(self) -> SignedImages:
        """Images of the particles, protein positive, at their own box size."""
        return SignedImages(self.particles, self.grey)

    @property
    def optics(self) -> Optics | None:
        """CTF parameters of each image; None where images are taken as free of CTF."""
        return None if self.options.ignore_ctf else self.particles.optics

    def shift_range(self, shift_range_angstrom: float | None) -> float:
        """Return the range of shifts to search, Å: the given one, or the default."""
        edge = self.box_size * self.pixel_size_angstrom
        return SHIFT_SHARE * edge if shift_range_angstrom is None else shift_range_angstrom


def open_working_set(
    options: ParticleJobOptions, *, check_all: bool = False, fewest: int = 2
) -> WorkingSet:
    """Open particles and check options against them.

    Args:
        options: all options of a job.
        check_all: read all images, and refuse bad ones unless they are to be skipped.
        fewest: particles that each half set needs.

    Raises:
        UsageError: options that do not fit the images.
        InputError: files that cannot be read, or bad images.
    """
    with SignalsBeforeRun():
        point_group(options.symmetry)
        device = use_device(options.device, options.threads)
        particles = open_particles(options, need_ctf=not options.ignore_ctf)
        digest = ""
        if options.skip_bad or check_all:
            checked = check_images(particles, skip_bad=options.skip_bad, quiet=options.quiet)
            particles, digest = checked.particles, checked.digest
        full = particles.box_size
        n = options.box_size or full
        if n > full:
            raise UsageError(
                f"`box_size` {n}: larger than the images ({full} px); choose up to {full}"
            )
        edge = full * particles.pixel_size_angstrom
        diameter = options.mask_diameter_angstrom
        if diameter is not None and diameter > edge:
            raise UsageError(
                f"`mask_diameter_angstrom` {diameter:g}: wider than the images ({edge:.0f} Å)"
            )
        half_set = particles.with_half_sets(options.seed, fewest=fewest).half_set
        grey = decide_grey_values(
            particles,
            invert=options.dark,
            normalise=options.normalise,
            diameter_angstrom=diameter,
        )
    return WorkingSet(options, particles, half_set, n, edge / n, device, grey, digest)
