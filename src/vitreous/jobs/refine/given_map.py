"""An initial model that the user gives as a file."""

from __future__ import annotations

from pathlib import Path

import torch

from vitreous.core.errors import InputError
from vitreous.core.images import ImageSource, shell_power
from vitreous.core.params import Optics
from vitreous.core.random import generator
from vitreous.data.maps import read_map, resample_map
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.initial_model import CERTAIN, InitialModel
from vitreous.methods.em.map_vs_noise_test import MOST_IMAGES, map_vs_noise_test


def from_file(
    path: Path,
    images: ImageSource,
    optics: Optics | None,
    data: WorkingSet,
    config: RefinementConfig,
) -> InitialModel:
    """One map for both halves, brought to their grid.

    Args:
        path: of the map.
        images: all particles, at the working box.
        optics: of each.
        data: half sets and pixel size.
        config: of the refinement.

    Raises:
        InputError: as :func:`~vitreous.data.maps.read_map`; or the images do not show the map.
    """
    volume, pixel = read_map(path)
    n = data.box_size
    volume = resample_map(volume, pixel, n, data.pixel_size_angstrom).to(data.device)
    order = torch.randperm(len(images), generator=generator(config.seed, "recognition"))
    rows = order[:MOST_IMAGES].sort().values
    radius = round(n * data.pixel_size_angstrom / config.start_resolution_angstrom)
    radii = sorted({min(radius, config.search_radius), min(radius, (n - 1) // 2)})
    certainty = map_vs_noise_test(
        volume,
        data.pixel_size_angstrom,
        images.read(rows),
        None if optics is None else optics[rows],
        shell_power(images, rows).to(data.device),
        radii,
        config,
    )
    if certainty < CERTAIN:
        raise InputError(
            f"{path}: the images fit this map no better than noise of the same power does "
            f"({certainty:.1f} standard errors); check that it is of these particles, --invert, "
            "--sym and its axes, or let `vitreous auto` find a map"
        )
    return InitialModel(volume, volume, config.start_resolution_angstrom, certainty=certainty)
