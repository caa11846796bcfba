"""Torch version of the compiled loops that weight and insert slices, for any device.

Sums on a GPU are atomic, so that their last bits vary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vitreous.physics.kernels.insertion_points import SPREAD, half_disc


def weight(
    spectra: Tensor, ctf: Tensor, phases: tuple[Tensor, Tensor], factor: Tensor, n: int
) -> Tensor:
    """Implement :func:`vitreous.physics.insertion.weighted_slices`."""
    device = spectra.device
    points = half_disc(n)
    kx, ky = (torch.as_tensor(a, device=device) for a in (points.kx, points.ky))
    c = ctf[:, ky, kx]
    phase = phases[0][:, kx] * phases[1][:, ky]
    values = torch.view_as_real((c * phase.conj() * spectra[:, ky, kx]).resolve_conj())
    return torch.cat([values, c.square()[..., None]], -1) * factor[:, None, None]


def insert(
    slabs: Sequence[Sequence[Tensor]],
    edges: Sequence[int],
    values: Tensor,
    rotations: Tensor,
    sets: Tensor,
) -> None:
    """Implement :meth:`vitreous.physics.insertion.Accumulator.insert`; changes ``slabs``."""
    assert len(edges) == 2, "only compiled loops cut grids into slabs"
    edge = slabs[0][0].shape[1]
    half = edge // 2
    points = half_disc(half)
    device, real = values.device, values.dtype
    k = torch.stack([torch.as_tensor(a, device=device) for a in (points.kx, points.ky)], -1)
    for (number, (grid,)), copy in itertools.product(enumerate(slabs), range(rotations.shape[1])):
        members = (sets == number).nonzero().flatten()
        position = SPREAD * k.to(real) @ rotations[members, copy, :2].to(real)
        sign = torch.where(position[..., :1] < 0, -1.0, 1.0).to(real)
        position = position * sign
        base = position.floor()
        fraction, cell = position - base, base.long()
        cell[..., 1:] += half
        inside = (
            (cell >= 0) & (cell < torch.tensor([half, edge - 1, edge - 1], device=device))
        ).all(-1)
        source = values[members] * inside[..., None]
        source = torch.stack([source[..., 0], source[..., 1] * sign[..., 0], source[..., 2]], -1)
        cell = cell * inside[..., None]
        flat = grid.view(-1, 3)
        for corner in itertools.product((0, 1), repeat=3):
            taps = torch.tensor(corner, device=device)
            w = torch.where(taps == 1, fraction, 1 - fraction).prod(-1, keepdim=True)
            x, y, z = (cell + taps).unbind(-1)
            index = ((x * edge + y) * edge + z).flatten()
            flat.index_add_(0, index, (w * source).flatten(0, 1))
