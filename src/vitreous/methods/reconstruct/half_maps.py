"""Reconstruction from known poses: two half maps, the FSC between them, and their average."""

from dataclasses import dataclass, replace
from functools import partial

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


@dataclass(frozen=True)
class HalfMapComparison:
    """How half maps ``(n, n, n)`` in one frame are compared.

    Args:
        pixel_size_angstrom: of the maps, Å.
        diameter_angstrom: of a spherical mask, Å; None: the mask is made from the maps.
        seed: of the random phases by which the FSC is corrected for the mask.
    """

    pixel_size_angstrom: float
    diameter_angstrom: float | None
    seed: int = 0

    def compare(self, half1: Tensor, half2: Tensor) -> tuple[Tensor, FscResult]:
        """Return the mask, and the FSC within it."""
        if self.diameter_angstrom is None:
            mask = solvent_mask(0.5 * (half1 + half2))
        else:
            mask = sphere(len(half1), self.diameter_angstrom, self.pixel_size_angstrom)
        return mask, fsc_true(half1, half2, mask, generator(self.seed, "phases"))

    def halves(
        self, half1: Tensor, half2: Tensor, average: Tensor, mask: Tensor, curves: FscResult
    ) -> Halves:
        """Return the maps with their resolutions; ``average`` is masked by a sphere only."""
        n, diameter = len(half1), self.diameter_angstrom
        return Halves(
            half1=half1,
            half2=half2,
            average=average if diameter is None else average * mask,
            curves=curves,
            masked=resolutions(curves.corrected, n, self.pixel_size_angstrom),
            unmasked=resolutions(curves.unmasked, n, self.pixel_size_angstrom),
            mask_name="a soft mask" if diameter is None else f"a sphere of {diameter:g} Å",
        )


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
    comparison = HalfMapComparison(pixel_size_angstrom, mask_diameter_angstrom)
    sums = gridding.accumulate(particles, symmetry=symmetry)
    if prior is None:
        return direct_halves(sums, comparison)
    radius = mask_diameter_angstrom and mask_diameter_angstrom / (2 * pixel_size_angstrom)
    way = partial(accumulate, particles, prior.basis, symmetry=symmetry)
    maps = run(ModelBased(way, images.box_size, prior, radius_px=radius))
    return regularised_halves(maps, (half_map(sums[0]), half_map(sums[1])), comparison)


def direct_halves(
    sums: tuple[Gridding, Gridding],
    comparison: HalfMapComparison,
    *,
    noise_ratio: float | None = None,
) -> Halves:
    """Return half maps of gridding, their FSC, and the map of all particles, regularised by it.

    ``noise_ratio`` is noise over signal in all shells, by the FSC if None.
    """
    half1, half2 = half_map(sums[0]).cpu(), half_map(sums[1]).cpu()
    mask, curves = comparison.compare(half1, half2)
    masked = comparison.diameter_angstrom is not None
    ratio = noise_to_signal(curves.masked if masked else curves.unmasked)
    if noise_ratio is not None:
        ratio = torch.full_like(ratio, noise_ratio)
    average = wiener_map(sums[0] + sums[1], ratio.to(sums[0].weight.device)).cpu()
    return comparison.halves(half1, half2, average, mask, curves)


def regularised_halves(
    maps: ModelBasedMaps, direct: tuple[Tensor, Tensor], comparison: HalfMapComparison
) -> Halves:
    """Return half maps that share a prior, compared with half maps ``direct`` without."""
    half1, half2, average = (one.cpu() for one in (maps.half1, maps.half2, maps.average))
    first, second = (one.cpu() for one in direct)
    confirmed = fsc_confirmed((half1, half2), (first, second))
    return replace(
        comparison.halves(half1, half2, average, *comparison.compare(half1, half2)),
        confirmed=confirmed,
        confirmed_at=resolutions(confirmed, len(half1), comparison.pixel_size_angstrom),
        more_curves={"direct": fsc(first, second)},
    )


def sphere(box_size: int, diameter_angstrom: float, pixel_size_angstrom: float) -> Tensor:
    """Return the soft spherical mask of a diameter, ``(n, n, n)``."""
    return soft_mask(box_size, 3, diameter_angstrom / (2 * pixel_size_angstrom), EDGE_PX)
