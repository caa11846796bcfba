"""Latent variable models made from options: the only place that knows them by name."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Pose
from vitreous.core.random import generator, stream_seed
from vitreous.data.simulation_inputs import parse_shift
from vitreous.jobs.hetero.options import LatentModelOptions
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.config import build, load_config
from vitreous.jobs.run.folder import CONFIG
from vitreous.jobs.run.job import Job
from vitreous.methods.hetero.class_maps import LatentModel, PosedImages
from vitreous.methods.hetero.linear_variability import LinearVariability, LinearVariabilityConfig
from vitreous.methods.vaegan.config import VaeGanConfig, default_config
from vitreous.methods.vaegan.solver import STREAMS, VaeGan
from vitreous.physics.simulator import Simulator

ModelKind = Literal["linear", "vaegan", "vaegan2d"]  # the last one: images instead of maps


@dataclass(frozen=True)
class TrainingData:
    """Particles that a latent model is trained on."""

    working_set: WorkingSet  # particles, half sets, box size and pixel size
    options: LatentModelOptions  # of the run
    pose: Pose | None = None  # of each particle; None for models without poses

    def posed(self) -> PosedImages:
        """Return the images with their poses, for reconstruction."""
        assert self.pose is not None
        data = self.working_set
        return PosedImages(
            images=data.images,
            rotations=self.pose.rotation,
            shift_angstrom=self.pose.shift_angstrom,
            optics=data.optics,
            half_set=data.half_set,
            pixel_size_angstrom=data.pixel_size_angstrom,
            diameter_angstrom=self.options.mask_diameter_angstrom,
            symmetry=self.options.symmetry,
            seed=self.options.seed,
            device=data.device,
        )

    def model_pixel_size(self, model: LatentModel) -> float:
        """Return the pixel size of a model's maps, Å; their field of view is that of the images."""
        data = self.working_set
        return data.box_size * data.pixel_size_angstrom / model.box_size


def model_settings(
    kind: ModelKind, options: LatentModelOptions, data: WorkingSet
) -> dict[str, Any]:
    """Return all settings of a model: its defaults, those of the file, those of the options.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    diameter, file, effort = (options.mask_diameter_angstrom, options.settings_file, options.effort)
    if kind == "linear":
        given = {"components": options.latent_dimensions, "diameter_angstrom": diameter}
        linear = load_config(LinearVariabilityConfig, file, given)
        passes = max(2, round(linear.passes * effort))
        return dataclasses.asdict(dataclasses.replace(linear, passes=passes))
    mask_fraction = None  # images have no mask
    if diameter is not None and kind == "vaegan":
        mask_fraction = min(1.0, diameter / (2 * data.box_size * data.pixel_size_angstrom))
    given = {"latent": options.latent_dimensions, "mask_fraction": mask_fraction}
    preset = dataclasses.asdict(default_config(data.box_size, flat=kind == "vaegan2d"))
    gan = load_config(VaeGanConfig, file, given, defaults=preset)
    count = len(data.particles)
    if gan.batch_size > max(preset["batch_size"], count):
        raise UsageError(f"batch_size {gan.batch_size}: larger than the {count} particles")
    boxes = [stage.box_size for stage in gan.stages]
    if boxes != sorted(boxes) or boxes[0] < 8 or boxes[-1] > data.box_size:
        raise UsageError(
            f"stages: boxes {boxes} must grow from 8 or more up to at most {data.box_size}"
        )
    stages = tuple(
        dataclasses.replace(stage, iterations=max(1, round(stage.iterations * effort)))
        for stage in gan.stages
    )
    return dataclasses.asdict(dataclasses.replace(gan, stages=stages))


def training_job(
    command: str,
    options: LatentModelOptions,
    outputs: Iterable[str],
    data: WorkingSet,
    settings: Mapping[str, Any],
) -> Job:
    """Return the job of a command that trains a solver of these settings on a working set."""
    grid = {
        "images_sha256": data.digest,
        "working_box_size": data.box_size,
        "working_pixel_size_angstrom": data.pixel_size_angstrom,
        "contrast": data.grey.contrast,
    }
    resolved, machine = {**grid, "solver": dict(settings)}, {"device": str(data.device)}
    return Job(command, options, outputs=outputs, resolved=resolved, machine=machine)


def build_model(kind: ModelKind, settings: Mapping[str, Any], data: TrainingData) -> LatentModel:
    """Return an untrained model; ``settings`` are those of :func:`model_settings`.

    Raises:
        UsageError: settings that this version does not know.
        InputError: no poses for the model that needs them.
    """
    working_set, seed = data.working_set, data.options.seed
    if kind == "linear":
        if data.pose is None:
            raise InputError("no poses: the particles' table has none; see `align=False`")
        return LinearVariability(
            working_set.images,
            working_set.optics,
            data.pose,
            build(LinearVariabilityConfig, settings, CONFIG),
            generator=generator(seed, "variability"),
            pixel_size_angstrom=working_set.pixel_size_angstrom,
            device=working_set.device,
        )
    streams = {
        name: torch.Generator(working_set.device).manual_seed(stream_seed(seed, f"vaegan/{name}"))
        for name in STREAMS
    }
    config = build(VaeGanConfig, settings, CONFIG)
    return VaeGan(working_set.images, _simulator(data), config, streams)


def _simulator(data: TrainingData) -> Simulator:
    """Return the imaging conditions of the particles at the working box size."""
    working_set, optics = data.working_set, data.working_set.optics
    if optics is None:
        raise UsageError("`ignore_ctf`: the VAE-GAN simulates the CTF; leave out `align=False`")
    pixel = working_set.pixel_size_angstrom
    return Simulator(
        working_set.box_size,
        pixel,
        optics.to(working_set.device),
        working_set.particles.micrograph_id.to(working_set.device),
        shifts=parse_shift(data.options.shift_distribution, pixel),
    )
