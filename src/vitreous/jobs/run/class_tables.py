"""Tables of particles with latents and classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.data.tables import pose_columns
from vitreous.io.star import StarDocument, write_star
from vitreous.jobs.run.folder import OutputFolder
from vitreous.methods.hetero.clustering import Clusters

LATENT = "vitreousLatent"
CLASS = "rlnClassNumber"
PROBABILITY = "vitreousClassProbability"
COMPONENT = "vitreousComponent1"
PLANE = ("vitreousPlane1", "vitreousPlane2")
UNSORTED = "unsorted.star"
_CLASS_FILE = re.compile(r"class\d{2,}(_[a-z0-9_]+)?\.(mrc|star|csv)")


def class_name(number: int) -> str:
    """Return the stem of the file names of a class, numbered from 1.

    >>> class_name(3)
    'class03'
    """
    return f"class{number:02d}"


def files_of_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the files of classes that a folder holds."""
    files = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(file.name for file in files if _CLASS_FILE.fullmatch(file.name)))


def latent_columns(latent: Tensor) -> dict[str, list[str]]:
    """Return the columns of latents ``(n, d)``, with all digits of single precision.

    >>> latent_columns(torch.tensor([[0.5, 1e-9]]))
    {'vitreousLatent1': ['0.5'], 'vitreousLatent2': ['9.99999972e-10']}
    """
    return {
        f"{LATENT}{i + 1}": [f"{value:.9g}" for value in column.tolist()]
        for i, column in enumerate(latent.double().mT)
    }


def clustering_columns(clusters: Clusters) -> dict[str, Any]:
    """Return the membership probability and the coordinates in the plane of the embedding."""
    return {
        PROBABILITY: clusters.probability.numpy(),
        PLANE[0]: clusters.plane[:, 0].numpy(),
        PLANE[1]: clusters.plane[:, 1].numpy(),
    }


def axes_names(space: str) -> tuple[str, str]:
    """Return the names of the axes of an embedding's plane."""
    if space == "umap":
        return "UMAP 1", "UMAP 2"
    return "principal component 1", "principal component 2"


def write_tables(
    folder: OutputFolder,
    particles: Particles,
    columns: Mapping[str, Any],
    *,
    pose: Pose | None = None,
    half_set: Tensor | None = None,
    label: Tensor | None = None,
) -> StarDocument:
    """Write ``particles.star`` with all particles, and one table for each class.

    Args:
        folder: output folder.
        particles: in the order of the input.
        columns: to be added, a value for each particle.
        pose, half_set: to be written as well, unless they are the table's own.
        label: class, long ``(n,)`` from 0 on, -1 for none; None writes no tables of classes.

    Returns:
        the content of ``particles.star``.

    Raises:
        ResourceError: the disk is full.
    """
    added = dict(columns)
    if pose is not None and pose is not particles.pose:  # the table's own stay as they are
        added |= pose_columns(pose)
    if half_set is not None:
        added["rlnRandomSubset"] = half_set.cpu().numpy()

    def write(name: str, rows: Tensor) -> StarDocument:
        chosen = rows.tolist()
        of_rows = {key: [values[i] for i in chosen] for key, values in added.items()}
        document = particles.select(rows).to_star_document(relative_to=folder.root, **of_rows)
        write_star(folder.path(name), document)
        return document

    table = write("particles.star", torch.arange(len(particles)))
    if label is None:
        return table
    for k in range(int(label.max()) + 1):
        if bool((label == k).any()):
            write(f"{class_name(k + 1)}.star", (label == k).nonzero().flatten())
    if bool((label < 0).any()):
        write(UNSORTED, (label < 0).nonzero().flatten())
    return table
