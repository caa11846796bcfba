"""Reconstruction from known poses: two half maps, the FSC between them, and their average."""

from dataclasses import replace
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from vitreous.core.grid import soft_mask
from vitreous.core.images import ImageSource
from vitreous.core.params import Optics, Pose
from vitreous.core.random import generator
from vitreous.maps.fsc import FscResult, fsc, fsc_confirmed, fsc_true, solvent_mask
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.half_maps import resolutions
from vitreous.methods.reconstruct import gridding
from vitreous.methods.reconstruct.gridding import EDGE_PX, half_map, noise_to_signal, wiener_map
from vitreous.methods.reconstruct.model_based import ModelBased, ModelBasedMaps, accumulate
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.loop import run
from vitreous.physics.insertion import Gridding


class Sizes(TypedDict):
    """Pixel size of the maps, and the diameter of the mask where it is a sphere, both in Å."""

    pixel_size_angstrom: float
    diameter_angstrom: float | None


def reconstruct(
    images: ImageSource,
    pose: Pose,
    optics: Optics | None,
    half_set: Tensor,
    pixel_size_angstrom: float,
    *,
    symmetry: str = "C1",
    mask_diameter_angstrom: float | None = None,
    prior: ModelBasedConfig | None = None,
) -> Halves:
    """Reconstruct half maps and their average from images with known poses.

    Args:
        images: protein positive.
        pose: of each image.
        optics: CTF of each image; None for images without.
        half_set: long ``(images,)`` of 1 and 2; images with another number are left out.
        pixel_size_angstrom: of the images, Å.
        symmetry: name of the point group, in RELION's axes.
        mask_diameter_angstrom: of a sphere around the molecule; None: the FSC's mask is made from
            the maps.
        prior: settings of regularised least squares; None: weighted Fourier gridding.

    Returns:
        the half maps, their average, the FSC between them and its resolutions.

    Raises:
        ValueError: lengths that do not agree.

    >>> import vitreous as vt
    >>> truth = vt.phantom(16, 8.0)
    >>> particles = vt.simulate(truth, 400, 8.0, snr_db=10, seed=1)
    >>> half_set = torch.arange(400) % 2 + 1
    >>> halves = reconstruct(particles.images(), particles.pose, particles.optics, half_set, 8.0)
    >>> float(vt.fsc(halves.average, truth)[1:6].min()) > 0.9
    True
    """
    particles = PosedParticles(
        images, pose.rotation, pose.shift_angstrom, optics, pixel_size_angstrom, half_set
    )
    sizes = Sizes(pixel_size_angstrom=pixel_size_angstrom, diameter_angstrom=mask_diameter_angstrom)
    sums = gridding.accumulate(particles, symmetry=symmetry)
    if prior is None:
        return direct_halves(sums, seed=0, **sizes)
    radius = mask_diameter_angstrom and mask_diameter_angstrom / (2 * pixel_size_angstrom)
    way = partial(accumulate, particles, prior.basis, symmetry=symmetry)
    maps = run(ModelBased(way, images.box_size, prior, radius_px=radius))
    return regularised_halves(maps, (half_map(sums[0]), half_map(sums[1])), seed=0, **sizes)


def compare(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
    seed: int,
) -> tuple[Tensor, FscResult]:
    """Return the mask, and the FSC within it, of half maps ``(n, n, n)`` in one frame.

    The mask is a sphere of ``diameter_angstrom``, or made from the maps. ``seed`` draws the random
    phases by which the FSC is corrected for the mask.
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
    noise_ratio: float | None = None,
) -> Halves:
    """Return half maps of gridding, their FSC, and the map of all particles, regularised by it.

    ``noise_ratio`` is noise over signal in all shells, by the FSC if None; for others see
    :func:`compare`.
    """
    sizes = Sizes(pixel_size_angstrom=pixel_size_angstrom, diameter_angstrom=diameter_angstrom)
    half1, half2 = half_map(sums[0]).cpu(), half_map(sums[1]).cpu()
    mask, curves = compare(half1, half2, seed=seed, **sizes)
    ratio = noise_to_signal(curves.unmasked if diameter_angstrom is None else curves.masked)
    if noise_ratio is not None:
        ratio = torch.full_like(ratio, noise_ratio)
    average = wiener_map(sums[0] + sums[1], ratio.to(sums[0].weight.device)).cpu()
    return with_resolution(half1, half2, average, mask, curves, **sizes)


def regularised_halves(
    maps: ModelBasedMaps,
    direct: tuple[Tensor, Tensor],
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
    seed: int,
) -> Halves:
    """Return half maps that share a prior, compared with half maps ``direct`` without.

    ``diameter_angstrom`` and ``seed`` are as in :func:`compare`.
    """
    sizes = Sizes(pixel_size_angstrom=pixel_size_angstrom, diameter_angstrom=diameter_angstrom)
    half1, half2, average = (one.cpu() for one in (maps.half1, maps.half2, maps.average))
    first, second = (one.cpu() for one in direct)
    mask, curves = compare(half1, half2, seed=seed, **sizes)
    confirmed = fsc_confirmed((half1, half2), (first, second))
    return replace(
        with_resolution(half1, half2, average, mask, curves, **sizes),
        confirmed=confirmed,
        confirmed_at=resolutions(confirmed, len(half1), pixel_size_angstrom),
        more_curves={"direct": fsc(first, second)},
    )


def sphere(box_size: int, diameter_angstrom: float, pixel_size_angstrom: float) -> Tensor:
    """Return the soft spherical mask of a diameter, ``(n, n, n)``."""
    return soft_mask(box_size, 3, diameter_angstrom / (2 * pixel_size_angstrom), EDGE_PX)


def with_resolution(
    half1: Tensor,
    half2: Tensor,
    average: Tensor,
    mask: Tensor,
    curves: FscResult,
    *,
    pixel_size_angstrom: float,
    diameter_angstrom: float | None,
) -> Halves:
    """Return the maps with their resolutions; ``average`` is masked where a diameter is given."""
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
