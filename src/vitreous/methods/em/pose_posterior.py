"""Candidate poses of images with their probabilities, samples of them, and the best of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.methods.em.image_record import ImageRecord


@dataclass(frozen=True)
class PoseCandidates(ImageRecord):
    """Candidate poses of each image, best first.

    Args:
        rotation: ``(b, c, 3, 3)``.
        shift_angstrom: ``(b, c, 2)``.
        log_likelihood_ratio: ``(b, c)``: squared error without the particle less that with it, in
            units of the noise power; minus infinity where there is no candidate.
        scale: ``(b, c)``, factor of the map in the image.
        posterior: ``(b, c)``, probability of each candidate; sums to 1.
        precision: ``(b, c, 5, 5)``, inverse covariance of each candidate's likelihood: rotation
            vector in radians, in the particle's axes, then shift in Å; 0 where unknown.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor
    scale: Tensor
    posterior: Tensor
    precision: Tensor

    def __len__(self) -> int:
        return len(self.log_likelihood_ratio)

    def best(self, count: int) -> PoseCandidates:
        """Return the first candidates of every image, their posterior summing to 1 again."""
        first = {name: value[:, :count] for name, value in vars(self).items()}
        first["posterior"] = first["posterior"] / first["posterior"].sum(1, keepdim=True)
        return PoseCandidates(**first)

    def moved(self, rotation: Tensor, shift_angstrom: Tensor) -> PoseCandidates:
        """Return the poses under a map that was rotated, then shifted.

        Args:
            rotation: ``(3, 3)`` R.
            shift_angstrom: ``(3,)`` t in (x, y, z): ``moved(r) = map(R^T (r - t))``.
        """
        moved = _moved(self.rotation, self.shift_angstrom, rotation, shift_angstrom)
        return replace(self, rotation=moved[0], shift_angstrom=moved[1])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample poses from the likelihood around each candidate.

        Args:
            count: samples of each candidate.
            generator: on any device.

        Returns:
            rotations ``(b, c, count, 3, 3)`` and shifts ``(b, c, count, 2)``.
        """
        b, c = self.log_likelihood_ratio.shape
        normal = torch.randn(b, c, 5, count, generator=generator, device=generator.device)
        normal = normal.to(self.log_likelihood_ratio)
        # a prior of half a radian and 10 Å, for images that know less
        diagonal = self.precision.diagonal(dim1=2, dim2=3)
        least = torch.where(torch.arange(5, device=diagonal.device) < 3, 4.0, 1e-2)
        floor = torch.diag_embed(1e-3 * diagonal + least)
        root = torch.linalg.cholesky(self.precision + floor)
        step = torch.linalg.solve_triangular(root.mT, normal, upper=True).mT
        rotation = axis_angle_to_matrix(step[..., :3]) @ self.rotation[:, :, None]
        return rotation, self.shift_angstrom[:, :, None] + step[..., 3:]

    @property
    def complete(self) -> bool:
        """Whether every image has a candidate."""
        return bool(self.log_likelihood_ratio[:, 0].isfinite().all())

    def among(self, place: Tensor, others: int | PoseCandidates) -> PoseCandidates:
        """Return others, or as many images without candidates, with these in the rows ``place``."""
        if isinstance(others, int):
            blank = self[torch.zeros(others, dtype=torch.long, device=place.device)]
            nothing = torch.full_like(blank.log_likelihood_ratio, -torch.inf)
            others = replace(blank, log_likelihood_ratio=nothing)
        most = max(self.log_likelihood_ratio.shape[1], others.log_likelihood_ratio.shape[1])
        return others.padded(most).updated(place, self.padded(most))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Return the candidates of several batches, padded where one has fewer."""
        most = max(part.log_likelihood_ratio.shape[1] for part in parts)
        return super().cat([part.padded(most) for part in parts])

    def padded(self, count: int) -> Self:
        """Return ``count`` candidates of each image, the missing ones without likelihood."""
        missing = count - self.log_likelihood_ratio.shape[1]
        if missing == 0:
            return self
        values = {}
        for name, value in vars(self).items():
            extra = value[:, -1:].repeat_interleave(missing, 1)
            if name in ("log_likelihood_ratio", "posterior"):
                extra = torch.full_like(extra, 0.0 if name == "posterior" else -torch.inf)
            values[name] = torch.cat([value, extra], 1)
        return type(self)(**values)


def _moved(
    rotation: Tensor, shift_angstrom: Tensor, by_rotation: Tensor, by_shift: Tensor
) -> tuple[Tensor, Tensor]:
    moved = rotation @ by_rotation.to(rotation).mT
    return moved, shift_angstrom - (moved @ by_shift.to(moved))[..., :2]


@dataclass(frozen=True)
class SampledPoses(ImageRecord):
    """Poses of each image to reconstruct from, of equal weight.

    Args:
        rotation: ``(b, d, 3, 3)``.
        shift_angstrom: ``(b, d, 2)``.
    """

    rotation: Tensor
    shift_angstrom: Tensor

    def moved(self, rotation: Tensor, shift_angstrom: Tensor) -> SampledPoses:
        """Return the poses under a map that was moved; see :meth:`PoseCandidates.moved`."""
        return SampledPoses(*_moved(self.rotation, self.shift_angstrom, rotation, shift_angstrom))


@dataclass(frozen=True)
class ExpectationResult:
    """Result of the expectation step for some images.

    Args:
        candidates: of each image.
        residual_power: sums over images of ``|residual|^2`` by shell, ``(K + 1,)``, in units of
            ``|rfft2|^2`` of the last band's images.
        sampled: poses to reconstruct from; None if none were asked for.
    """

    candidates: PoseCandidates
    residual_power: Tensor
    sampled: SampledPoses | None

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Return the result for the images of several batches."""
        sampled = [part.sampled for part in parts if part.sampled is not None]
        return cls(
            PoseCandidates.cat([part.candidates for part in parts]),
            torch.stack([part.residual_power for part in parts]).sum(0),
            SampledPoses.cat(sampled) if sampled else None,
        )


@dataclass(frozen=True)
class RefinedPoses:
    """Pose of each image, with its candidates.

    Args:
        pose: best rotation and shift.
        posterior: ``(b,)``, probability of the best among its image's candidates: the margin.
        log_likelihood: ``(b,)``, of the best, over that of noise alone.
        scale: ``(b,)``, factor of the map in the image.
        kept: bool ``(b,)``, whether the maps were reconstructed from it.
        candidates: of each image.
    """

    pose: Pose
    posterior: Tensor
    log_likelihood: Tensor
    scale: Tensor
    kept: Tensor
    candidates: PoseCandidates
