"""Imperfections of particles in simulated data sets: ice, defocus, beam tilt, junk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.random import generator
from vitreous.physics.ctf import with_defocus_change
from vitreous.physics.poses import UniformPoses

PARTICLE, BACKGROUND, CONTAMINATION, OVERLAP = range(4)
"""Values of the column ``vitreousJunk``."""
_BLOB_PEAK = 8.0  # of a contamination, in deviations of the particle's noiseless image


@dataclass(frozen=True)
class Imperfections:
    """Imperfections of particles and micrographs; none by default.

    Args:
        ice_micrographs: relative standard deviation of the contrast of micrographs,
            log-normal with mean 1, as by the thickness of ice.
        ice_particles: the same of particles around their micrograph's contrast.
        defocus_spread_angstrom: largest distance of a particle's defocus from its micrograph's.
        beam_tilt_mrad: beam tilt (x, y) of all micrographs.
        junk: share of images that show no single particle.
    """

    ice_micrographs: float = 0.0
    ice_particles: float = 0.0
    defocus_spread_angstrom: float = 0.0
    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0)
    junk: float = 0.0

    def optics(self, optics: Optics, micrograph_id: Tensor, seed: int) -> Optics:
        """Return the true CTF parameters of each particle; ``scale`` holds its contrast.

        Args:
            optics: CTF parameters of each micrograph.
            micrograph_id: long ``(n,)``.
            seed: of the run.
        """
        true = optics[micrograph_id]
        stream = generator(seed, "simulate contrast")
        of_micrographs = _log_normal(len(optics), self.ice_micrographs, stream)
        of_particles = _log_normal(len(true), self.ice_particles, stream)
        true = replace(true, scale=true.scale * of_micrographs[micrograph_id] * of_particles)
        if self.defocus_spread_angstrom == 0:
            return true
        drawn = torch.rand(len(true), generator=generator(seed, "simulate defocus"))
        return with_defocus_change(true, (2 * drawn - 1) * self.defocus_spread_angstrom)


def _log_normal(count: int, spread: float, stream: torch.Generator) -> Tensor:
    """Draw factors ``(count,)`` of mean 1 and this relative standard deviation."""
    sigma = math.sqrt(math.log1p(spread**2))
    return torch.exp(sigma * torch.randn(count, generator=stream) - sigma**2 / 2)


@dataclass(frozen=True)
class Junk:
    """Junk among the images of a data set.

    A background has no particle. A contamination of ice is a bright blob off the centre. An overlap
    is a particle with another one over its edge.

    Args:
        kind: long ``(n,)``: PARTICLE, BACKGROUND, CONTAMINATION or OVERLAP.
        rotation: of the other particle, ``(n, 3, 3)``.
        offset: of blob or other particle from the centre, in units of the box, ``(n, 2)``.
        radius: standard deviation of the blob, in units of the box, ``(n,)``.
    """

    kind: Tensor
    rotation: Tensor
    offset: Tensor
    radius: Tensor

    @classmethod
    def draw(cls, n: int, share: float, seed: int) -> Junk:
        """Draw which of ``n`` images are junk, the three kinds in equal shares."""
        stream = generator(seed, "simulate junk")
        kind = torch.zeros(n, dtype=torch.long)
        chosen = torch.randperm(n, generator=stream)[: round(share * n)]
        kind[chosen] = 1 + torch.arange(len(chosen)) % OVERLAP
        drawn = torch.rand(3, n, generator=stream)
        angle, distance = 2 * math.pi * drawn[0], 0.2 + 0.2 * drawn[1]
        offset = distance[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
        rotation = UniformPoses().sample(n, generator=stream)
        return cls(kind, rotation, offset, 0.05 + 0.1 * drawn[2])

    def blobs(self, index: Tensor, clean: Tensor) -> Tensor:
        """Return contaminations ``(b, n, n)`` of images ``index``, bright against ``clean``."""
        n = clean.shape[-1]
        axis = (torch.arange(n) - n // 2) / n
        (x, y), radius = self.offset[index].T[..., None], self.radius[index, None]
        along_x, along_y = (torch.exp(-((axis - one) ** 2) / (2 * radius**2)) for one in (x, y))
        blobs = (along_y[:, :, None] * along_x[:, None]).to(clean)
        return _BLOB_PEAK * clean.std((-2, -1), keepdim=True) * blobs
