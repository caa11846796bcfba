"""Plan of ``vitreous abinit``: its options, checked against the particles, and all settings."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.symmetry import point_group
from vitreous.data.grey_values import GreyValues, decide_grey_values
from vitreous.data.noise_files import warn_of_bare_micrographs
from vitreous.data.particles import Particles
from vitreous.data.simulation_inputs import parse_poses, parse_shift
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.inputs.particles import Checked, check_images, open_particles
from vitreous.jobs.run.config import load_config
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.signals import SignalsBeforeRun
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage
from vitreous.methods.cryogan.presets import LARGEST_DEFAULT_BOX, default_config, paper_config


@dataclass(frozen=True)
class CryoGanPlan:
    """Options of a run, checked against its particles."""

    options: CryoGanOptions
    checked: Checked  # particles whose images were all read
    grey: GreyValues  # rule of the images' grey values
    half_set: Tensor  # long ``(n,)`` of 1 and 2
    config: CryoGanConfig  # settings of the solver
    device: torch.device
    threads: int  # of both halves together

    @property
    def particles(self) -> Particles:
        """Particles whose images can be used."""
        return self.checked.particles

    @property
    def box_size(self) -> int:
        """Box of the last stage, pixels."""
        return self.config.stages[-1].box_size

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size at that box, Å."""
        particles = self.particles
        return particles.pixel_size_angstrom * particles.box_size / self.box_size

    @property
    def b_factor_angstrom2(self) -> float | None:
        """B factor that replaces the table's; None for none."""
        return self.options.b_factor(self.particles.pixel_size_angstrom)

    @property
    def threads_per_half(self) -> int:
        """Threads of each half's process."""
        return max(1, self.threads // 2)


def make_plan(options: CryoGanOptions) -> CryoGanPlan:
    """Open the particles, read all their images, and check the options against them.

    Raises:
        UsageError: options that do not fit the images.
        InputError: files that cannot be read, or bad images.
    """
    with SignalsBeforeRun():
        point_group(options.symmetry)
        threads = options.threads or len(os.sched_getaffinity(0))
        device = use_device(options.device, threads)
        checked = check_images(
            open_particles(options), skip_bad=options.skip_bad, quiet=options.quiet
        )
        particles = checked.particles
        half_set = particles.with_half_sets(options.seed).half_set
        config = solver_config(options, particles)
        grey = decide_grey_values(
            particles,
            invert=options.dark,
            normalise=options.normalise,
            diameter_angstrom=options.mask_diameter_angstrom,
        )
        plan = CryoGanPlan(options, checked, grey, half_set, config, device, threads)
        box, pixel = plan.box_size, plan.pixel_size_angstrom
        files = options.noise_files(invert=grey.dark)
        if files.path is not None:
            noise = files.load(particles.micrograph_names, box, pixel)
            warn_of_bare_micrographs(noise, particles)
    parse_poses(options.poses)
    parse_shift(options.shift, pixel)
    if box < particles.box_size and options.box_size is None and not options.quiet:
        say(
            f"images cropped from {particles.box_size} to {box} px, {pixel:.2f} Å/px; see "
            "`box_size`"
        )
    return plan


def solver_config(options: CryoGanOptions, particles: Particles) -> CryoGanConfig:
    """Return the settings of the solver: preset, then the file's, then the options'.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    full = particles.box_size
    box = options.box_size or min(full, LARGEST_DEFAULT_BOX)
    if box > full:
        raise UsageError(
            f"`box_size` {box}: larger than the images ({full} px); choose up to {full}"
        )
    if options.preset == "paper":
        preset = paper_config(box, len(particles) // 2, options.symmetry)
    else:
        preset = default_config(box, options.symmetry)
    overrides: dict[str, Any] = {
        "learning_rate_volume": options.learning_rate_volume,
        "learning_rate_critic": options.learning_rate_critic,
        "symmetry": options.symmetry if options.symmetry != "C1" else None,
    }
    diameter, edge = options.mask_diameter_angstrom, full * particles.pixel_size_angstrom
    if diameter is not None:
        if diameter > edge:
            raise UsageError(
                f"`mask_diameter_angstrom` {diameter:g}: wider than the images ({edge:.0f} Å)"
            )
        overrides["mask_fraction"] = diameter / edge / 2
    config = load_config(
        CryoGanConfig, options.settings_file, overrides, defaults=dataclasses.asdict(preset)
    )
    if config.batch_size > max(preset.batch_size, len(particles) // 2):
        raise UsageError(
            f"batch_size {config.batch_size}: larger than a half set of {len(particles) // 2} "
            "particles; choose less"
        )
    boxes = [stage.box_size for stage in config.stages]
    if not boxes or boxes != sorted(boxes) or boxes[0] < 8 or boxes[-1] > full:
        raise UsageError(f"stages: boxes {boxes} must grow from 8 or more up to at most {full}")
    if options.box_size is not None and boxes[-1] != options.box_size:
        raise UsageError(f"`box_size` {options.box_size}: the last stage's box is {boxes[-1]}")
    stages = tuple(
        TrainingStage(stage.box_size, max(1, round(stage.iterations * options.effort)))
        for stage in config.stages
    )
    return dataclasses.replace(config, stages=stages)
