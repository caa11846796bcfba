"""Poses searched again under the maps of classes.

A refinement of all particles as one structure loses some poses. A particle with a wrong pose is in
no cluster, or in one of such particles; under the map of its own structure a search finds its pose.
"""

from collections.abc import Callable

from torch import Tensor

from vitreous.core.params import Pose
from vitreous.methods.em.config import SHIFT_SHARE, RefinementConfig
from vitreous.methods.hetero.class_maps import PosedImages
from vitreous.methods.hetero.classification3d import Classification, ClassificationConfig

_SHIFT_QUANTILE = 0.98  # of the known shifts, which bounds the search


def pose_search(
    posed: PosedImages,
    label: Tensor,
    maps: Tensor,
    rounds: int,
    report_progress: Callable[[float], object],
) -> Classification:
    """Return the solver that searches pose and class of every particle under maps of classes.

    ``posed`` holds the poses to start from, ``label`` the class of each image, long ``(n,)``, -1
    for none, and ``maps (K, n, n, n)`` are of the images' grey scale. ``report_progress`` is called
    with the share of all ``rounds`` that is done.
    """
    assert posed.shift_angstrom is not None
    pose = Pose(posed.rotations, posed.shift_angstrom)
    edge_angstrom = posed.images.box_size * posed.pixel_size_angstrom
    largest_shift = shift_range(pose.shift_angstrom, label)
    poses = RefinementConfig(
        start_resolution_angstrom=4 * posed.pixel_size_angstrom,
        symmetry=posed.symmetry,
        shift_range_angstrom=max(SHIFT_SHARE * edge_angstrom, largest_shift),
        scale="image",
        diameter_angstrom=posed.diameter_angstrom,
        seed=posed.seed,
    )
    solver = Classification(
        posed.images,
        posed.optics,
        pose,
        maps,
        ClassificationConfig(poses, rounds=rounds),
        pixel_size_angstrom=posed.pixel_size_angstrom,
        report_progress=lambda share: report_progress((solver.round + share) / rounds),
        device=posed.device,
    )
    return solver


def shift_range(shift_angstrom: Tensor, label: Tensor) -> float:
    """Return how far the particles of any class are off centre in the frame of its map, Å.

    It is at least the distance within which 98 % of each class lie; a map may be off centre itself.
    ``shift_angstrom`` is ``(n, 2)``, ``label`` long ``(n,)``, -1 for none.

    >>> import torch
    >>> shifts = torch.tensor([[0.0, 0], [0, 0], [30, 40], [30, 40]])
    >>> shift_range(shifts, torch.tensor([0, 0, 1, 1]))
    50.0
    """
    distance = shift_angstrom.norm(dim=1)
    return max(distance[label == k].quantile(_SHIFT_QUANTILE).item() for k in set(label.tolist()))
