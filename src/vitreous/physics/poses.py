"""Samplers of orientations and shifts: frozen configurations with one method, ``sample``.

Numbers are drawn on the generator's device and then moved: one seed gives the same poses on every
device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.rotation import euler_to_matrix, random_rotations


class _Sampler(ABC):
    """Base class: draws on the generator's device, then moves."""

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw ``n`` samples: rotations ``(n, 3, 3)``, or shifts ``(n, 2)`` x, y in Å."""
        return self._draw(n, generator, dtype).to(device or generator.device)

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw on the generator's device, or another."""


class PoseSampler(_Sampler):
    """Sampler of rotations ``(n, 3, 3)`` from volume to particle coordinates."""


class ShiftSampler(_Sampler):
    """Sampler of in-plane shifts ``(n, 2)``: x, y in Å."""


@dataclass(frozen=True)
class UniformPoses(PoseSampler):
    """Orientations uniform on SO(3) (Haar measure).

    >>> UniformPoses().sample(4, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 3])
    """

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return random_rotations(n, generator=generator, dtype=dtype)


@dataclass(frozen=True)
class GaussianEulerPoses(PoseSampler):
    r"""Orientations whose Euler angles are Gaussian: the non-uniform family of CryoGAN's paper.

    :math:`(\theta_1, \theta_2, \theta_3) \sim N(0, \mathrm{diag}(\sigma, 2, 1))` in radians, taken
    as (rot, tilt, psi). The paper (section VI.C, sigma = 2 and 3) does not state unit and order.

    Args:
        sigma: variance of rot in radian^2, not negative.

    Raises:
        ValueError: negative sigma.

    >>> GaussianEulerPoses(2.0).sample(4, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 3])
    """

    sigma: float = 2.0

    def __post_init__(self) -> None:
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma is a variance and must be >= 0, got {self.sigma}")

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        normal = torch.randn(n, 3, generator=generator, device=generator.device, dtype=dtype)
        deviation = normal.new_tensor([self.sigma, 2.0, 1.0]).sqrt()
        return euler_to_matrix(torch.rad2deg(normal * deviation))


@dataclass(frozen=True)
class TablePoses(PoseSampler):
    """Orientations drawn with replacement from a table, such as the poses of a STAR file.

    Args:
        rotations: ``(m, 3, 3)``, m at least 1.

    Raises:
        ValueError: another shape or an empty table.

    >>> TablePoses(torch.eye(3)[None]).sample(2, generator=torch.Generator()).shape
    torch.Size([2, 3, 3])
    """

    rotations: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.rotations.shape)
        if len(shape) != 3 or shape[1:] != (3, 3) or shape[0] == 0:
            raise ValueError(f"rotations must be (m, 3, 3) with m >= 1, got {shape}")

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        total = len(self.rotations)
        row = torch.randint(total, (n,), generator=generator, device=generator.device)
        return self.rotations[row.to(self.rotations.device)].to(dtype)


@dataclass(frozen=True)
class NoShift(ShiftSampler):
    """Zero shifts: every particle is centred.

    >>> NoShift().sample(1, generator=torch.Generator()).tolist()
    [[0.0, 0.0]]
    """

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return torch.zeros(n, 2, device=generator.device, dtype=dtype)


@dataclass(frozen=True)
class TriangularShift(ShiftSampler):
    r"""Shifts whose components follow a symmetric triangular distribution around zero.

    :math:`t = (u_1 - u_2)\, w / 2` with uniform :math:`u_1, u_2`: support [-w/2, w/2], variance
    :math:`w^2 / 24`. Source: CryoGAN's paper, section VI.B, with w of 6 % and 40 % of the image,
    rounded to whole pixels.

    Args:
        width_angstrom: total width w of the support in Å, not negative.
        round_to_angstrom: step in Å to whose multiples shifts are rounded, such as the pixel size;
            None for continuous shifts.

    Raises:
        ValueError: negative width, or a rounding step that is not positive.

    >>> shift = TriangularShift(40.0, round_to_angstrom=4.0)
    >>> t = shift.sample(100, generator=torch.Generator().manual_seed(0))
    >>> bool((t % 4 == 0).all()), bool(t.abs().max() <= 20)
    (True, True)
    """

    width_angstrom: float
    round_to_angstrom: float | None = None

    def __post_init__(self) -> None:
        if not (self.width_angstrom >= 0 and math.isfinite(self.width_angstrom)):
            raise ValueError(f"width_angstrom must be >= 0, got {self.width_angstrom}")
        if self.round_to_angstrom is not None and not self.round_to_angstrom > 0:
            raise ValueError(f"round_to_angstrom must be positive, got {self.round_to_angstrom}")

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        uniform = torch.rand(n, 2, 2, generator=generator, device=generator.device, dtype=dtype)
        shift = (uniform[..., 0] - uniform[..., 1]) * (self.width_angstrom / 2)
        if self.round_to_angstrom is not None:
            shift = (shift / self.round_to_angstrom).round() * self.round_to_angstrom
        return shift


@dataclass(frozen=True)
class GaussianShift(ShiftSampler):
    """Shifts whose components are independent, zero-mean Gaussian.

    Args:
        sigma_angstrom: standard deviation of each component in Å, not negative.

    Raises:
        ValueError: negative deviation.

    >>> GaussianShift(3.0).sample(5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """

    sigma_angstrom: float

    def __post_init__(self) -> None:
        if not (self.sigma_angstrom >= 0 and math.isfinite(self.sigma_angstrom)):
            raise ValueError(f"sigma_angstrom must be >= 0, got {self.sigma_angstrom}")

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        normal = torch.randn(n, 2, generator=generator, device=generator.device, dtype=dtype)
        return normal * self.sigma_angstrom
