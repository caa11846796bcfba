"""Result of a refinement: maps, poses and resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.methods.em.micrograph_optics import OpticsRefinement
from vitreous.methods.em.pose_posterior import PoseCandidates, RefinedPoses


@dataclass(frozen=True)
class RefinementResult:
    """Maps, poses and resolution of a refinement.

    Args:
        half1, half2: unfiltered half maps ``(n, n, n)``.
        map: regularised map of all images ``(n, n, n)``.
        poses: pose of every image, in the order of the images.
        fsc: between the half maps inside the particle's sphere, float64 ``(n // 2 + 1,)``.
        resolution_angstrom: where ``fsc`` falls below 0.143, Å.
        rounds: number of rounds.
        settled: whether the half maps no longer came to agree better.
        optics: refined defocus and contrast; false where nothing of them was refined.
    """

    half1: Tensor
    half2: Tensor
    map: Tensor
    poses: RefinedPoses
    fsc: Tensor
    resolution_angstrom: float
    rounds: int
    settled: bool
    optics: OpticsRefinement


def ordered_poses(
    candidates: PoseCandidates, kept: Tensor, rows: Tensor, total: int
) -> RefinedPoses:
    """Return poses in the images' order; zeros and identities for images without.

    Args:
        candidates: of both half sets.
        kept: bool, whether the maps were reconstructed from each.
        rows: of the images that they belong to.
        total: number of images.
    """
    device = candidates.log_likelihood_ratio.device
    rows = rows.to(device)

    def in_order(values: Tensor) -> Tensor:
        return values.new_zeros((total, *values.shape[1:])).index_copy(0, rows, values)

    ordered = PoseCandidates(**{name: in_order(one) for name, one in vars(candidates).items()})
    unused = torch.ones(total, dtype=torch.bool, device=device)
    unused[rows] = False
    ordered.rotation[unused] = torch.eye(3, device=device)
    return RefinedPoses(
        Pose(ordered.rotation[:, 0], ordered.shift_angstrom[:, 0]),
        ordered.posterior[:, 0],
        ordered.log_likelihood_ratio[:, 0] / 2,
        ordered.scale[:, 0],
        in_order(kept),
        ordered,
    )
