"""The solvers of ``vitreous hetero`` made from options: the only place that knows them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitreous.cli.common import generator
from vitreous.cli.config import build as checked
from vitreous.cli.config import load_config
from vitreous.cli.working_set import Working, WorkingSet
from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Optics, Pose
from vitreous.solvers.images import ImageSource
from vitreous.solvers.sorter import Sorter
from vitreous.solvers.variability import Variability
from vitreous.solvers.variability_config import VariabilityConfig

Method = Literal["gan", "align"]


@dataclass(frozen=True)
class Material:
    """What a sorter is trained on.

    Args:
        data: particles, half sets, working box and pixel size.
        working: options of the pass over them.
        images: protein positive, at the working box.
        pose: of each particle; None for the method that needs none.
    """

    data: WorkingSet
    working: Working
    images: ImageSource
    pose: Pose | None

    @property
    def optics(self) -> Optics | None:
        """CTF of each particle; None where images are free of it."""
        return None if self.working.ignore_ctf else self.data.particles.optics


def settle(
    method: Method, file: Path | None, overrides: Mapping[str, Any], working: Working
) -> dict[str, Any]:
    """All settings of a method: its defaults, the file's, the command line's.

    Args:
        method: ``gan`` or ``align``.
        file: TOML, or None.
        overrides: ``latent``, how many dimensions, and ``effort``, what multiplies the steps; None
            for what was not given.
        working: options that are settings too.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    if method == "gan":
        raise UsageError("--method gan: not in this version; give --align")
    config = load_config(
        VariabilityConfig,
        file,
        {
            "components": overrides.get("latent"),
            "diameter_angstrom": working.mask_diameter_angstrom,
        },
    )
    passes = max(2, round(config.passes * (overrides.get("effort") or 1.0)))
    return dataclasses.asdict(dataclasses.replace(config, passes=passes))


def build(method: Method, settings: Mapping[str, Any], material: Material) -> Sorter:
    """A sorter that has not been trained yet.

    Args:
        method: ``gan`` or ``align``.
        settings: from :func:`settle`.
        material: what it is trained on.

    Raises:
        UsageError: settings that this version does not know.
        InputError: no poses for the method that needs them.
    """
    if method == "gan":
        raise UsageError("--method gan: not in this version; give --align")
    if material.pose is None:
        raise InputError("no poses: the particles' table has none; leave it to hetero run --align")
    return Variability(
        material.images,
        material.optics,
        material.data.pixel_size_angstrom,
        material.pose,
        checked(VariabilityConfig, settings, "config.toml"),
        generator=generator(material.working.seed, "variability"),
        device=material.data.device,
    )
