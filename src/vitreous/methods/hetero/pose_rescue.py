"""Poses that a refinement of all particles as one structure lost, found again under several maps.

A particle whose pose is wrong is in no cluster, or in one of such particles. Under the map of its
own structure a search finds its pose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vitreous.core.params import Pose
from vitreous.maps.fsc import fsc
from vitreous.methods.em.config import SHIFT_SHARE, RefinementConfig
from vitreous.methods.hetero.class_maps import PosedImages
from vitreous.methods.hetero.classification3d import Classification, ClassificationConfig

_MOST = 0.98  # of the particles, whose known shifts bound the search


def search_again(
    posed: PosedImages,
    label: Tensor,
    maps: Tensor,
    rounds: int,
    *,
    state: Mapping[str, Any] | None = None,
    notify: Callable[[float], object],
    keep: Callable[[dict[str, Any], dict[str, Any]], object],
) -> Pose:
    """Pose and class of every particle in turn with maps of the classes; the poses in the end.

    Args:
        posed: images and poses to start from.
        label: class of each, long ``(n,)``, -1 for none.
        maps: ``(K, n, n, n)``, on the images' grey scale.
        rounds: at most.
        state: of an earlier search with the same images, to go on from; its maps are gone on with.
        notify: told the share that is done.
        keep: told the numbers of every round, and the state after it.
    """
    edge = posed.images.box_size * posed.pixel_size_angstrom
    poses = RefinementConfig(
        start_resolution_angstrom=4 * posed.pixel_size_angstrom,
        symmetry=posed.symmetry,
        shift_range_angstrom=max(SHIFT_SHARE * edge, reach(posed.pose.shift_angstrom, label)),
        scale="image",
        diameter_angstrom=posed.diameter_angstrom,
        seed=posed.seed,
    )
    task = Classification(
        posed.images,
        posed.optics,
        posed.pixel_size_angstrom,
        posed.pose,
        maps if state is None else state["maps"],
        ClassificationConfig(poses, rounds=rounds),
        correlate=fsc,
        progress=lambda share: notify((task.round + share) / rounds),
        device=posed.device,
    )
    if state is not None:
        task.load_state_dict(dict(state))
    while not task.done:
        stats = task.step()
        keep({"round": task.round, **stats}, task.state_dict())
    return Pose(task.poses.rotation.cpu(), task.poses.shift_angstrom.cpu())


def reach(shift_angstrom: Tensor, label: Tensor) -> float:
    """How far particles of any class are off centre in the frame of its map, which may be so too.

    Args:
        shift_angstrom: ``(n, 2)``.
        label: class of each, long ``(n,)``, -1 for none.

    Returns:
        Å, at least as far as 98 % of each class are.

    >>> import torch
    >>> reach(torch.tensor([[0.0, 0], [0, 0], [30, 40], [30, 40]]), torch.tensor([0, 0, 1, 1]))
    50.0
    """
    far = shift_angstrom.norm(dim=1)
    return max(far[label == k].quantile(_MOST).item() for k in set(label.tolist()))
