"""A belt of detergent around a molecule, as membrane proteins have it."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.data.maps import low_pass

_HALF_HEIGHT_ANGSTROM = 18.0  # along z
_WIDTH_ANGSTROM = 25.0  # beyond the molecule
_EDGE = 0.15  # softness, in units of height and width
_BLUR_ANGSTROM = 15.0  # resolution at which protein and the gaps around it are told apart
_MOLECULE = 0.2  # of the largest density at that resolution, above which voxels are protein
_INSIDE = 0.95  # of the protein at the belt's height, about which the belt lies


def with_micelle(volume: Tensor, pixel_size_angstrom: float, density: float) -> Tensor:
    """Return a map with a belt of detergent about the z axis, at the height of its middle.

    The belt is an elliptic ring, 36 Å high and 25 Å wide, around the molecule at that height; it
    fills gaps, but not the molecule.

    Args:
        volume: ``(n, n, n)``, protein positive.
        pixel_size_angstrom: Å.
        density: of the belt, relative to the mean density of protein.

    Raises:
        UsageError: the belt does not fit into the box.

    >>> axis = (torch.arange(24.0) - 12).abs()
    >>> ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 16).float()
    >>> bool(with_micelle(ball, 6.0, 0.3).sum() > 1.5 * ball.sum())
    True
    """
    blurred = low_pass(volume, pixel_size_angstrom, _BLUR_ANGSTROM)
    protein = blurred > _MOLECULE * blurred.max()
    level = blurred[protein].mean()
    axis = (torch.arange(len(volume)) - len(volume) // 2) * pixel_size_angstrom
    z, y, x = axis[:, None, None], axis[:, None], axis
    weight = torch.where(protein, blurred, 0.0)
    middle = [float((weight * one).sum() / weight.sum()) for one in (z, y, x)]
    height = (z - middle[0]).abs()
    distance = ((y - middle[1]) ** 2 + (x - middle[2]) ** 2).sqrt().expand_as(volume)
    at_height = distance[protein & (height < _HALF_HEIGHT_ANGSTROM)]
    radius = float(at_height.quantile(_INSIDE)) if len(at_height) else 0.0
    edge, widest = len(volume) * pixel_size_angstrom, 2 * (radius + _WIDTH_ANGSTROM)
    if widest > edge:
        raise UsageError(
            f"`micelle` {density:g}: the belt is {widest:.0f} Å wide, the box {edge:.0f} Å; give a "
            "larger `box_size`"
        )
    beyond = (distance - radius).clamp_min(0) / _WIDTH_ANGSTROM
    share = torch.sigmoid((1 - (beyond**2 + (height / _HALF_HEIGHT_ANGSTROM) ** 2).sqrt()) / _EDGE)
    free = 1 - (2 * blurred / level).clamp(0, 1)
    return volume + density * level * share * free
