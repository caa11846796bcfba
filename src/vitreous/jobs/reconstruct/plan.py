"""Options of ``vitreous reconstruct``, checked against the particles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.jobs.inputs.working_set import open_working_set
from vitreous.jobs.reconstruct.options import ReconstructOptions
from vitreous.jobs.reconstruct.output import FILES
from vitreous.jobs.run.job import Job
from vitreous.methods.reconstruct.half_maps import Sizes
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig

POSE_COLUMNS = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")


@dataclass(frozen=True)
class Plan:
    """Particles with their poses, and the grid to work on."""

    options: ReconstructOptions
    particles: Particles
    pose: Pose
    half_set: Tensor
    box_size: int
    pixel_size_angstrom: float
    device: torch.device

    @property
    def sizes(self) -> Sizes:
        """Pixel size and mask with which half maps are compared."""
        return {
            "pixel_size_angstrom": self.pixel_size_angstrom,
            "diameter_angstrom": self.options.mask_diameter_angstrom,
        }

    @property
    def prior(self) -> ModelBasedConfig:
        """Settings of a model-based method."""
        options = self.options
        assert options.method != "direct"
        return ModelBasedConfig(
            regulariser=options.method,
            strength=None if options.strength == "auto" else options.strength,
            scales=options.scales,
            nonnegative=not options.allow_negative,
            iterations=options.iterations,
        )

    def job(self) -> Job:
        """Return the job of these options."""
        grid = {"box_size": self.box_size, "pixel_size_angstrom": self.pixel_size_angstrom}
        machine = {"device": str(self.device)}
        return Job("reconstruct", self.options, outputs=FILES, resolved=grid, machine=machine)


def make_plan(options: ReconstructOptions) -> Plan:
    """Open the particles and check the options against them.

    Raises:
        UsageError: options that do not fit the images.
        InputError: particles without poses, or files that cannot be read.
    """
    data = open_working_set(options)
    pose = data.particles.pose
    if pose is None:
        raise InputError(
            f"{options.particles}: poses: {', '.join(POSE_COLUMNS)} missing; refine the particles "
            "first, or use `vitreous auto`, which needs no poses"
        )
    grid = data.box_size, data.pixel_size_angstrom, data.device
    return Plan(options, data.particles, pose, data.half_set, *grid)
