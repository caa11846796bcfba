"""Two half maps in one frame: mask, FSC, and the numbers to be quoted."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from vitreous.core.grid import soft_mask
from vitreous.core.random import generator
from vitreous.maps.fsc import FscResult, fsc_true, solvent_mask
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import resolutions
from vitreous.methods.reconstruct.gridding import EDGE_PX, half_map, noise_to_signal, wiener_map
from vitreous.physics.insertion import Gridding


class Sizes(TypedDict):
    """Pixel size of the maps, and the diameter of the mask where it is a sphere, both in Å."""

    pixel_size_angstrom: float
    diameter_angstrom: float | None


def compare(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
    seed: int,
) -> tuple[Tensor, FscResult]:
    """The mask, and the FSC within it.

    Args:
        half1, half2: ``(n, n, n)`` in one frame.
        pixel_size_angstrom: Å.
        diameter_angstrom: of a sphere; None: the mask is found from the maps.
        seed: of the phases that are randomised.
    """
    if diameter_angstrom is None:
        mask = solvent_mask(0.5 * (half1 + half2))
    else:
        mask = sphere(len(half1), diameter_angstrom, pixel_size_angstrom)
    return mask, fsc_true(half1, half2, mask, generator(seed, "phases"))


def direct_halves(
    sums: tuple[Gridding, Gridding],
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
    seed: int,
    noise_to_signal_is: float | None = None,
) -> Halves:
    """Half maps of direct sums, their FSC, and the map of all particles, regularised by it.

    Args:
        sums: of both half sets.
        pixel_size_angstrom: of the maps, Å.
        diameter_angstrom: of the mask, as :func:`compare`.
        seed: of the phases that are randomised.
        noise_to_signal_is: for all shells, instead of what the FSC says.
    """
    sizes = Sizes(pixel_size_angstrom=pixel_size_angstrom, diameter_angstrom=diameter_angstrom)
    half1, half2 = half_map(sums[0]).cpu(), half_map(sums[1]).cpu()
    mask, curves = compare(half1, half2, seed=seed, **sizes)
    ratio = noise_to_signal(curves.unmasked if diameter_angstrom is None else curves.masked)
    if noise_to_signal_is is not None:
        ratio = torch.full_like(ratio, noise_to_signal_is)
    average = wiener_map(sums[0] + sums[1], ratio.to(sums[0].weight.device)).cpu()
    return described(half1, half2, average, mask, curves, **sizes)


def sphere(box_size: int, diameter_angstrom: float, pixel_size_angstrom: float) -> Tensor:
    """The soft mask that a diameter stands for, ``(n, n, n)``."""
    return soft_mask(box_size, 3, diameter_angstrom / (2 * pixel_size_angstrom), EDGE_PX)


def described(
    half1: Tensor,
    half2: Tensor,
    average: Tensor,
    mask: Tensor,
    curves: FscResult,
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
) -> Halves:
    """The maps with their resolutions; ``average`` is cut out where a diameter was given."""
    n = len(half1)
    return Halves(
        half1=half1,
        half2=half2,
        average=average if diameter_angstrom is None else average * mask,
        curves=curves,
        masked=resolutions(curves.corrected, n, pixel_size_angstrom),
        unmasked=resolutions(curves.unmasked, n, pixel_size_angstrom),
        mask_name="a soft mask"
        if diameter_angstrom is None
        else f"a sphere of {diameter_angstrom:g} Å",
    )
