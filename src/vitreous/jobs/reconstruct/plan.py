"""What ``vitreous reconstruct`` was asked for, checked before anything is read at length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, open_working_set
from vitreous.jobs.reconstruct.output import FILES
from vitreous.jobs.run.folder import OutputFolder
from vitreous.methods.reconstruct.half_maps import Sizes
from vitreous.methods.reconstruct.model_based import ModelBasedConfig

POSE_COLUMNS = ("_rlnAngleRot", "_rlnAngleTilt", "_rlnAnglePsi")


@dataclass(frozen=True)
class Request:
    """The options of the command; see its help.

    Args:
        prior: of the model-based methods; None for the direct one.
        noise_to_signal: of the direct method; None for automatic.
    """

    files: ParticleFiles
    output: Path
    method: str = "direct"
    prior: ModelBasedConfig | None = None
    symmetry: str = "C1"
    box_size: int | None = None
    noise_to_signal: float | None = None
    mask_diameter_angstrom: float | None = None
    invert: bool = False
    ignore_ctf: bool = False
    skip_bad: bool = False
    seed: int = 0
    overwrite: bool = False
    resume: bool = False
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked request."""

    request: Request
    particles: Particles
    pose: Pose
    half_set: Tensor
    box_size: int
    pixel_size_angstrom: float
    device: torch.device

    @property
    def mask_radius_px(self) -> float | None:
        """Of ``--mask-diameter``."""
        diameter = self.request.mask_diameter_angstrom
        return None if diameter is None else diameter / (2 * self.pixel_size_angstrom)

    @property
    def sizes(self) -> Sizes:
        """What half maps are compared by."""
        return {
            "pixel_size_angstrom": self.pixel_size_angstrom,
            "diameter_angstrom": self.request.mask_diameter_angstrom,
        }


def make_plan(request: Request) -> Plan:
    """Open the particles and check the request against them.

    Raises:
        UsageError: options that do not fit the images.
        InputError: particles without poses, or files that cannot be read.
    """
    working = ProcessingOptions(
        symmetry=request.symmetry,
        box_size=request.box_size,
        mask_diameter_angstrom=request.mask_diameter_angstrom,
        ignore_ctf=request.ignore_ctf,
        skip_bad=request.skip_bad,
        seed=request.seed,
        device=request.device,
        threads=request.threads,
    )
    found = open_working_set(request.files, working, quiet=request.quiet)
    pose = found.particles.pose
    if pose is None:
        raise InputError(
            f"{request.files.path}: poses: {', '.join(POSE_COLUMNS)} missing; refine the particles "
            "first, or use `vitreous auto`, which needs no poses"
        )
    return Plan(
        request,
        found.particles,
        pose,
        found.half_set,
        found.box_size,
        found.pixel_size_angstrom,
        found.device,
    )


def make_folder(plan: Plan) -> OutputFolder:
    """The output folder of this request."""
    request, prior = plan.request, plan.request.prior
    own: dict[str, object] = {}
    if prior is None:
        auto = request.noise_to_signal is None
        own["wiener"] = "auto" if auto else request.noise_to_signal
    else:
        own["scale"] = list(prior.scales)
        own["strength"] = "auto" if prior.strength is None else prior.strength
        own["allow_negative"] = not prior.nonnegative
        own["iterations"] = prior.iterations
    options = {
        "method": request.method,
        "sym": request.symmetry,
        "box": plan.box_size,
        "apix": plan.pixel_size_angstrom,
        **own,
        "mask_diameter": request.mask_diameter_angstrom,
        "invert": request.invert,
        "ignore_ctf": request.ignore_ctf,
        "skip_bad": request.skip_bad,
        "seed": request.seed,
    }
    return OutputFolder(
        request.output,
        "reconstruct",
        options,
        inputs={"particles": request.files.path},
        outputs=FILES if prior is None else (*FILES, "history.jsonl"),
        machine={"device": str(plan.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=prior is not None,
        changeable=False,
    )
