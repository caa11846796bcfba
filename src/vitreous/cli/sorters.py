"""The solvers of ``vitreous hetero`` made from options: the only place that knows them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vitreous.cli.common import generator, stream_seed
from vitreous.cli.config import build as checked
from vitreous.cli.config import load_config
from vitreous.cli.output import CONFIG
from vitreous.cli.sources import parse_shift
from vitreous.cli.working_set import Working, WorkingSet
from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Optics, Pose
from vitreous.physics.simulator import Simulator
from vitreous.solvers.images import ImageSource
from vitreous.solvers.sorter import Sorter
from vitreous.solvers.vaegan import STREAMS, VaeGan
from vitreous.solvers.vaegan_config import SortingStage, VaeGanConfig
from vitreous.solvers.variability import Variability
from vitreous.solvers.variability_config import VariabilityConfig

LARGEST_BOX = 16  # of the VAE-GAN's maps and images, by default
Method = Literal["gan", "align", "classes"]


@dataclass(frozen=True)
class Material:
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
    working: Working
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
    working: Working,
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
        linear = load_config(VariabilityConfig, file, given)
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


def default_config(box_size: int, *, flat: bool = False) -> VaeGanConfig:
    """Settings of the VAE-GAN for images of a box, as far as they were measured (docs/hetero.md).

    Args:
        box_size: of the images.
        flat: in two dimensions: images instead of volumes.

    >>> [(stage.box_size, stage.iterations) for stage in default_config(64).stages]
    [(16, 5000)]
    """
    n = max(8, min(box_size, LARGEST_BOX) // 4 * 4)
    both: dict[str, Any] = {
        "critic": "dense",
        "encoder": "dense",
        "encoder_only": 0.2,
        "noise": "scale",
        "batch_size": 128,
        "perceptual": 0.0,
        "kl": 0.0,
        "diversity": 0.0,
        "latent_loss": 0.3,
        "learning_rate_critic": 3e-3,
        "averaging": 0.99,
    }
    if flat:
        return VaeGanConfig(stages=(SortingStage(n, 2500),), generator="image", **both)
    return VaeGanConfig(
        stages=(SortingStage(n, 5000),),
        latent=3,
        generator="basis",
        basis_maps=4,
        basis_mixture=True,
        latent_from=0.35,
        invariant=False,
        learning_rate_generator=3e-4,
        rotate=True,
        **both,
    )


def build(method: Method, settings: Mapping[str, Any], material: Material) -> Sorter:
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
        return Variability(
            material.images,
            material.optics,
            data.pixel_size_angstrom,
            material.pose,
            checked(VariabilityConfig, settings, CONFIG),
            generator=generator(seed, "variability"),
            device=data.device,
        )
    streams = {
        name: torch.Generator(data.device).manual_seed(stream_seed(seed, f"vaegan/{name}"))
        for name in STREAMS
    }
    config = checked(VaeGanConfig, settings, CONFIG)
    return VaeGan(material.images, _simulator(material), config, streams)


def _simulator(material: Material) -> Simulator:
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
