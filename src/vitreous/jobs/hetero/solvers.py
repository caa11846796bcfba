"""The solvers of ``vitreous hetero`` made from options: the only place that knows them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.core.images import ImageSource
from vitreous.core.params import Optics, Pose
from vitreous.core.random import generator, stream_seed
from vitreous.data.simulation_inputs import parse_shift
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet
from vitreous.jobs.run.config import build as checked
from vitreous.jobs.run.config import load_config
from vitreous.jobs.run.folder import CONFIG
from vitreous.methods.hetero.latent_model import LatentModel
from vitreous.methods.hetero.linear_variability import LinearVariability
from vitreous.methods.hetero.variability_config import LinearVariabilityConfig
from vitreous.methods.vaegan.config import VaeGanConfig
from vitreous.methods.vaegan.presets import default_config
from vitreous.methods.vaegan.solver import STREAMS, VaeGan
from vitreous.physics.simulator import Simulator

Method = Literal["gan", "align", "classes"]


@dataclass(frozen=True)
class TrainingData:
    """What a sorter is trained on.

    Args:
        data: particles, half sets, working box and pixel size.
        working: options of the pass over them.
        images: protein positive, at the working box.
        pose: of each particle; None for the method that needs none.
        shift: how far particles are off centre, as on the command line, for the method without
            poses.
    """

    data: WorkingSet
    working: ProcessingOptions
    images: ImageSource
    pose: Pose | None
    shift: str = "none"

    @property
    def optics(self) -> Optics | None:
        """CTF of each particle; None where images are free of it."""
        return None if self.working.ignore_ctf else self.data.particles.optics


def settle(
    method: Method,
    file: Path | None,
    overrides: Mapping[str, Any],
    working: ProcessingOptions,
    data: WorkingSet,
) -> dict[str, Any]:
    """All settings of a method: its defaults, the file's, the command line's.

    Args:
        method: ``gan`` or ``align``; ``classes``: the first in two dimensions.
        file: TOML, or None.
        overrides: ``latent``, how many dimensions, and ``effort``, what multiplies the steps; None
            for what was not given.
        working: options that are settings too.
        data: what they are to fit.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    effort = float(overrides.get("effort") or 1.0)
    diameter = working.mask_diameter_angstrom
    if method == "align":
        given = {"components": overrides.get("latent"), "diameter_angstrom": diameter}
        linear = load_config(LinearVariabilityConfig, file, given)
        passes = max(2, round(linear.passes * effort))
        return dataclasses.asdict(dataclasses.replace(linear, passes=passes))
    share = None  # of the mask, which images have none of
    if diameter is not None and method == "gan":
        share = min(1.0, diameter / (2 * data.box_size * data.pixel_size_angstrom))
    given = {"latent": overrides.get("latent"), "mask_fraction": share}
    preset = dataclasses.asdict(default_config(data.box_size, flat=method == "classes"))
    gan = load_config(VaeGanConfig, file, given, defaults=preset)
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


def build(method: Method, settings: Mapping[str, Any], material: TrainingData) -> LatentModel:
    """A sorter that has not been trained yet.

    Args:
        method: ``gan`` or ``align``; ``classes``: the first in two dimensions.
        settings: from :func:`settle`.
        material: what it is trained on.

    Raises:
        UsageError: settings that this version does not know.
        InputError: no poses for the method that needs them.
    """
    data, seed = material.data, material.working.seed
    if method == "align":
        if material.pose is None:
            raise InputError("no poses: the particles' table has none; see --no-align")
        return LinearVariability(
            material.images,
            material.optics,
            data.pixel_size_angstrom,
            material.pose,
            checked(LinearVariabilityConfig, settings, CONFIG),
            generator=generator(seed, "variability"),
            device=data.device,
        )
    streams = {
        name: torch.Generator(data.device).manual_seed(stream_seed(seed, f"vaegan/{name}"))
        for name in STREAMS
    }
    config = checked(VaeGanConfig, settings, CONFIG)
    return VaeGan(material.images, _simulator(material), config, streams)


def _simulator(material: TrainingData) -> Simulator:
    """Imaging conditions of the particles at the working box."""
    data = material.data
    optics = material.optics
    if optics is None:
        raise UsageError("--ignore-ctf: the VAE-GAN simulates the CTF; leave out --no-align")
    return Simulator(
        data.box_size,
        data.pixel_size_angstrom,
        optics.to(data.device),
        data.particles.micrograph_id.to(data.device),
        shifts=parse_shift(material.shift, data.pixel_size_angstrom),
    )
