"""Poses that a refinement of all particles as one structure lost, found again under several maps.

A particle whose pose is wrong is in no cluster, or in one of such particles. Under the map of its
own structure a search finds its pose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vitreous.cli.hetero_maps import ClassMap, PosedImages
from vitreous.cli.refine_run import SHIFT_SHARE
from vitreous.core.params import Pose
from vitreous.metrics.fsc import fsc
from vitreous.solvers.classification import Classification, ClassificationConfig
from vitreous.solvers.pose_config import PoseConfig

_MOST = 0.98  # of the particles, whose known shifts bound the search


def search_again(
    posed: PosedImages,
    maps: list[ClassMap | None],
    rounds: int,
    *,
    notify: Callable[[float], object],
    record: Callable[[dict[str, Any]], object],
) -> Pose:
    """Pose and class of every particle in turn with maps of the classes; the poses in the end.

    Args:
        posed: images and poses to start from.
        maps: of clusters, on the images' grey scale; None is left out.
        rounds: at most.
        notify: told the share that is done.
        record: told the numbers of every round.
    """
    edge = posed.images.box_size * posed.pixel_size_angstrom
    known = posed.pose.shift_angstrom.norm(dim=1).quantile(_MOST).item()  # maps may be off centre
    volumes = torch.stack([one.volume for one in maps if one is not None])
    poses = PoseConfig(
        start_resolution_angstrom=4 * posed.pixel_size_angstrom,
        symmetry=posed.symmetry,
        shift_range_angstrom=max(SHIFT_SHARE * edge, known),
        scale="image",
        diameter_angstrom=posed.diameter_angstrom,
        seed=posed.seed,
    )
    task = Classification(
        posed.images,
        posed.optics,
        posed.pixel_size_angstrom,
        posed.pose,
        volumes,
        ClassificationConfig(poses, rounds=rounds),
        correlate=fsc,
        progress=lambda share: notify((task.round + share) / rounds),
        device=posed.device,
    )
    while not task.done:
        record({"round": task.round + 1, **task.step()})
    return Pose(task.poses.rotation.cpu(), task.poses.shift_angstrom.cpu())
