r"""Posterior of one image's contrast a and latent z in a linear model of structures.

In units of its noise, image y is :math:`a\,(P\mu + \sum_k z_k P V_k) + \epsilon`, with
:math:`z \sim N(0, I)` and :math:`a \sim N(1, s^2)`. Sufficient statistics are the products of the
projections :math:`F = (P\mu, P V_1, \dots, P V_d)` with each other, :math:`G = \langle F,
F\rangle`, and with the image, :math:`h = \langle F, y\rangle`. Given a, z is normal with

.. math::

    S = (I + a^2 G_{VV})^{-1}, \qquad m = a\, S\,(h_V - a\, G_{V\mu}),

and a has the likelihood

.. math::

    2 \log p(y \mid a) = 2 a h_\mu - a^2 G_{\mu\mu}
        + a^2 |S^{1/2} (h_V - a G_{V\mu})|^2 - \log\det(I + a^2 G_{VV}) + \mathrm{const}.

Source: M. E. Tipping and C. M. Bishop, J. R. Stat. Soc. B 61 (1999) 611, equations (5) to (8), for
a linear operator of each image and a contrast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.methods.em.image_record import ImageRecord

_GRID_STEPS = 10  # of the contrast, to each side
_GRID_RANGE = 3.0  # standard deviations that the first grid covers
_MIN_CONTRAST = 0.1


@dataclass(frozen=True)
class Latents(ImageRecord):
    """Posterior of a batch of images."""

    contrast: Tensor  # a, ``(b,)``, the most likely
    mean: Tensor  # m, ``(b, d)``, given that
    covariance: Tensor  # S, ``(b, d, d)``

    def moments(self) -> tuple[Tensor, Tensor]:
        r"""Return the means of :math:`\beta = a (1, z)` ``(b, d + 1)`` and :math:`\beta\beta^T`."""
        a = self.contrast[:, None]
        one_z = torch.cat([torch.ones_like(a), self.mean], 1)
        second = one_z[:, :, None] * one_z[:, None]
        second[:, 1:, 1:] += self.covariance
        return a * one_z, a[..., None] ** 2 * second


def infer(gram: Tensor, cross: Tensor, contrast_spread: float | None) -> Latents:
    """Infer the posterior of z and the most likely contrast of every image.

    ``gram (b, d + 1, d + 1)`` is G, the mean structure first, ``cross (b, d + 1)`` h, and
    ``contrast_spread`` s; None for a = 1.

    >>> gram = torch.tensor([[[100.0, 0.0], [0.0, 3.0]]])
    >>> latents = infer(gram, torch.tensor([[100.0, 3.0]]), None)
    >>> latents.mean.item(), latents.covariance.item()
    (0.75, 0.25)
    """
    value, vector = torch.linalg.eigh(gram[:, 1:, 1:].double())
    value = value.clamp_min(0.0)
    image_dot = (cross[:, None, 1:].double() @ vector)[:, 0]
    mean_dot = (gram[:, :1, 1:].double() @ vector)[:, 0]
    a = torch.ones(len(gram), dtype=torch.float64, device=gram.device)
    if contrast_spread is not None:
        step = _GRID_RANGE * contrast_spread / _GRID_STEPS
        grid = torch.arange(-_GRID_STEPS, _GRID_STEPS + 1, dtype=torch.float64, device=gram.device)
        for finer in (1.0, 1.0 / _GRID_STEPS):
            contrasts = (a[:, None] + step * finer * grid).clamp_min(_MIN_CONTRAST)
            log_posterior = _log_likelihood(contrasts, gram, cross, value, image_dot, mean_dot)
            log_posterior = log_posterior - ((contrasts - 1) / contrast_spread).square() / 2
            a = contrasts.gather(1, log_posterior.argmax(1, keepdim=True))[:, 0]
    inverse = 1 / (1 + a[:, None] ** 2 * value)
    mean = a[:, None] * inverse * (image_dot - a[:, None] * mean_dot)
    covariance = (vector * inverse[:, None]) @ vector.mT
    return Latents(
        a.to(gram.dtype),
        (vector @ mean[..., None])[..., 0].to(gram.dtype),
        covariance.to(gram.dtype),
    )


def _log_likelihood(
    a: Tensor, gram: Tensor, cross: Tensor, value: Tensor, image_dot: Tensor, mean_dot: Tensor
) -> Tensor:
    """Return the log-likelihood of contrasts ``(b, g)``, in the eigenvectors of G_VV."""
    precision = 1 + a[..., None] ** 2 * value[:, None]
    residual_dot = a[..., None] * (image_dot[:, None] - a[..., None] * mean_dot[:, None])
    of_components = (residual_dot.square() / precision - precision.log()).sum(-1)
    return a * cross[:, :1] - a**2 * gram[:, :1, 0] / 2 + of_components / 2
