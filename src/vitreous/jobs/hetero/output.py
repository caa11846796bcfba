"""Files that the ``vitreous hetero`` commands write: tables with latents and classes, and maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.data.maps import write_fsc_csv
from vitreous.io.mrc import write_mrc
from vitreous.io.star import read_star
from vitreous.jobs.run.class_tables import (
    _OURS,
    CLASS,
    COMPONENT,
    LATENT,
    PLANE,
    PROBABILITY,
    class_name,
)
from vitreous.jobs.run.folder import OutputFolder
from vitreous.maps.half_map_pair import curves_by_name
from vitreous.methods.hetero.class_maps import ClassMap, Traversal
from vitreous.methods.hetero.clustering import Clusters


def files_of(path: Path, *names: str) -> tuple[str, ...]:
    """Names that a command may have written into a folder before; the classes' are looked up."""
    found = path.iterdir() if path.is_dir() else ()
    return (*names, *sorted(one.name for one in found if _OURS.fullmatch(one.name)))


def latent_columns(latent: Tensor) -> dict[str, list[str]]:
    """``vitreousLatent1`` and so on, with all digits of single precision.

    >>> latent_columns(torch.tensor([[0.5, 1e-9]]))
    {'vitreousLatent1': ['0.5'], 'vitreousLatent2': ['9.99999972e-10']}
    """
    return {
        f"{LATENT}{i + 1}": [f"{value:.9g}" for value in column.tolist()]
        for i, column in enumerate(latent.double().mT)
    }


def cluster_columns(clusters: Clusters, traversals: Sequence[Traversal]) -> dict[str, Any]:
    """Class (0: none), its probability, the plane to look at, and the place along the class."""
    along = torch.zeros(len(clusters.label))
    for k, one in enumerate(traversals):
        along[clusters.label == k] = one.path.score
    return {
        CLASS: (clusters.label + 1).numpy(),
        PROBABILITY: clusters.probability.numpy(),
        PLANE[0]: clusters.plane[:, 0].numpy(),
        PLANE[1]: clusters.plane[:, 1].numpy(),
        COMPONENT: along.numpy(),
    }


def read_latents(path: Path, count: int) -> Tensor:
    """Latents ``(n, d)`` of a table that ``vitreous hetero embed`` or ``run`` wrote.

    Args:
        path: the STAR file.
        count: of its particles.

    Raises:
        InputError: it has none, or values that are no finite numbers.
    """
    table = read_star(path).blocks["particles"]
    names = [name for name in table.columns if re.fullmatch(rf"{LATENT}\d+", name)]
    if not names:
        raise InputError(
            f"{path}: column _{LATENT}1: missing; give the particles.star of vitreous hetero embed "
            "or run"
        )
    names.sort(key=lambda name: int(name[len(LATENT) :]))
    columns = [torch.from_numpy(table.numbers(name, path)) for name in names]
    if len(columns[0]) != count:
        raise InputError(f"{path}: {len(columns[0])} rows of latents for {count} particles")
    return torch.stack(columns, dim=-1).float()


def write_class_maps(
    folder: OutputFolder, maps: Sequence[ClassMap | None], pixel_size_angstrom: float
) -> None:
    """Write ``class01.mrc`` and so on; with halves also ``class01_half1.mrc`` and the FSC.

    Raises:
        ResourceError: the disk is full.
    """
    for number, one in enumerate(maps, 1):
        if one is None:
            continue
        name = class_name(number)
        volumes = {f"{name}.mrc": one.volume}
        if one.halves is not None:
            halves = one.halves
            volumes[f"{name}_half1.mrc"] = halves.half1
            volumes[f"{name}_half2.mrc"] = halves.half2
            curves = curves_by_name(halves)
            path = folder.path(f"{name}_fsc.csv")
            write_fsc_csv(path, curves, len(one.volume), pixel_size_angstrom)
        for file, volume in volumes.items():
            write_mrc(folder.path(file), volume.cpu().float().numpy(), pixel_size_angstrom)


def write_traversals(
    folder: OutputFolder,
    traversals: Sequence[Traversal],
    pixel_size_angstrom: float,
    numbers: Sequence[int] | None = None,
) -> None:
    """Write ``class01_pc1_1.mrc`` and so on, from the 5th to the 95th percentile.

    Args:
        folder: where to.
        traversals: one for each class.
        pixel_size_angstrom: of the maps.
        numbers: of the classes; 1, 2 ... by default.

    Raises:
        ResourceError: the disk is full.
    """
    for number, one in zip(numbers or range(1, len(traversals) + 1), traversals, strict=True):
        for k, volume in enumerate(one.maps, 1):
            path = folder.path(f"{class_name(number)}_pc1_{k}.mrc")
            write_mrc(path, volume.numpy(), pixel_size_angstrom)
