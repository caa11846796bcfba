"""Pose and optics of particle images, as frozen batches of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


class Batched:
    """Base class of frozen dataclasses of tensors with a row for each image, or of None."""

    def _map(self, function: Any) -> Self:
        values = {name: None if one is None else function(one) for name, one in vars(self).items()}
        return type(self)(**values)

    def __getitem__(self, index: Any) -> Self:
        """Select images along the batch dimension; slices, index tensors and masks work."""
        return self._map(lambda tensor: tensor[index])

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast every tensor, as ``torch.Tensor.to`` does."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))


@dataclass(frozen=True)
class Pose(Batched):
    """Orientation and shift of each image.

    Args:
        rotation: ``(..., 3, 3)`` matrices acting on (x, y, z) column vectors, from volume to
            particle coordinates (see ``docs/conventions.md``).
        shift_angstrom: ``(..., 2)`` displacement (x, y) of the projection in Å; RELION's
            ``rlnOriginXAngst`` is its negative.

    Raises:
        ValueError: shapes that do not match.

    >>> len(Pose(torch.eye(3).expand(5, 3, 3), torch.zeros(5, 2))[:2])
    2
    """

    rotation: Tensor
    shift_angstrom: Tensor

    def __post_init__(self) -> None:
        if self.rotation.shape[-2:] != (3, 3):
            raise ValueError(f"rotation must end in (3, 3), got {tuple(self.rotation.shape)}")
        if self.shift_angstrom.shape != (*self.rotation.shape[:-2], 2):
            raise ValueError(
                f"shift_angstrom must be {(*self.rotation.shape[:-2], 2)} to match the rotations, "
                f"got {tuple(self.shift_angstrom.shape)}"
            )

    def __len__(self) -> int:
        return int(self.rotation.shape[0])


@dataclass(frozen=True)
class Optics(Batched):
    """CTF parameters of each image, every field a ``(...)`` tensor of the same shape.

    Args:
        defocus_u_angstrom, defocus_v_angstrom: defocus along and across the astigmatism axis, Å,
            positive for underfocus.
        defocus_angle_deg: angle from x to U, degrees.
        phase_shift_deg: extra phase of a phase plate, degrees.
        voltage_kv: acceleration voltage, kV.
        cs_mm: spherical aberration, mm.
        amplitude_contrast: fraction Q in [0, 1).
        b_factor_angstrom2: envelope exp(-B k^2 / 4), Å^2.
        scale: factor of the whole CTF, such as the cosine of a tilt; 1 by default.
        even_turns: even aberrations e of :mod:`vitreous.physics.aberrations`, ``(..., 9)``; None
            for none.
        exposure_e_per_angstrom2: electrons per Å^2 that the specimen had received, which damp high
            frequencies; 0 by default (none, or images that are weighted by exposure already).

    >>> optics = Optics.uniform(3, defocus_angstrom=12000.0)
    >>> len(optics), optics[1:].defocus_u_angstrom.tolist()
    (3, [12000.0, 12000.0])
    """

    defocus_u_angstrom: Tensor
    defocus_v_angstrom: Tensor
    defocus_angle_deg: Tensor
    phase_shift_deg: Tensor
    voltage_kv: Tensor
    cs_mm: Tensor
    amplitude_contrast: Tensor
    b_factor_angstrom2: Tensor
    scale: Tensor = None  # type: ignore[assignment]  # set below
    exposure_e_per_angstrom2: Tensor = None  # type: ignore[assignment]  # set below
    even_turns: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scale is None:
            object.__setattr__(self, "scale", torch.ones_like(self.defocus_u_angstrom))
        if self.exposure_e_per_angstrom2 is None:
            none = torch.zeros_like(self.defocus_u_angstrom)
            object.__setattr__(self, "exposure_e_per_angstrom2", none)

    @classmethod
    def uniform(
        cls,
        n: int,
        *,
        defocus_angstrom: float = 15000.0,
        voltage_kv: float = 300.0,
        cs_mm: float = 2.7,
        amplitude_contrast: float = 0.1,
        phase_shift_deg: float = 0.0,
        b_factor_angstrom2: float = 0.0,
    ) -> Optics:
        """Return the same optics without astigmatism for ``n`` images.

        >>> Optics.uniform(2, voltage_kv=200.0).voltage_kv.tolist()
        [200.0, 200.0]
        """
        defocus = defocus_angstrom, defocus_angstrom, 0.0
        others = phase_shift_deg, voltage_kv, cs_mm, amplitude_contrast, b_factor_angstrom2
        return cls(*(torch.full((n,), value) for value in (*defocus, *others)))

    def with_b_factor(self, b_factor_angstrom2: float | None) -> Optics:
        """Return the optics with another B factor for all images; None leaves them as they are.

        >>> Optics.uniform(2).with_b_factor(80.0).b_factor_angstrom2.tolist()
        [80.0, 80.0]
        """
        if b_factor_angstrom2 is None:
            return self
        same = torch.full_like(self.b_factor_angstrom2, b_factor_angstrom2)
        return replace(self, b_factor_angstrom2=same)

    def __len__(self) -> int:
        return int(self.defocus_u_angstrom.shape[0])
