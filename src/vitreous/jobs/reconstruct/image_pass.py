"""One pass over the images of ``vitreous reconstruct``, whatever sums them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vitreous.data.working_images import CheckedImages, SignedImages
from vitreous.jobs.reconstruct.plan import Plan
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals

Sums = TypeVar("Sums")


@dataclass(frozen=True)
class Passed(Generic[Sums]):
    """What a pass came to: the sums, a hash of all pixels, and how many images are constant."""

    sums: Sums
    digest: str
    constant: int


def pass_over_images(
    plan: Plan, label: str, stop: StopSignals, accumulate: Callable[..., Sums]
) -> Passed[Sums]:
    """Sum over all images, with progress shown.

    Args:
        plan: the images and their poses.
        label: of the progress.
        stop: asked after each batch.
        accumulate: as :func:`vitreous.methods.reconstruct.gridding.accumulate`.

    Raises:
        InputError: images that cannot be used.
        SystemExit: stopped by a signal.
    """
    request = plan.request
    working = SignedImages(plan.particles, invert=request.invert)
    images = CheckedImages(working, plan.particles.ids)
    with RunProgress(label, quiet=request.quiet) as bar:

        def notify(done: int, total: int) -> None:
            bar.update(done / total)
            stop.exit_if_requested()

        sums = accumulate(
            images,
            plan.pose.rotation,
            plan.pose.shift_angstrom,
            None if request.ignore_ctf else plan.particles.optics,
            plan.particles.pixel_size_angstrom,
            plan.half_set,
            box_size=plan.box_size,
            symmetry=request.symmetry,
            device=plan.device,
            progress=notify,
        )
    return Passed(sums, images.digest, images.constant)
