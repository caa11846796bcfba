r"""What one image says of its contrast a and its place z in a linear model of structures.

In units of its noise, image y is :math:`a\,(P\mu + \sum_k z_k P V_k) + \epsilon`, with
:math:`z \sim N(0, I)` and :math:`a \sim N(1, s^2)`. All it has to say lies in the products of the
projections :math:`F = (P\mu, P V_1, \dots, P V_d)` with each other, :math:`G = \langle F,
F\rangle`, and with itself, :math:`h = \langle F, y\rangle`. Given a, z is normal with

.. math::

    S = (I + a^2 G_{VV})^{-1}, \qquad m = a\, S\,(h_V - a\, G_{V\mu}),

and a has the likelihood

.. math::

    2 \log p(y \mid a) = 2 a h_\mu - a^2 G_{\mu\mu}
        + a^2 |S^{1/2} (h_V - a G_{V\mu})|^2 - \log\det(I + a^2 G_{VV}) + \mathrm{const}.

Source: M. E. Tipping and C. M. Bishop, J. R. Stat. Soc. B 61 (1999) 611, equations (5) to (8), for
a linear operator of each image and a contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 10  # of the contrast's grids, to each side
_REACH = 3.0  # standard deviations covered by the first
_LEAST = 0.1  # contrast


@dataclass(frozen=True)
class Latents:
    """Posterior of a batch of images.

    Args:
        contrast: a, ``(b,)``, the most likely.
        mean: m, ``(b, d)``, given that.
        covariance: S, ``(b, d, d)``.
    """

    contrast: Tensor
    mean: Tensor
    covariance: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        r"""Means of :math:`\beta = a (1, z)` ``(b, d + 1)`` and :math:`\beta\beta^T`."""
        a = self.contrast[:, None]
        whole = torch.cat([torch.ones_like(a), self.mean], 1)
        second = whole[:, :, None] * whole[:, None]
        second[:, 1:, 1:] += self.covariance
        return a * whole, a[..., None] ** 2 * second


def infer(gram: Tensor, cross: Tensor, contrast_spread: float | None) -> Latents:
    """Posterior of z, and the most likely contrast, of every image.

    Args:
        gram: G, ``(b, d + 1, d + 1)``, the mean structure first.
        cross: h, ``(b, d + 1)``.
        contrast_spread: s; None for a = 1.

    >>> gram = torch.tensor([[[100.0, 0.0], [0.0, 3.0]]])
    >>> found = infer(gram, torch.tensor([[100.0, 3.0]]), None)
    >>> found.mean.item(), found.covariance.item()
    (0.75, 0.25)
    """
    value, vector = torch.linalg.eigh(gram[:, 1:, 1:].double())
    value = value.clamp_min(0.0)
    seen = (cross[:, None, 1:].double() @ vector)[:, 0]
    of_mean = (gram[:, :1, 1:].double() @ vector)[:, 0]
    a = torch.ones(len(gram), dtype=torch.float64, device=gram.device)
    if contrast_spread is not None:
        step = _REACH * contrast_spread / _STEPS
        grid = torch.arange(-_STEPS, _STEPS + 1, dtype=torch.float64, device=gram.device)
        for finer in (1.0, 1.0 / _STEPS):
            tried = (a[:, None] + step * finer * grid).clamp_min(_LEAST)
            likely = _log_likelihood(tried, gram, cross, value, seen, of_mean)
            likely = likely - ((tried - 1) / contrast_spread).square() / 2
            a = tried.gather(1, likely.argmax(1, keepdim=True))[:, 0]
    inverse = 1 / (1 + a[:, None] ** 2 * value)
    mean = a[:, None] * inverse * (seen - a[:, None] * of_mean)
    covariance = (vector * inverse[:, None]) @ vector.mT
    return Latents(
        a.to(gram.dtype),
        (vector @ mean[..., None])[..., 0].to(gram.dtype),
        covariance.to(gram.dtype),
    )


def _log_likelihood(
    a: Tensor, gram: Tensor, cross: Tensor, value: Tensor, seen: Tensor, of_mean: Tensor
) -> Tensor:
    """Of contrasts ``(b, g)``, in the eigenvectors of the components' products."""
    lifted = 1 + a[..., None] ** 2 * value[:, None]
    told = a[..., None] * (seen[:, None] - a[..., None] * of_mean[:, None])
    of_components = (told.square() / lifted - lifted.log()).sum(-1)
    return a * cross[:, :1] - a**2 * gram[:, :1, 0] / 2 + of_components / 2
