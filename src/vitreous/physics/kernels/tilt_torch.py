"""Torch version of the loops of the tilt-series projector: any device, and a test reference."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def _taps(
    like: Tensor,
    angle: Tensor,
    centres: tuple[int, int, int],
    shape: tuple[int, int],
    width: int,
    table: Tensor,
    steps: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each tap of one tilt the target pixel of every (z, x) and its weight there."""
    z = torch.arange(shape[0], dtype=torch.float64) - centres[0]
    x = torch.arange(shape[1], dtype=torch.float64) - centres[1]
    u = (centres[2] + x * angle[0] + z[:, None] * angle[1]).flatten().to(like.device)
    half, values = len(table) // 2, table.to(like.device)
    support = (half - 1) / steps
    start = torch.floor(u - support).long() + 1
    for tap in range(math.ceil(2 * support)):
        pixel = start + tap
        at = ((pixel - u) * steps + half).clamp(0.0, len(table) - 2.0)
        i = at.long()
        weight = values[i] + (at - i) * (values[i + 1] - values[i])
        inside = (pixel >= 0) & (pixel < width)
        yield pixel.clamp(0, width - 1), (weight * inside).to(like.dtype)


def project(
    x: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], width: int, table: Tensor,
    steps: int,
) -> Tensor:  # fmt: skip
    """Implement :func:`vitreous.physics.kernels.tilt_cpu.project`."""
    depth, slices, n = x.shape
    lines = x.permute(0, 2, 1).reshape(depth * n, slices)
    out = x.new_zeros(len(cosines_sines), width, slices)
    for image, angle in zip(out, cosines_sines, strict=True):
        for pixel, weight in _taps(x, angle, centres, (depth, n), width, table, steps):
            image.index_add_(0, pixel, weight[:, None] * lines)
    return out.permute(0, 2, 1).contiguous()


def back_project(
    y: Tensor, cosines_sines: Tensor, centres: tuple[int, int, int], shape: tuple[int, int],
    table: Tensor, steps: int,
) -> Tensor:  # fmt: skip
    """Implement :func:`vitreous.physics.kernels.tilt_cpu.back_project`."""
    _, slices, width = y.shape
    out = y.new_zeros(shape[0] * shape[1], slices)
    for image, angle in zip(y.permute(0, 2, 1), cosines_sines, strict=True):
        for pixel, weight in _taps(y, angle, centres, shape, width, table, steps):
            out += weight[:, None] * image[pixel]
    return out.reshape(*shape, slices).permute(0, 2, 1).contiguous()
