"""An initial model that the user gives as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vitreous.core.errors import InputError
from vitreous.core.images import shell_power
from vitreous.core.random import generator
from vitreous.data.maps import read_map, resample_map
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.initial_model import CERTAIN
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.map_vs_noise_test import MOST_IMAGES, map_vs_noise_test


def read_start(
    path: Path, data: WorkingSet, resolution_angstrom: float, config: RefinementConfig
) -> InitialModel:
    """Return one map for both half sets, resampled to the images' grid.

    Args:
        path: file of the map.
        data: the particles.
        resolution_angstrom: to which the map is good.
        config: of the refinement.

    Raises:
        InputError: as :func:`~vitreous.data.maps.read_map`; or the images do not show the map.
    """
    images, n, pixel = data.images, data.box_size, data.pixel_size_angstrom
    volume = resample_map(*read_map(path), n, pixel).to(data.device)
    order = torch.randperm(len(images), generator=generator(config.seed, "recognition"))
    rows = order[:MOST_IMAGES].sort().values
    radius = round(n * pixel / resolution_angstrom)
    radii = sorted({min(radius, config.search_radius), min(radius, (n - 1) // 2)})
    certainty = map_vs_noise_test(
        volume,
        pixel,
        images.read(rows),
        None if data.optics is None else data.optics[rows],
        shell_power(images, rows).to(data.device),
        radii,
        replace(config, start_resolution_angstrom=resolution_angstrom),
    )
    if certainty < CERTAIN:
        raise InputError(
            f"{path}: the images fit this map no better than noise of the same power does "
            f"({certainty:.1f} standard errors); check that it is of these particles, `invert`, "
            "`symmetry` and its axes, or let `vitreous auto` find a map"
        )
    return InitialModel(volume, volume, resolution_angstrom, certainty=certainty)
