"""What a sorter of mixed particles was made from, as ``config.toml`` holds it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.core.images import ImageCache
from vitreous.core.params import Pose
from vitreous.data.working_images import SignedImages
from vitreous.io.checkpoint import load_checkpoint
from vitreous.io.nested import restore_state
from vitreous.jobs.hetero import solvers as sorters
from vitreous.jobs.hetero.solvers import Method, TrainingData
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet, open_working_set
from vitreous.jobs.run.folder import CHECKPOINTS, CONFIG, read_config
from vitreous.methods.hetero.latent_model import LatentModel

POSES = "poses.star"
COMMANDS = ("hetero train", "hetero run")
_WORKING = (
    *("symmetry", "box_size", "mask_diameter_angstrom"),
    *("invert", "ignore_ctf", "skip_bad", "seed"),
)
_FILES = ("apix", "data_root", "allow_outside_root", "permissive")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a sorter before it is trained.

    Args:
        files: the particles.
        working: how they are read.
        method: ``gan``: no poses; ``align``: with them.
        settings: of the solver, all of them.
        shift: how far particles are off centre, for ``gan``.
    """

    files: ParticleFiles
    working: ProcessingOptions
    method: Method
    settings: Mapping[str, Any] = field(default_factory=dict)
    shift: str = "none"

    def options(self) -> dict[str, Any]:
        """The table ``[options]`` of ``config.toml``, without the hash of the images."""
        files = {name: getattr(self.files, name) for name in _FILES}
        working = {name: getattr(self.working, name) for name in _WORKING}
        return {
            "method": self.method,
            **files,
            "passthrough": list(self.files.passthrough) or None,
            **working,
            "shift": self.shift,
            "solver": dict(self.settings),
        }

    @classmethod
    def of_config(cls, config: Mapping[str, Any], particles: Path | None = None) -> Recipe:
        """From what ``config.toml`` holds.

        Args:
            config: of the run.
            particles: where the table lies now, if it has moved.
        """
        options = config["options"]
        path = particles or Path(config["inputs"]["particles"]["path"])
        given = {name: options[name] for name in _FILES if name in options}
        if "data_root" in given:
            given["data_root"] = Path(given["data_root"])
        passthrough = tuple(Path(one) for one in options.get("passthrough", ()))
        return cls(
            files=ParticleFiles(path, passthrough=passthrough, **given),
            working=ProcessingOptions(
                **{name: options[name] for name in _WORKING if name in options}
            ),
            method=options["method"],
            settings=options.get("solver", {}),
            shift=options.get("shift", "none"),
        )


@dataclass(frozen=True)
class Trained:
    """A sorter that was trained, and what it was trained on."""

    recipe: Recipe
    material: TrainingData
    sorter: LatentModel

    @property
    def pixel_size_angstrom(self) -> float:
        """Of the model's maps, Å."""
        return model_pixel_size(self.material.data, self.sorter)


def model_pixel_size(data: WorkingSet, sorter: LatentModel) -> float:
    """Å per pixel of a model's maps, whose field of view is that of the images."""
    return data.box_size * data.pixel_size_angstrom / sorter.box_size


def material(recipe: Recipe, data: WorkingSet, pose: Pose | None) -> TrainingData:
    """What a sorter of this recipe is trained on."""
    images = SignedImages(data.particles, invert=recipe.working.invert)
    cached = ImageCache(images, data.box_size, torch.device("cpu"))
    return TrainingData(data, recipe.working, cached, pose, recipe.shift)


def pose_of_state(state: Mapping[str, Any], data: WorkingSet) -> Pose | None:
    """The poses of a run's checkpoint; the table's own object where they are the table's."""
    saved, own = state["pose"], data.particles.pose
    if saved is None:
        return None
    found = Pose(saved["rotation"], saved["shift_angstrom"])
    if own is not None and _same(found, own):
        return own
    return found


def _same(one: Pose, other: Pose) -> bool:
    return torch.equal(one.rotation, other.rotation) and torch.equal(
        one.shift_angstrom, other.shift_angstrom
    )


def load_trained(
    folder: Path,
    particles: Path | None = None,
    *,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = True,
) -> Trained:
    """The sorter of a folder that ``vitreous hetero train`` or ``run`` wrote.

    Args:
        folder: of the run.
        particles: where the table lies now, if it has moved.
        device, threads: where to compute.
        quiet: show no progress of the look through the images.

    Raises:
        UsageError: no such folder, or training has not ended.
        InputError: files that cannot be read, or other images than it was trained on.
    """
    config = _config(folder)
    recipe = Recipe.of_config(config, particles)
    recipe = replace(recipe, working=replace(recipe.working, device=device, threads=threads))
    data = open_working_set(recipe.files, recipe.working, check_all=True, quiet=quiet)
    if data.digest != config["options"].get("images_sha256"):
        raise InputError(
            f"{recipe.files.path}: not the images that {folder} was trained on; give theirs "
            "(--particles)"
        )
    found = load_checkpoint(folder / CHECKPOINTS)
    if found is None or not found.meta.get("done"):
        raise UsageError(f"{folder}: training has not ended; go on with it (--continue)")
    state = restore_state(found.tensors, found.meta["tree"])
    made = material(recipe, data, pose_of_state(state, data))
    sorter = sorters.build(recipe.method, recipe.settings, made)
    sorter.load_state_dict(state["sorter"]["state"])
    return Trained(recipe, made, sorter)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"{folder}: no output of vitreous hetero train or run; check the path")
    config = read_config(path)
    command = config.get("run", {}).get("command")
    if command not in COMMANDS:
        raise UsageError(
            f"{folder}: output of 'vitreous {command}'; give that of {' or '.join(COMMANDS)}"
        )
    return config
