"""Rounds of classification from the maps of clusters, as ``vitreous hetero run --rounds`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.cli.hetero_maps import ClassMap, PosedImages
from vitreous.core.params import Pose
from vitreous.metrics.fsc import fsc
from vitreous.solvers.classification import Classification, ClassificationConfig
from vitreous.solvers.clustering import Clusters
from vitreous.solvers.pose_config import PoseConfig


@dataclass(frozen=True)
class Reclassified:
    """Clusters with the classes that the rounds gave, poses, and the share that has moved."""

    clusters: Clusters
    pose: Pose
    moved: float


def reclassify(
    posed: PosedImages,
    latent: Tensor,
    clusters: Clusters,
    maps: list[ClassMap | None],
    rounds: int,
    *,
    notify: Callable[[float], object],
    record: Callable[[dict[str, Any]], object],
) -> Reclassified:
    """Pose and class of every particle in turn with maps of the classes.

    Args:
        posed: images and poses to start from.
        latent: ``(n, d)``, for the classes' new centres.
        clusters: to start from.
        maps: of each, on the images' grey scale.
        rounds: at most.
        notify: told the share that is done.
        record: told the numbers of every round.

    Every particle has a class afterwards. Classes without a map are left out.
    """
    places = [k for k, one in enumerate(maps) if one is not None]
    volumes = torch.stack([one.volume for one in maps if one is not None])
    poses = PoseConfig(
        start_resolution_angstrom=4 * posed.pixel_size_angstrom,
        symmetry=posed.symmetry,
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
    label = torch.tensor(places)[task.classes.cpu()]
    known = clusters.label >= 0
    moved = float((label != clusters.label)[known].float().mean())
    pose = Pose(task.poses.rotation.cpu(), task.poses.shift_angstrom.cpu())
    return Reclassified(relabelled(clusters, label, latent), pose, moved)


def relabelled(clusters: Clusters, label: Tensor, latent: Tensor) -> Clusters:
    """Clusters with other members, empty ones left out, renumbered by falling size.

    Probabilities are kept where the class is the same, else 0.
    """
    count = len(clusters)
    sizes = torch.bincount(label, minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    place = torch.full((count,), -1)
    place[order] = torch.arange(len(order))
    same = label == clusters.label
    return replace(
        clusters,
        label=place[label],
        sizes=sizes[order],
        centre=torch.stack([latent[label == k].mean(0) for k in order.tolist()]),
        probability=torch.where(same, clusters.probability, 0.0),
    )
