"""Test whether images show a map: their fit to it against the fit of noise of the same power.

The best of many poses always fits somewhat, noise as well. So the best pose is searched for every
image, and for noise with its power spectrum and random phases. The difference of the log likelihood
ratios is evidence, of which there is one value for each image. A map that was made from other
images of noise fits both equally well, however good it looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.random import with_random_phases
from vitreous.core.threads import parallel_map
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep
from vitreous.metrics.significance import standard_errors

MOST_IMAGES = 500
_AT_ONCE = 125


@torch.no_grad()
def map_vs_noise_test(
    volume: Tensor,
    pixel_size_angstrom: float,
    images: Tensor,
    optics: Optics | None,
    noise_power: Tensor,
    radii: Sequence[int],
    config: RefinementConfig,
) -> float:
    """Return how much better images fit a map than noise does, in standard errors; 0 for noise.

    Args:
        volume: ``(n, n, n)``, of any scale, made from other images.
        pixel_size_angstrom: Å.
        images: ``(b, n, n)``; a few hundred are plenty.
        optics: of each; None for none.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        radii: highest shells compared, of the search and of what refines it.
        config: of search and refinement.
    """
    expectation = ExpectationStep(volume, pixel_size_angstrom, radii, noise_power, config)
    stream = torch.Generator().manual_seed(config.seed % 2**62)

    def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in torch.split(torch.arange(len(images)), _AT_ONCE):
            yield rows, images[rows], with_random_phases(images[rows], stream)

    def compare(pair: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        rows, real, noise = pair
        of_rows = None if optics is None else optics[rows].to(volume.device)
        both = (expectation(one.to(volume.device, torch.float32), of_rows) for one in (real, noise))
        real_ratio, noise_ratio = (one.candidates.log_likelihood_ratio[:, 0] for one in both)
        return real_ratio - noise_ratio

    return standard_errors(torch.cat(list(parallel_map(compare, pairs(), volume.device))))
