"""Learnable volumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.core.symmetry import SymmetryMap, point_group


class VoxelVolume(nn.Module):
    """Trainable voxels, symmetric by construction, inside a sphere of ``mask_radius_px`` voxels.

    One voxel of each orbit of the point group, in RELION's axes, is a parameter; outside the sphere
    all are zero. ``start (m, m, m)`` is an initial volume of any box; None: zeros.

    >>> VoxelVolume(8, "D2", 3.5)().shape
    torch.Size([8, 8, 8])
    """

    mask: Tensor
    radius_px: Tensor

    def __init__(
        self,
        box_size: int,
        symmetry: str,
        mask_radius_px: float,
        *,
        start: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.box_size = box_size
        self.unit = SymmetryMap(box_size, point_group(symmetry), device=device)
        radius = radius_grid(box_size, 3, device=device)
        self.register_buffer("mask", (radius <= mask_radius_px).to(radius.dtype))
        self.register_buffer("radius_px", radius[self.unit.mask])
        free = torch.zeros(self.unit.free_size, device=device)
        if start is not None:
            with torch.no_grad():
                free = self.unit.extract(fourier_resize(start, box_size, 3)).clone()
        self.free = nn.Parameter(free)

    def forward(self, free: Tensor | None = None) -> Tensor:
        """Return the volume ``(n, n, n)`` of free values (default: the parameters)."""
        volume: Tensor = self.unit.expand(self.free if free is None else free) * self.mask
        return volume
