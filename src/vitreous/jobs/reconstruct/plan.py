"""Plan of ``vitreous reconstruct``, and its passes over images, checked and hashed on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from vitreous.core.errors import InputError
from vitreous.core.images import read_ahead
from vitreous.core.params import Pose
from vitreous.data.working_images import CheckedImages
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.jobs.reconstruct.options import ReconstructOptions
from vitreous.jobs.reconstruct.output import FILES
from vitreous.jobs.run.job import Job
from vitreous.methods.reconstruct.gridding import Progress
from vitreous.methods.reconstruct.half_maps import HalfMapComparison
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.methods.reconstruct.posed_particles import PosedParticles

Sums = TypeVar("Sums")
POSE_COLUMNS = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")


@dataclass(frozen=True)
class Plan:
    """Particles with their poses, and the grid to work on."""

    options: ReconstructOptions
    data: WorkingSet
    pose: Pose

    @property
    def comparison(self) -> HalfMapComparison:
        """How half maps are compared."""
        options = self.options
        return HalfMapComparison(
            self.data.pixel_size_angstrom, options.mask_diameter_angstrom, options.seed
        )

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
        data = self.data
        resolved = {
            "box_size": data.box_size,
            "pixel_size_angstrom": data.pixel_size_angstrom,
            "contrast": data.grey.contrast,
        }
        machine = {"device": str(data.device)}
        return Job("reconstruct", self.options, outputs=FILES, resolved=resolved, machine=machine)


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
    return Plan(options, data, pose)


@dataclass(frozen=True)
class ImagePass(Generic[Sums]):
    """Result of a pass: the sums, a hash of all pixels, and the number of constant images."""

    sums: Sums
    digest: str
    constant: int


def pass_over_images(
    plan: Plan, accumulate: Callable[..., Sums], progress: Progress | None
) -> ImagePass[Sums]:
    """Sum over all images by an ``accumulate`` as that of gridding, or :func:`read_only`.

    Raises:
        InputError: images that cannot be used.
    """
    data = plan.data
    images = CheckedImages(data.whole_images, data.particles.ids)
    sums = accumulate(
        PosedParticles(
            images,
            plan.pose.rotation,
            plan.pose.shift_angstrom,
            data.optics,
            data.particles.pixel_size_angstrom,
            data.half_set,
        ),
        box_size=data.box_size,
        symmetry=plan.options.symmetry,
        device=data.device,
        progress=progress,
    )
    return ImagePass(sums, images.digest, images.constant)


def read_only(particles: PosedParticles, *, progress: Progress | None, **_: object) -> None:
    """Read all images and sum nothing: for their hash."""
    count = len(particles.images)
    for rows, _images in read_ahead(particles.images, torch.arange(count)):
        if progress is not None:
            progress(int(rows[-1]) + 1, count)
