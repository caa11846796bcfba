"""A small molecule and images of it, shared by the tests of pose assignment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.rotation import geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import point_group
from vitreous.data.phantoms import protein_phantom
from vitreous.physics.simulator import simulate

BOX, PIXEL = 32, 6.0


@dataclass(frozen=True)
class Case:
    volume: Tensor
    images: Tensor
    rotation: Tensor
    shift: Tensor
    optics: Optics
    symmetry: str

    def errors_deg(self, found: Tensor) -> Tensor:
        """Angles to the nearest equivalent of the truth, of ``(b, c, 3, 3)``."""
        group = point_group(self.symmetry).matrices.float()
        truth = (self.rotation[:, None] @ group)[:, None]
        return geodesic_distance_deg(found[:, :, None], truth).amin(-1)


def astigmatic(b: int, stream: torch.Generator) -> Optics:
    """CTFs of underfoci from 0.65 to 2 µm, astigmatic in any direction."""
    u = 8000 + 12000 * torch.rand(b, generator=stream)
    return replace(
        Optics.uniform(b),
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 1500,
        defocus_angle_deg=180 * torch.rand(b, generator=stream),
    )


@lru_cache(maxsize=8)
def case(b: int, symmetry: str = "C1", noise: float = 0.0) -> Case:
    """Images with shifts, astigmatic CTFs and white noise, ``noise`` times the signal's size."""
    stream = torch.Generator().manual_seed(4)
    volume = protein_phantom(BOX, PIXEL, seed=1, point_group=symmetry)
    rotation = random_rotations(b, generator=stream)
    shift = (3 * torch.randn(b, 2, generator=stream)).clamp(-6, 6)
    optics = astigmatic(b, stream)
    images = simulate(volume, rotation, shift, optics, PIXEL)
    images = images + noise * images.std() * torch.randn(images.shape, generator=stream)
    return Case(volume, images, rotation, shift, optics, symmetry)
