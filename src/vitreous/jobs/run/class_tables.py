"""Tables of sorted particles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.data.particles import Particles
from vitreous.data.tables import pose_columns
from vitreous.io.star import write_star
from vitreous.jobs.run.folder import OutputFolder

LATENT = "vitreousLatent"


CLASS = "rlnClassNumber"


PROBABILITY = "vitreousClassProbability"


COMPONENT = "vitreousComponent1"


PLANE = ("vitreousPlane1", "vitreousPlane2")


UNSORTED = "unsorted.star"


_OURS = re.compile(r"class\d{2,}(_[a-z0-9_]+)?\.(mrc|star|csv)")


def class_name(number: int) -> str:
    """Of the files of a class, numbered from 1.

    >>> class_name(3)
    'class03'
    """
    return f"class{number:02d}"


def write_tables(
    folder: OutputFolder,
    particles: Particles,
    columns: Mapping[str, Any],
    *,
    pose: Pose | None = None,
    half_set: Tensor | None = None,
    label: Tensor | None = None,
) -> None:
    """Write ``particles.star``: all of them, and one table for each class.

    Args:
        folder: where to.
        particles: in the order of the input.
        columns: to be added, a value for each.
        pose, half_set: to be written as well, unless they are the table's own.
        label: long ``(n,)`` from 0 on, -1 for none; None writes no tables of classes.

    Raises:
        ResourceError: the disk is full.
    """
    every = dict(columns)
    if pose is not None and pose is not particles.pose:  # the table's own stay as they are
        every |= pose_columns(pose)
    if half_set is not None:
        every["rlnRandomSubset"] = half_set.cpu().numpy()

    def write(name: str, rows: Tensor) -> None:
        chosen = rows.tolist()
        some = {key: [values[i] for i in chosen] for key, values in every.items()}
        document = particles.select(rows).to_star_document(relative_to=folder.root, **some)
        write_star(folder.path(name), document)

    write("particles.star", torch.arange(len(particles)))
    if label is None:
        return
    for k in range(int(label.max()) + 1):
        if bool((label == k).any()):
            write(f"{class_name(k + 1)}.star", (label == k).nonzero().flatten())
    if bool((label < 0).any()):
        write(UNSORTED, (label < 0).nonzero().flatten())
