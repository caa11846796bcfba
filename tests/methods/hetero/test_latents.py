"""What one image says of its place and contrast, against integrals worked out on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.methods.hetero.latents import infer


def products(d: int, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projections, image, and their products, of 5 images of 40 numbers."""
    stream = torch.Generator().manual_seed(3)
    maps = torch.randn(5, d + 1, 40, generator=stream, dtype=torch.float64)
    z = torch.randn(5, d, generator=stream, dtype=torch.float64)
    a = 1 + 0.2 * torch.randn(5, generator=stream, dtype=torch.float64)
    beta = torch.cat([torch.ones(5, 1, dtype=torch.float64), z], 1) * a[:, None]
    image = torch.einsum("bk,bkp->bp", beta, maps)
    image = image + noise * torch.randn(5, 40, generator=stream, dtype=torch.float64)
    gram = maps @ maps.mT
    return maps, image, gram, (maps @ image[..., None])[..., 0]


def test_places_have_the_posterior_of_a_grid() -> None:
    maps, image, gram, cross = products(1)
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    shown = maps[:, 0, None] + z[:, None] * maps[:, 1, None]
    likely = -(image[:, None] - shown).square().sum(-1) / 2 - z**2 / 2
    weight = torch.softmax(likely, 1)
    mean = weight @ z
    found = infer(gram, cross, None)
    torch.testing.assert_close(found.mean[:, 0], mean)
    torch.testing.assert_close(found.covariance[:, 0, 0], weight @ z**2 - mean**2)


def test_contrast_is_the_most_likely_of_all() -> None:
    maps, image, gram, cross = products(3)
    found = infer(gram, cross, 0.2)
    tried = torch.linspace(0.4, 1.6, 2401, dtype=torch.float64)
    likely = torch.empty(5, len(tried), dtype=torch.float64)
    for j, a in enumerate(tried):  # y - a P mu is normal with covariance I + a^2 P V V^T P^T
        covariance = torch.eye(40, dtype=torch.float64) + a**2 * maps[:, 1:].mT @ maps[:, 1:]
        rest = image - a * maps[:, 0]
        form = (rest[:, None] @ torch.linalg.solve(covariance, rest[..., None])).flatten()
        likely[:, j] = -(form + torch.logdet(covariance)) / 2 - ((a - 1) / 0.2) ** 2 / 2
    assert (found.contrast - tried[likely.argmax(1)]).abs().max() < 0.005


def test_moments_are_those_of_samples() -> None:
    _, _, gram, cross = products(2, noise=2.0)
    found = infer(gram, cross, 0.2)
    root = torch.linalg.cholesky(found.covariance)
    normal = torch.randn(
        5, 2, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    z = found.mean[..., None] + root @ normal
    beta = torch.cat([torch.ones_like(z[:, :1]), z], 1) * found.contrast[:, None, None]
    mean, second = found.moments()
    torch.testing.assert_close(mean, beta.mean(-1), atol=0.01, rtol=0.01)
    torch.testing.assert_close(second, beta @ beta.mT / 200_000, atol=0.02, rtol=0.02)


def test_an_image_of_nothing_keeps_the_prior() -> None:
    found = infer(torch.zeros(1, 3, 3), torch.zeros(1, 3), 0.2)
    assert found.contrast.item() == 1.0
    torch.testing.assert_close(found.covariance[0], torch.eye(2))
