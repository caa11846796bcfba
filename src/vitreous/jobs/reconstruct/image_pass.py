"""One pass over posed particle images, which are checked and hashed on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vitreous.data.working_images import CheckedImages, SignedImages
from vitreous.jobs.reconstruct.plan import Plan
from vitreous.methods.reconstruct.gridding import Progress
from vitreous.methods.reconstruct.posed_particles import PosedParticles

Sums = TypeVar("Sums")


@dataclass(frozen=True)
class ImagePass(Generic[Sums]):
    """Result of a pass: the sums, a hash of all pixels, and the number of constant images."""

    sums: Sums
    digest: str
    constant: int


def pass_over_images(
    plan: Plan, accumulate: Callable[..., Sums], progress: Progress | None
) -> ImagePass[Sums]:
    """Sum over all images by an ``accumulate`` as that of gridding.

    Raises:
        InputError: images that cannot be used.
    """
    options, particles = plan.options, plan.particles
    images = CheckedImages(SignedImages(particles, invert=options.invert), particles.ids)
    sums = accumulate(
        PosedParticles(
            images,
            plan.pose.rotation,
            plan.pose.shift_angstrom,
            None if options.ignore_ctf else particles.optics,
            particles.pixel_size_angstrom,
            plan.half_set,
        ),
        box_size=plan.box_size,
        symmetry=options.symmetry,
        device=plan.device,
        progress=progress,
    )
    return ImagePass(sums, images.digest, images.constant)
