"""Maximisation step: half maps from the candidate poses of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImageSource, ImageSubset
from vitreous.core.params import Optics
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.ctf_refinement import ScaledImages
from vitreous.methods.em.half_set import HalfSet
from vitreous.methods.em.pose_posterior import PoseCandidates
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    half_map,
    noise_to_signal,
    particle_sphere,
    wiener_map,
)
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.insertion import Gridding

_LEAST_KEPT = 0.1  # of a half set, whatever is rejected


@dataclass(frozen=True)
class InsertedPoses:
    """Poses to reconstruct from, in the images' order; an image may have several.

    Args:
        row: long ``(m,)``, of the image.
        rotation: ``(m, 3, 3)``.
        shift_angstrom: ``(m, 2)``.
        weight: ``(m,)``; those of an image sum to 1.
    """

    row: Tensor
    rotation: Tensor
    shift_angstrom: Tensor
    weight: Tensor


def kept_images(candidates: PoseCandidates, *, reject: bool) -> Tensor:
    """Return which images are reconstructed from, bool ``(b,)``.

    Between a particle of the map's own scale and none at all, a log likelihood ratio of 0 is the
    even chance.

    Args:
        candidates: of the images.
        reject: leave out images that noise explains better.
    """
    ratio = candidates.log_likelihood_ratio[:, 0]
    better = ratio > 0
    if reject and float(better.float().mean()) > _LEAST_KEPT:
        return better
    return torch.ones_like(better)


def inserted_poses(
    halves: Sequence[HalfSet], kept: Callable[[PoseCandidates], Tensor]
) -> InsertedPoses:
    """Return the sampled poses of a round's images, or their best poses.

    Args:
        halves: both half sets.
        kept: tells which images are reconstructed from.
    """
    columns: list[tuple[Tensor, ...]] = []
    for half in halves:
        candidates = half.round_candidates()
        rotation, shift = candidates.rotation[:, :1], candidates.shift_angstrom[:, :1]
        if half.sampled is not None:
            rotation, shift = half.sampled.rotation, half.sampled.shift_angstrom
        samples, chosen = rotation.shape[1], kept(candidates)
        rows = half.round_rows[chosen.cpu()].repeat_interleave(samples)
        weight = torch.full((len(rows),), 1 / samples)
        columns.append((rows, rotation[chosen].flatten(0, 1), shift[chosen].flatten(0, 1), weight))
    row, rotation, shift, weight = (torch.cat(c) for c in zip(*columns, strict=True))
    order = row.argsort(stable=True)
    order_there = order.to(rotation.device)
    return InsertedPoses(
        row[order], rotation[order_there].cpu(), shift[order_there].cpu(), weight[order]
    )


@dataclass(frozen=True)
class Maximisation:
    """Reconstruction of both half maps by weighted gridding.

    Args:
        images: protein positive.
        half_set: long ``(b,)`` of 1 and 2.
        pixel_size_angstrom: Å.
        config: of the refinement.
        device: where to compute.
    """

    images: ImageSource
    half_set: Tensor
    pixel_size_angstrom: float
    config: RefinementConfig
    device: torch.device

    def sphere(self, box: int) -> Tensor:
        """Return the soft sphere that holds the particle, ``(box, box, box)``."""
        edge = self.images.box_size * self.pixel_size_angstrom
        diameter = self.config.diameter_angstrom or edge
        return particle_sphere(box, diameter / edge, self.device)

    def insert(
        self, poses: InsertedPoses, optics: Optics | None, scale: Tensor | None, box: int
    ) -> tuple[Gridding, Gridding]:
        """Return the sums of both half sets.

        Args:
            poses: of the images.
            optics: of each image; None for none.
            scale: contrast of each image ``(b,)``, by which it is weighted; None: all equal.
            box: of the sums.
        """
        row, weight = poses.row, poses.weight
        images: ImageSource = ImageSubset(self.images, row)
        if scale is not None:  # a c y and a^2 c^2 are to be summed
            images = ScaledImages(images, 1 / scale[row])
            weight = weight * scale[row].square()
        particles = PosedParticles(
            images,
            poses.rotation,
            poses.shift_angstrom,
            None if optics is None else optics[row],
            self.pixel_size_angstrom,
            self.half_set[row],
        )
        symmetry, device = self.config.symmetry, self.device
        return accumulate(particles, box_size=box, symmetry=symmetry, weight=weight, device=device)

    def references(self, sums: tuple[Gridding, Gridding], curve: Tensor) -> tuple[Tensor, ...]:
        """Return the Wiener maps under which the next round finds poses, one for each half set.

        Args:
            sums: of both half sets.
            curve: FSC between their maps.
        """
        ratio = noise_to_signal(curve)
        if self.config.one_map:
            weighted = [wiener_map(sums[0] + sums[1], ratio)] * 2
        else:
            weighted = [wiener_map(one, 2 * ratio) for one in sums]
        n, sphere = self.images.box_size, self.sphere(sums[0].box_size)
        return tuple(fourier_resize(one * sphere, n, 3) for one in weighted)

    def maps(self, sums: tuple[Gridding, Gridding], curve: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unfiltered half maps, and the Wiener map of all images, ``(n, n, n)``.

        Arguments are as of :meth:`references`.
        """
        n, (first, second) = self.images.box_size, sums
        whole = wiener_map(first + second, noise_to_signal(curve[: first.box_size // 2 + 1]))
        half1, half2, average = (
            fourier_resize(v, n, 3) for v in (half_map(first), half_map(second), whole)
        )
        return half1, half2, average
