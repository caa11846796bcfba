"""Doubts about an FSC: curves that rise again, masks that mislead, agreement without structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.core.grid import radius_grid
from vitreous.core.resolution import angstrom
from vitreous.core.symmetry import point_group
from vitreous.maps.fsc import CUTOFF, FscResult, fsc, fsc_resolution, without_mean
from vitreous.maps.half_map_pair import Halves

MOST_MASK_GAIN = 1.5  # largest ratio of resolutions with and without mask that is believed
OUTLINE_ONLY = (
    "the half maps have nothing in common beyond a pedestal, ball or slab, which is no structure"
)
_MOST_FROM_MASK = 0.2
_MASK_LOSS = 1.1  # ratio of resolutions with and without mask from which the mask does harm
_RISE = 0.1  # above the threshold, and above three deviations of chance
_SUPPORT = 0.3  # share of the box that maps fill: fewer entries of a shell are independent
_TRUSTED_SHELL = 3


def fsc_warnings(halves: Halves, pixel_size_angstrom: float) -> list[str]:
    """Return sentences on what makes the FSC of two half maps doubtful."""
    masked, unmasked, n = halves.masked[0], halves.unmasked[0], len(halves.half1)
    warnings = _mask_warnings(halves.curves, masked, unmasked, n * pixel_size_angstrom)
    warnings += rise_warnings(halves.curves.corrected, pixel_size_angstrom)
    if outline_only(halves.half1, halves.half2, min(masked, unmasked), pixel_size_angstrom):
        warnings.append(OUTLINE_ONLY)
    return warnings


def rise_warnings(curve: Tensor, pixel_size_angstrom: float) -> list[str]:
    """Return a sentence if an FSC ``(n // 2 + 1,)`` of even n rises after its first fall.

    >>> curve = torch.tensor([1.0] * 8 + [0.0] * 8 + [0.7] * 5)
    >>> rise_warnings(curve, 2.0)[0][:46]
    'The FSC falls below 0.143 and rises again, to '
    """
    last = len(curve) - 1
    below = (curve[1:] < CUTOFF).nonzero().flatten()
    if not len(below) or last < 8:
        return []
    first = max(int(below[0]) + 3, 4)
    if first >= last:
        return []
    shells = torch.arange(first, last)  # centres of means over three
    mean = (curve[shells - 1] + curve[shells] + curve[shells + 1]).double() / 3
    chance = 1 / (2 * math.pi * 3 * _SUPPORT * shells.double().square()).sqrt()
    excess = mean - CUTOFF - _RISE - 3 * chance
    top = int(excess.argmax())
    if float(excess[top]) <= 0:
        return []
    at = 2 * last * pixel_size_angstrom / float(shells[top])
    return [
        f"The FSC falls below 0.143 and rises again, to {float(mean[top]):.2f} at {at:.1f} Å: look "
        "at the curve. Copies of images in both half sets, a mask or a filter can cause it."
    ]


def outline_only(
    half1: Tensor, half2: Tensor, resolution_angstrom: float, pixel_size_angstrom: float
) -> bool:
    """Return whether half maps agree only in a function of the radius, or of single coordinates.

    That is so if :func:`agreement_without` either is below 0.143.

    >>> noise = 0.1 * torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    >>> ball = (radius_grid(24, 3) < 7).float()
    >>> outline_only(noise[0] + ball, noise[1] + ball, 6.0, 2.0)
    True
    """
    return any(
        agreement_without(take_off, half1, half2, resolution_angstrom, pixel_size_angstrom) < CUTOFF
        for take_off in (without_spherical_mean, _without_planar_means)
    )


def agreement_without(
    take_off: Callable[[Tensor], Tensor],
    half1: Tensor,
    half2: Tensor,
    resolution_angstrom: float,
    pixel_size_angstrom: float,
) -> float:
    """Return the mean FSC up to a resolution after something was taken off both maps.

    The mean is over shells from the third on, weighted by their size; 1 where there is no
    resolution to doubt.
    """
    if not math.isfinite(resolution_angstrom):
        return 1.0
    n = max(half1.shape)
    last = max(1, min(n // 2, int(n * pixel_size_angstrom / resolution_angstrom)))
    first = min(_TRUSTED_SHELL, last)
    weight = torch.arange(first, last + 1, dtype=torch.float64).square()
    curve = fsc(*(take_off(without_mean(one.cpu().double())) for one in (half1, half2)))
    return float((curve[first : last + 1] * weight).sum() / weight.sum())


def _without_planar_means(volume: Tensor) -> Tensor:
    """Subtract the means over the planes across each axis, which removes slabs."""
    for axes in ((1, 2), (0, 2), (0, 1)):
        volume = volume - volume.mean(axes, keepdim=True)
    return volume


def without_spherical_mean(volume: Tensor) -> Tensor:
    """Subtract the mean over voxels of exactly equal distance, which removes radial functions."""
    n = int(volume.shape[-1])
    squared = radius_grid(n, 3, device=volume.device).double().square().round().long().flatten()
    values = volume.double().flatten()
    count = torch.bincount(squared).double().clamp(min=1)
    mean = torch.zeros_like(count).index_add_(0, squared, values) / count
    return (values - mean[squared]).reshape(volume.shape)


def _mask_warnings(
    curves: FscResult, masked: float, unmasked: float, edge_angstrom: float
) -> list[str]:
    """Warn if the mask loses or gains much resolution, or correlates random phases."""
    if masked > _MASK_LOSS * unmasked:
        return [
            f"Within the mask the half maps agree worse ({angstrom(masked)}) than without it "
            f"({angstrom(unmasked)}): it does not cover the particle. Check that it is not "
            "inside out, and that its box and pixel size are those of the maps."
        ]
    if not math.isfinite(masked):
        return []
    shell = min(int(edge_angstrom / masked), len(curves.randomised) - 1)
    if shell < curves.randomised_from + 2:
        return []
    from_mask = float(curves.randomised[curves.randomised_from + 2 : shell + 1].mean())
    if from_mask > _MOST_FROM_MASK:
        return [
            f"The mask alone correlates maps with random phases by {from_mask:.2f} up to the "
            "resolution: it is too tight or too sharp; a wider, softer one is needed."
        ]
    if unmasked > MOST_MASK_GAIN * masked:
        without = angstrom(unmasked) if math.isfinite(unmasked) else "nothing"
        return [
            f"Without mask the half maps agree to {without} only: there is much noise outside. "
            "Check that the sharpened map shows the detail of its resolution."
        ]
    return []


def directional_fsc(a: Tensor, b: Tensor, axis: Tensor, half_angle_deg: float) -> Tensor:
    """Return the FSC within a double cone about an axis and beyond it, ``(2, n // 2 + 1)``.

    Args:
        a, b: ``(n, n, n)``.
        axis: ``(3,)``, unit vector (x, y, z).
        half_angle_deg: of the cone.
    """
    n = len(a)
    kx = torch.fft.rfftfreq(n)
    ky = torch.fft.fftfreq(n)
    radius = (kx**2 + ky[:, None] ** 2 + ky[:, None, None] ** 2).sqrt().clamp_min(1e-9)
    along = (kx * axis[0] + ky[:, None] * axis[1] + ky[:, None, None] * axis[2]).abs() / radius
    inside = along > math.cos(math.radians(half_angle_deg))
    spectra = [rfft_centered(without_mean(one.double().cpu()), 3) for one in (a, b)]
    return torch.stack(
        [
            fsc(*(irfft_centered(spectrum * cone, (n, n, n)) for spectrum in spectra))
            for cone in (inside, ~inside)
        ]
    )


VIEW_ANGLE_DEG = 25.0
MOST_VIEWS = 0.75  # largest share of views within that angle of one axis


def view_concentration(rotations: Tensor, symmetry: str = "C1") -> tuple[float, Tensor]:
    """Return the share of views within 25 degrees of their main axis, and that axis ``(3,)``.

    ``rotations (b, 3, 3)`` take volume to particle coordinates; a view is the particle's z axis.
    Views that ``symmetry`` makes of one count as well.

    >>> share, axis = view_concentration(torch.eye(3).expand(5, 3, 3))
    >>> share, axis.abs().tolist()
    (1.0, [0.0, 0.0, 1.0])
    """
    views = (rotations[:, 2].double().cpu() @ point_group(symmetry).matrices.cpu()).flatten(0, 1)
    axis = torch.linalg.eigh(views.T @ views)[1][:, -1]
    close = (views @ axis).abs() > math.cos(math.radians(VIEW_ANGLE_DEG))
    return float(close.double().mean()), axis


def directional_doubt(
    halves: Halves, rotations: Tensor, symmetry: str, pixel_size_angstrom: float
) -> tuple[Halves, list[str]]:
    """Return half maps with their directional FSC where nearly all views share an axis.

    Args:
        halves: half maps.
        rotations: of their particles, ``(b, 3, 3)``.
        symmetry: point group.
        pixel_size_angstrom: Å.

    Returns:
        the half maps, with the curves "along_views" and "across_views" where they are warned of,
        and the warnings.
    """
    share, axis = view_concentration(rotations, symmetry)
    if share < MOST_VIEWS:
        return halves, []
    along, across = directional_fsc(halves.half1, halves.half2, axis, VIEW_ANGLE_DEG)
    n = len(halves.half1)
    at = [angstrom(fsc_resolution(one, CUTOFF, n, pixel_size_angstrom)) for one in (along, across)]
    curves = {**halves.more_curves, "along_views": along, "across_views": across}
    direction = ", ".join(f"{value:.2f}" for value in axis.tolist())
    return replace(halves, more_curves=curves), [
        f"{100 * share:.0f} % of the views lie within {VIEW_ANGLE_DEG:.0f} degrees of one axis "
        f"(x, y, z {direction}), along which little is measured: the half maps agree to {at[0]} "
        f"along it and to {at[1]} across it, whatever the FSC over all directions says. Other "
        "views are needed."
    ]
