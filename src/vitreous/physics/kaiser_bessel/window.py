r"""The optimised Kaiser-Bessel window: a basis of volumes with projections in closed form.

A volume is a sum of windows on a lattice of spacing s, in units of the images' pixels,

.. math::

    f(x) = \sum_k c_k\, \varphi\!\left(\frac{x - s k}{s}\right),

with the isotropic window of order m, taper :math:`\alpha` and support radius a, equation (2.4),

.. math::

    \varphi(x) = \frac{\beta^m I_m(\alpha \beta)}{I_m(\alpha)}, \qquad
    \beta = \sqrt{1 - (\|x\| / a)^2}, \quad \|x\| \le a.

Everything here is one entire function, :math:`G_\nu(z^2) = I_\nu(z) / z^\nu`: with
:math:`\nu = m` it gives the window, with :math:`m + 1/2` its X-ray transform, with
:math:`m - 1/2` the slope of that, and with :math:`m + 3/2` the Fourier transform.

Source: L. Donati, PhD thesis, EPFL 2020, equations (2.3), (2.4), (4.1), (4.2), (A.22), (A.25); the
windows are those of R. M. Lewitt, J. Opt. Soc. Am. A 7 (1990) 1834.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import gamma, iv, jv
from torch import Tensor

from vitreous.core.resample import cubic_edge

_SERIES_BELOW = 1e-3  # of abs(x), where three terms of the series are exact to rounding
_FLOOR = 1e-5


def lattice_size(n: int, scale: float) -> int:
    """Return the coefficients per axis, ceil(n / s), for a box of ``n`` pixels.

    >>> lattice_size(65, 2), lattice_size(64, 4)
    (33, 16)
    """
    return math.ceil(n / scale)


def _bessel_ratio(order: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Return :math:`G_\nu(x) = I_\nu(\sqrt x) / \sqrt x^\nu`, with J for I where x < 0."""
    z = np.sqrt(np.maximum(np.abs(x), _SERIES_BELOW))
    value = np.where(x > 0, iv(order, z), jv(order, z)) / z**order
    first, second = x / (4 * (order + 1)), x / (8 * (order + 2))
    series = (1 + first * (1 + second)) / (2**order * gamma(order + 1))
    result: NDArray[np.float64] = np.where(np.abs(x) < _SERIES_BELOW, series, value)
    return result


@dataclass(frozen=True)
class KaiserBessel:
    """Window of order m, taper alpha and support radius in units of the lattice's spacing.

    Args:
        m: order, at least 1, so that the window is continuous.
        alpha: taper.
        support: a, the radius beyond which the window is zero.

    Raises:
        ValueError: an order below 1, a taper or support that is not positive.

    >>> window = KaiserBessel()
    >>> window.value(torch.tensor([0.0, 2.0])).tolist()
    [1.0, 0.0]
    """

    m: int = 2
    alpha: float = 10.83
    support: float = 2.0

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"m must be at least 1, got {self.m}")
        if not (self.alpha > 0 and self.support > 0):
            raise ValueError(
                f"alpha and support must be positive, got {self.alpha} and {self.support}"
            )

    def _radial(self, radius: Tensor, order: float) -> tuple[NDArray[np.float64], Any]:
        r"""Return r / a and :math:`(\alpha \beta)^\nu \beta^\nu G_\nu / I_m(\alpha)`."""
        t = radius.detach().to("cpu", torch.float64).numpy() / self.support
        v = np.maximum(1 - t**2, 0)
        ratio = _bessel_ratio(order, self.alpha**2 * v)
        return t, (self.alpha * v) ** order * ratio / iv(self.m, self.alpha)

    def value(self, radius: Tensor) -> Tensor:
        """Return the window at ``radius`` (any shape, lattice units); equation (2.4)."""
        _, value = self._radial(radius, self.m)
        return torch.as_tensor(value).to(radius)

    def xray(self, radius: Tensor) -> Tensor:
        r"""Return the integral of the window along a line at distance ``radius`` from its centre.

        :math:`a \sqrt{2 \pi / \alpha}\, \beta^{m + 1/2} I_{m + 1/2}(\alpha \beta) / I_m(\alpha)`,
        equation (A.22). For a window dilated by s it is s times that at ``radius / s``.

        >>> round(KaiserBessel().xray(torch.tensor(0.0)).item(), 4)
        1.3671
        """
        _, value = self._radial(radius, self.m + 0.5)
        factor = self.support * math.sqrt(2 * math.pi / self.alpha)
        return torch.as_tensor(factor * value).to(radius)

    def xray_slope(self, radius: Tensor) -> Tensor:
        r"""Return the derivative of :meth:`xray` over the radius; (A.25) is its share of one axis.

        :math:`-\sqrt{2 \pi \alpha}\,(r / a)\, \beta^{m - 1/2} I_{m - 1/2}(\alpha \beta)
        / I_m(\alpha)`.
        """
        t, value = self._radial(radius, self.m - 0.5)
        return torch.as_tensor(-math.sqrt(2 * math.pi * self.alpha) * t * value).to(radius)

    def transform(self, frequency: Tensor) -> Tensor:
        r"""Return the Fourier transform of the window, in 3D and of its projection in 2D.

        :math:`\hat\varphi(q) = (2 \pi)^{3/2} a^3 \alpha^m\, G_{m + 3/2}\!\left(\alpha^2 - (2 \pi a
        q)^2\right) / I_m(\alpha)`, q the magnitude in cycles per lattice unit. For a window dilated
        by s it is :math:`s^3 \hat\varphi(s q)`.
        """
        q = frequency.detach().to("cpu", torch.float64).numpy()
        ratio = _bessel_ratio(self.m + 1.5, self.alpha**2 - (2 * np.pi * self.support * q) ** 2)
        factor = (2 * np.pi) ** 1.5 * self.support**3 * self.alpha**self.m / iv(self.m, self.alpha)
        return torch.as_tensor(factor * ratio).to(frequency)

    def expand(self, coefficients: Tensor, n: int, scale: float = 1.0) -> Tensor:
        """Return the voxel values of the volume that coefficients stand for, equation (4.1).

        ``coefficients (..., N, N, N)`` (z, y, x), origin at ``N // 2``, give real ``(..., n, n,
        n)``, origin at ``n // 2``; differentiable. ``scale`` is s, the spacing of the lattice in
        voxels, not only whole numbers.

        Raises:
            ValueError: coefficients that are not cubic, a scale that is not positive.

        >>> one = torch.zeros(3, 3, 3); one[1, 1, 1] = 1.0
        >>> [round(v, 4) for v in KaiserBessel().expand(one, 5, 2.0)[2, 2].tolist()]
        [0.1834, 0.6713, 1.0, 0.6713, 0.1834]
        """
        size = cubic_edge(coefficients, "coefficients")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        reach = math.ceil(self.support)
        position = (torch.arange(n, dtype=torch.float64) - n // 2) / scale + size // 2
        base = (position + 1e-10).floor()
        phases, phase = torch.unique((position - base).round(decimals=12), return_inverse=True)
        # one layer of zeros stands for all that is outside of the lattice
        padded = F.pad(coefficients, (1,) * 6)
        device = coefficients.device
        phase = phase.to(device)
        taps = range(1 - reach, reach + 1)
        index = {t: (base.long() + t + 1).clamp(0, size + 1).to(device) for t in taps}
        squared = {t: (phases - t) ** 2 for t in taps}
        out = coefficients.new_zeros((*coefficients.shape[:-3], n, n, n))
        for tz, ty in itertools.product(taps, taps):
            rows = padded.index_select(-3, index[tz]).index_select(-2, index[ty])
            for tx in taps:
                distance = squared[tz][:, None, None] + squared[ty][:, None] + squared[tx]
                weight = self.value(distance.sqrt()).to(coefficients)
                if weight.any():
                    spread = weight[phase[:, None, None], phase[:, None], phase]
                    out = out + spread * rows.index_select(-1, index[tx])
        return out

    def analyse(self, volume: Tensor, scale: int = 1) -> Tensor:
        r"""Return the coefficients ``(..., N, N, N)`` whose expansion is nearest to a map.

        With :math:`\hat\varphi` the transform of the sampled window and the sums over all
        frequencies that the lattice cannot tell apart, :math:`\hat c = \sum \hat\varphi\, \hat v /
        \sum \hat\varphi^2`: least squares, if map and lattice are continued periodically. A sum
        below 1e-5 of the largest counts as that much: wide windows, such as (2, 19, 4), hardly
        reach the corners of the spectrum, and dividing there would multiply noise. Differentiable;
        ``scale`` is s, a whole number of voxels; N is that of :func:`lattice_size`.

        Raises:
            ValueError: a volume that is not cubic, a scale below 1.
        """
        n = cubic_edge(volume)
        if scale < 1:
            raise ValueError(f"scale must be a whole number from 1, got {scale}")
        box = scale * lattice_size(n, scale)
        axes = (-3, -2, -1)
        wrapped = F.pad(volume, (0, box - n) * 3).roll((-(n // 2),) * 3, axes)
        window = self._sampled(box, scale).to(volume)
        every = (..., *(slice(None, None, scale),) * 3)
        transform = torch.fft.rfftn(window).real
        matched = torch.fft.irfftn(torch.fft.rfftn(wrapped, dim=axes) * transform, s=(box,) * 3)
        autocorrelation = torch.fft.irfftn(transform**2, s=(box,) * 3)
        gram = torch.fft.rfftn(autocorrelation[every]).real
        quotient = torch.fft.rfftn(matched[every], dim=axes) / gram.clamp_min(_FLOOR * gram.max())
        size = (lattice_size(n, scale),) * 3
        return torch.fft.fftshift(torch.fft.irfftn(quotient, s=size), dim=axes)

    def _sampled(self, box: int, scale: int) -> Tensor:
        """Return the dilated window on a periodic box, float64, its centre at index 0."""
        axis = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64) / scale
        squared = (axis**2)[:, None, None] + (axis**2)[:, None] + axis**2
        near = squared < self.support**2
        out = torch.zeros(box, box, box, dtype=torch.float64)
        out[near] = self.value(squared[near].sqrt())
        return out
