"""A small inverse problem with known truth: blur of a padded volume, and noise.

H = C^(1/2) P, so that H^T H = P^T C P is a convolution as that of images with known poses is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.linop.operator import LinearOperator
from vitreous.optim.least_squares import LeastSquares


class Blur(LinearOperator):
    """P^T C P for a given spectrum of C; the reference for what solvers call a convolution."""

    def __init__(self, shape: tuple[int, ...], spectrum: Tensor) -> None:
        self.domain_shape = self.range_shape = tuple(shape)
        self.padded_shape = tuple(2 * n for n in shape)
        self.spectrum = spectrum

    def pad(self, x: Tensor) -> Tensor:
        w = x.new_zeros(self.padded_shape)
        self.crop(w).copy_(x)
        return w

    def crop(self, w: Tensor) -> Tensor:
        z, y, x = self.domain_shape
        return w[:z, :y, :x]

    def padded(self, w: Tensor, power: float = 1.0) -> Tensor:
        multiplied = torch.fft.rfftn(w) * self.spectrum.to(w) ** power
        return torch.fft.irfftn(multiplied, s=self.padded_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.crop(self.padded(self.pad(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


def random_blur(shape: tuple[int, ...], seed: int = 0) -> Blur:
    """A random nonnegative spectrum C, that of a real symmetric kernel."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn([2 * n for n in shape], generator=generator, dtype=torch.float64)
    spectrum = torch.fft.rfftn(kernel).abs().square()
    return Blur(shape, spectrum / spectrum.mean())


def imaging_blur(shape: tuple[int, ...]) -> Blur:
    """What projections along many directions leave: about 1 / |k|, oscillating, a wedge missing."""
    padded = [2 * n for n in shape]
    axes = [
        torch.fft.fftfreq(padded[0]),
        torch.fft.fftfreq(padded[1]),
        torch.fft.rfftfreq(padded[2]),
    ]
    z, y, x = torch.meshgrid(*(axis.double() for axis in axes), indexing="ij")
    k = (z**2 + y**2 + x**2).sqrt()
    contrast = torch.sin(40 * k**2 + 0.1).square() * torch.exp(-4 * k)
    wedge = torch.where(x.abs() < 0.3 * z.abs(), 0.02, 1.0)
    spectrum = contrast * wedge / (k + 1 / max(padded))
    return Blur(shape, spectrum / spectrum.mean())


def blocks(shape: tuple[int, ...]) -> Tensor:
    """A nonnegative volume of a few flat pieces, in the middle of the box."""
    z, y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    r = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()
    volume = (r < 0.6).double()
    volume += ((z[:, None, None] - 0.2).abs() < 0.2) * (y.abs() < 0.3)[:, None] * (x.abs() < 0.25)
    return volume


@dataclass(frozen=True)
class Problem:
    """Normal equations of ``b = H x + noise``, and what is known about them."""

    equations: LeastSquares
    truth: Tensor
    measurements: int


def observe(blur: Blur, truth: Tensor, sigma: float, seed: int = 1) -> Problem:
    """White noise of deviation ``sigma`` in every measurement."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(blur.padded_shape, generator=generator, dtype=torch.float64)
    b = blur.padded(blur.pad(truth.double()), 0.5) + sigma * noise
    rhs = blur.crop(blur.padded(b, 0.5)).to(truth)
    equations = LeastSquares(blur, rhs, float(b.square().sum()))
    return Problem(equations, truth, b.numel())
