r"""Projection of volumes tilted about one axis: what a tilt series measures.

The tilt axis is y. A point (x, z) of the slice y is seen at

.. math::

    x' = x \cos\theta + z \sin\theta,

so that slices do not mix and the projector is one two-dimensional matrix for all of them. A slice
is a sum of Kaiser-Bessel windows on the voxels' lattice, each of which projects to the window's
X-ray transform, whatever the direction:

.. math::

    (H c)_{\theta, y, x'} = \sum_{z, x} c_{z, y, x}\;
    p(x' - x \cos\theta - z \sin\theta).

p is the transform divided by its own integral: coefficients are densities, and images densities
times voxels. This is :class:`~vitreous.physics.kaiser_bessel.projector.WindowProjector` at the
rotations :math:`R_y(\theta)` (right-handed about +y), with windows in the slices and voxels along
the axis, images that end instead of being periodic, and any shape; the tests hold one to the other.

Source: L. Donati, PhD thesis, EPFL 2020, equations (2.6), (2.7) and (3.5).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.linop.operator import LinearOperator, on_each
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.kernels import tilt_cpu, tilt_torch

_STEPS = 1024  # of the footprint's table per pixel; linear between them, to 2e-7
_LARGEST_DEGREES = 89.0


def footprint(window: KaiserBessel) -> Tensor:
    """Return the X-ray transform over its integral, 1024 entries a pixel, float64, centred.

    >>> table = footprint(KaiserBessel())
    >>> round(float(table.sum()) / 1024, 6), int(table.argmax()) == len(table) // 2
    (1.0, True)
    """
    half = math.ceil(window.support * _STEPS) + 1
    radius = (torch.arange(2 * half + 1, dtype=torch.float64) - half).abs() / _STEPS
    table = window.xray(radius)
    return table * (_STEPS / table.sum())


class _TiltProjection(torch.autograd.Function):
    """Projection H or back-projection H^T; the gradient of either is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: TiltProjector, back: bool) -> Tensor:
        ctx.gradient = operator.forward if back else operator.adjoint
        return operator._back_project(x) if back else operator._project(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient(gradients[0]), None, None


class TiltProjector(LinearOperator):
    """Projector from volumes to the images of a tilt series, with its exact adjoint.

    The tilt axis runs along y through voxel ``(z // 2, x // 2)`` and pixel ``width // 2``. What
    projects beyond an image's edge is lost. Leading dimensions are a batch.

    Args:
        tilts_degrees: ``(tilts,)``, between -89 and 89, in the images' order.
        shape: ``(z, y, x)`` of the volume; any sizes.
        window: basis of the slices.
        width: of the images in pixels; the volume's x by default.

    Attributes:
        range_shape: ``(tilts, y, width)``.

    Raises:
        ValueError: no tilts, tilts beyond 89 degrees or not finite, a shape without three axes.

    >>> H = TiltProjector(torch.tensor([0.0, 30.0]), (4, 1, 9))
    >>> volume = torch.zeros(4, 1, 9); volume[2, 0, 4] = 1.0
    >>> H(volume)[:, 0].argmax(-1).tolist(), [round(s, 3) for s in H(volume).sum((1, 2)).tolist()]
    ([4, 4], [1.0, 1.0])
    """

    def __init__(
        self,
        tilts_degrees: Tensor,
        shape: tuple[int, ...],
        window: KaiserBessel | None = None,
        width: int | None = None,
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"volumes have axes (z, y, x), got the shape {tuple(shape)}")
        tilts = torch.as_tensor(tilts_degrees, dtype=torch.float64).cpu()
        if tilts.ndim != 1 or not len(tilts):
            raise ValueError(f"tilts must be a list of angles, got the shape {tuple(tilts.shape)}")
        if not bool((tilts.abs() <= _LARGEST_DEGREES).all()):
            raise ValueError(
                f"tilts must lie between -89 and 89 degrees, got {tilts.min():g} to {tilts.max():g}"
            )
        self.tilts_degrees = tilts
        self.window = window or KaiserBessel()
        self.width = shape[2] if width is None else width
        radians = torch.deg2rad(tilts)
        self._angles = torch.stack([radians.cos(), radians.sin()], 1)
        self._centres = (shape[0] // 2, shape[2] // 2, self.width // 2)
        self._table = footprint(self.window)
        self.domain_shape = tuple(shape)
        self.range_shape = (len(tilts), shape[1], self.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images ``(..., tilts, y, width)`` of coefficients ``(..., z, y, x)``."""
        return _TiltProjection.apply(x, self, False)  # type: ignore[no-untyped-call]  # torch's own

    def adjoint(self, y: Tensor) -> Tensor:
        """Return H^T y of images ``(..., tilts, y, width)``."""
        return _TiltProjection.apply(y, self, True)  # type: ignore[no-untyped-call]  # torch's own

    def normal_kernel(self, weights: Tensor) -> Tensor:
        """Return the response of :math:`H^T W H` to one coefficient, W a number for each tilt.

        Away from the images' edges it is a convolution, but for how lattice and pixels meet:
        float64 ``(2 z, 1, 2 x)``, lag 0 first.
        """
        depth, _, n = self.domain_shape
        wide = TiltProjector(
            self.tilts_degrees, (2 * depth, 1, 2 * n), self.window, 2 * (depth + n) + 16
        )
        impulse = torch.zeros(wide.domain_shape, dtype=torch.float64)
        impulse[depth, 0, n] = 1.0
        images = weights.to(impulse).reshape(-1, 1, 1) * wide(impulse)
        return wide.adjoint(images).roll((-depth, -n), (0, 2))

    def _project(self, x: Tensor) -> Tensor:
        geometry = (self._angles, self._centres, self.width, self._table, _STEPS)
        loops = _loops(x)
        return on_each(
            lambda one: loops.project(one, *geometry), x, self.domain_shape, "coefficients"
        )

    def _back_project(self, y: Tensor) -> Tensor:
        shape = (self.domain_shape[0], self.domain_shape[2])
        geometry = (self._angles, self._centres, shape, self._table, _STEPS)
        loops = _loops(y)
        return on_each(
            lambda one: loops.back_project(one, *geometry), y, self.range_shape, "images"
        )

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return the voxel values ``(..., z, y, x)`` of the volume that coefficients stand for."""
        return expand_slices(coefficients, self.window)


def _loops(x: Tensor) -> ModuleType:
    return tilt_cpu if x.device.type == "cpu" else tilt_torch


def expand_slices(coefficients: Tensor, window: KaiserBessel) -> Tensor:
    """Return the voxel values of coefficients ``(..., z, y, x)``, 0 beyond; windows of integral 1.

    >>> flat = expand_slices(torch.ones(9, 1, 9), KaiserBessel())
    >>> round(flat[4, 0, 4].item(), 3)
    1.0
    """
    *batch, depth, slices, n = coefficients.shape
    reach = int(window.support)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    table = window.value((axis**2 + axis[:, None] ** 2).sqrt())
    radius = torch.zeros((), dtype=torch.float64)
    kernel = table * (footprint(window).max() / window.xray(radius))
    planes = coefficients.transpose(-3, -2).reshape(-1, 1, depth, n)
    summed = F.conv2d(planes, kernel[None, None].to(planes), padding=reach)
    return summed.reshape(*batch, slices, depth, n).transpose(-3, -2).contiguous()
