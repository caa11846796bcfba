"""Layers that are equivariant to cyclic shifts, and weight initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PolyphaseDown(nn.Module):
    r"""Down-sampling by two for which a cyclic shift of the input only shifts the output.

    Of the four phase components :math:`x_{ij}[y, x] = x[2 y + i, 2 x + j]` the one with the largest
    L2 norm over all channels is kept, image by image; on ties the first in the order 00, 01, 10,
    11. A shift of the input permutes the components and shifts them cyclically without changing
    their norms.

    Source: A. Chaman and I. Dokmanic, CVPR 2021, "Truly shift-invariant convolutional neural
    networks", section 3.

    >>> x = torch.zeros(1, 1, 4, 4); x[0, 0, 3, 2] = 1.0
    >>> PolyphaseDown()(x)[0, 0].tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Down-sample ``(b, c, h, w)`` to ``(b, c, h / 2, w / 2)``; ValueError for an odd edge."""
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise ValueError(f"polyphase down-sampling needs even edges, got {h} x {w}")
        pairs = x.reshape(b, c, h // 2, 2, w // 2, 2)
        best = pairs.detach().square().sum((1, 2, 4)).flatten(1).argmax(1)
        image = torch.arange(b, device=x.device)
        kept: Tensor = pairs.permute(0, 3, 5, 1, 2, 4)[image, best // 2, best % 2]
        return kept


class GaborLayer(nn.Module):
    r"""Correlation with Gabor functions of trainable frequency, direction, phase and width.

    .. math::

        G(x, y) = \cos(\omega x' + \psi)\, \exp\Bigl(-\frac{x'^2 + y'^2}{2 \sigma^2}\Bigr),
        \quad x' = x \cos\theta + y \sin\theta,\; y' = -x \sin\theta + y \cos\theta,

    x and y from ``-(size // 2)`` to ``size // 2``, edges cyclic: eq. (41) of the thesis with the
    rotated y axis in its second term, as in the Gabor function, and the origin in the middle. Each
    kernel is divided by its norm, so that white noise keeps its variance.

    Args:
        inputs: channels of the input, each with its own kernels (depthwise).
        kernels: kernels per input channel.
        size: edge of the kernels in pixels, odd.
        generator: draws frequencies (0.2 to 2 rad/px), phases and widths; directions are evenly
            spaced. None: the global one.

    Raises:
        ValueError: an even size.

    >>> GaborLayer(1, 6, 7)(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 6, 16, 16])
    """

    def __init__(
        self,
        inputs: int,
        kernels: int,
        size: int = 7,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size % 2 == 0 or size < 3:
            raise ValueError(f"size must be odd and at least 3, got {size}")
        self.inputs, self.size = inputs, size
        count = inputs * kernels
        uniform = torch.rand(3, count, generator=generator)
        self.omega = nn.Parameter(0.2 + 1.8 * uniform[0])
        self.theta = nn.Parameter(torch.arange(count) * (math.pi / kernels))
        self.psi = nn.Parameter(2 * math.pi * uniform[1])
        self.sigma = nn.Parameter(size / 8 * (1 + 2 * uniform[2]))

    def functions(self) -> Tensor:
        """Return the Gabor functions of the formula, ``(inputs * kernels, size, size)``."""
        axis = torch.arange(self.size, device=self.omega.device, dtype=self.omega.dtype)
        axis = axis - self.size // 2
        y, x = axis[:, None], axis[None, :]
        omega, theta, psi, sigma = (
            p[:, None, None] for p in (self.omega, self.theta, self.psi, self.sigma)
        )
        along = x * theta.cos() + y * theta.sin()
        across = y * theta.cos() - x * theta.sin()
        envelope = torch.exp(-(along.square() + across.square()) / (2 * sigma.square()))
        return torch.cos(omega * along + psi) * envelope

    def forward(self, x: Tensor) -> Tensor:
        """Correlate ``(b, inputs, h, w)`` to ``(b, inputs * kernels, h, w)``."""
        functions = self.functions()
        norm = functions.flatten(1).norm(dim=1).clamp_min(1e-6)
        weight = (functions / norm[:, None, None])[:, None]
        r = self.size // 2
        padded = nn.functional.pad(x, (r, r, r, r), mode="circular")
        return nn.functional.conv2d(padded, weight, groups=self.inputs)


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions and dense layers from He's normal distribution, in place.

    For leaky ReLU of slope 0.1; biases become 0. The generator is on the CPU.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deviation = math.sqrt(2 / (1 + 0.1**2) / math.prod(layer.weight.shape[1:]))
            with torch.no_grad():
                layer.weight.copy_(deviation * torch.randn(layer.weight.shape, generator=generator))
                if layer.bias is not None:
                    layer.bias.zero_()


def polar_view(images: Tensor) -> Tensor:
    """Resample images to polar coordinates about ``n // 2``: rotations become cyclic shifts.

    Of images ``(b, n, n)``: rows are n angles of a whole turn, columns n radii from 0 to ``n / 2 -
    1`` pixels, interpolated linearly. A quarter turn is exactly a shift by n / 4 rows where 4
    divides n.

    Source: section 6.4.8 of the thesis (image warping).

    >>> ring = polar_view(torch.ones(1, 8, 8))
    >>> bool(torch.allclose(ring, torch.ones(1, 8, 8)))
    True
    """
    n = images.shape[-1]
    step = torch.arange(n, device=images.device, dtype=images.dtype)
    angle = step[:, None] * (2 * math.pi / n)
    radius = step * ((n / 2 - 1) / (n - 1))
    position = torch.stack([angle.cos() * radius, angle.sin() * radius], -1) + n // 2
    grid = (position * (2 / (n - 1)) - 1).expand(len(images), n, n, 2)
    return nn.functional.grid_sample(images[:, None], grid, align_corners=True)[:, 0]
