"""Poses and grey scale for half maps that were made without poses.

CryoGAN's half maps belong to no pose of any image, and their shells have a grey scale of their own.
One round of refinement from them gives both: poses of each half set under its own map, and
reconstructions at these poses, whose shells tell the scale. The maps stay what they are otherwise,
so that :func:`~vitreous.methods.em.finer_shells_test.finer_shells_test` asks the images about them
and not about what refinement would make of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.core.images import ImageSource
from vitreous.core.params import Optics
from vitreous.maps.fsc import shell_sums
from vitreous.maps.shell_filter import weight_shells
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.em.refinement_result import RefinementResult


@torch.no_grad()
def with_poses(
    half_maps: tuple[Tensor, Tensor],
    images: ImageSource,
    optics: Optics | None,
    half_set: Tensor,
    resolution_angstrom: float,
    config: RefinementConfig,
    *,
    pixel_size_angstrom: float,
    progress: Callable[[float], object] = float,
) -> RefinementResult:
    """Return half maps in the images' grey scale, with the images' poses under them.

    Args:
        half_maps: ``(n, n, n)`` each, in one frame, of any grey scale.
        images: particle images, protein positive.
        optics: of each; None for none.
        half_set: long ``(b,)`` of 1 and 2.
        resolution_angstrom: end of the shells by which poses are found.
        config: of the search.
        pixel_size_angstrom: Å.
        progress: called with the share that is done.
    """
    start = InitialModel(*half_maps, resolution_angstrom, independent=True)
    refinement = Refinement(
        images,
        optics,
        half_set,
        start,
        replace(config, rounds=1, start_resolution_angstrom=resolution_angstrom),
        pixel_size_angstrom=pixel_size_angstrom,
        progress=progress,
    )
    refinement.step()
    found = refinement.result()
    scale = _scale(half_maps, (found.half1, found.half2))
    half1, half2 = (weight_shells(one, scale) for one in half_maps)
    return replace(found, half1=half1, half2=half2)


def _scale(half_maps: tuple[Tensor, Tensor], reconstructed: tuple[Tensor, Tensor]) -> Tensor:
    """Return by shell what half maps are to be multiplied with to resemble reconstructions most.

    Never below zero, ``(n // 2 + 1,)``.
    """
    shape = tuple(half_maps[0].shape)
    given, made = (rfft_centered(torch.stack(pair), 3) for pair in (half_maps, reconstructed))
    cross, own = (
        shell_sums(one, shape).sum(0) for one in ((given.conj() * made).real, given.abs().square())
    )
    return (cross / own.clamp_min(1e-30)).clamp_min(0)
