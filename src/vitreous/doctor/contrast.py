"""Test of the contrast: whether protein is dark or white, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import radius_grid
from vitreous.core.params import Optics
from vitreous.data.grey_values import LEAST_Z, RING, centre_brightness
from vitreous.data.prepare import flip_phases
from vitreous.doctor.finding import Finding
from vitreous.metrics.significance import standard_errors

ABOVE_NOISE = 0.05  # fraction of the excess variance at the centre that marks the particle's edge
LEAST_EXCESS = 4.0  # least excess variance at the centre over the scatter of the profile
TIGHT, LOOSE = 0.9, 0.25  # diameter over the box
_PIECE = 256
_NO_SIZE = "give later commands the mask diameter: the particle's longest axis and 10 to 20 %"


@dataclass(frozen=True)
class ContrastTest:
    """Brightness of the particles' centre, and variance of grey values over the box.

    Args:
        z: mean over images of (centre - surroundings), over its standard error.
        difference: the same mean, in units of the images' deviation.
        diameter_px: diameter of the region where images differ by more than noise, pixels; None
            if there is none.
        box_size: edge n of the images in pixels.
        profile: variance over images by radius, ``(n // 2,)``, relative to the surroundings.
        average: mean image after the CTF's sign, ``(n, n)``.
    """

    z: float
    difference: float
    diameter_px: float | None
    box_size: int
    profile: Tensor
    average: Tensor


def measure(images: Tensor, optics: Optics | None, pixel_size_angstrom: float) -> ContrastTest:
    """Compare centre and surroundings of images ``(b, n, n)`` after correcting the CTF's sign.

    Without ``optics`` the CTF is taken to be positive.
    """
    n = images.shape[-1]
    radius = radius_grid(n, 2) / n
    ring = (radius > RING[0]) & (radius < RING[1])
    differences, variances, average = [], torch.zeros(n, n), torch.zeros(n, n)
    for rows in torch.split(torch.arange(len(images)), _PIECE):
        part = images[rows]
        part = part - part[:, ring].mean(1)[:, None, None]
        variances += part.square().sum(0)
        if optics is not None:
            part = flip_phases(part, pixel_size_angstrom, optics[rows])
        average += part.sum(0)
        differences.append(centre_brightness(part))
    average /= len(images)
    difference = torch.cat(differences)
    variance = variances / len(images)
    shell = (radius * n).round().long().clamp(max=n // 2)
    sums = torch.zeros(n // 2 + 1).index_add_(0, shell.flatten(), variance.flatten())
    profile = (sums / torch.bincount(shell.flatten()))[: n // 2]
    scale = float(variance[ring].mean())
    z = standard_errors(difference)
    relative, profile = float(difference.mean()) / scale**0.5, profile / scale
    return ContrastTest(z, relative, _diameter(profile, n), n, profile, average)


def _diameter(profile: Tensor, n: int) -> float | None:
    """Return twice the radius where the excess variance ends, in pixels; None without excess."""
    outside = profile[int(RING[0] * n) :]
    width = 2 * (n // 48) + 1
    padded = torch.nn.functional.pad(profile[None], (width // 2, width // 2), mode="replicate")
    excess = padded.unfold(1, width, 1).mean(2)[0] - outside.median()
    height = float(excess[: max(3, n // 8)].mean())
    if height < LEAST_EXCESS * float(outside.std()):
        return None
    below = (excess < ABOVE_NOISE * height).nonzero().flatten()
    return 2.0 * float(below[0]) if len(below) else float(n)


def findings(
    test: ContrastTest, *, dark_expected: bool, pixel_size_angstrom: float
) -> list[Finding]:
    """Return the findings of :func:`measure` on contrast, box and diameter.

    ``dark_expected`` says that file or user state that protein is dark; ``pixel_size_angstrom`` is
    that of the tested images.
    """
    evidence = (
        f"centre {test.difference:+.3f} deviations against the surroundings, z {test.z:+.1f} over "
        f"images; clear from {LEAST_Z:g} on"
    )
    if abs(test.z) < LEAST_Z:
        contrast = Finding("contrast", "unclear", "centres are as bright as surroundings", evidence)
    elif (test.z < 0) == dark_expected:
        shade = "dark, as stated" if dark_expected else "white"
        contrast = Finding("contrast", "ok", f"protein is {shade}", evidence)
    elif test.z < 0:
        remedy = (
            "commands of vitreous see and invert it by themselves; for other programs run "
            "`vitreous prepare` with `invert`"
        )
        contrast = Finding("contrast", "wrong", "protein is dark", evidence, remedy, "contrast")
    else:
        claim = "protein is white, although stated to be dark"
        remedy = "leave out `invert`, or give `invert=no`"
        contrast = Finding("contrast", "wrong", claim, evidence, remedy, "contrast")
    return [contrast, _size(test, pixel_size_angstrom)]


def _size(test: ContrastTest, pixel: float) -> Finding:
    box = f"box {test.box_size * pixel:.0f} Å"
    if test.diameter_px is None:
        return Finding("box", "unclear", "no particle stands out of the noise", box, _NO_SIZE)
    share = test.diameter_px / test.box_size
    claim = f"particles reach about {test.diameter_px * pixel:.0f} Å across, CTF fringes included"
    evidence = (
        f"{box}, {100 * share:.0f} % of it; {100 * LOOSE:.0f} to {100 * TIGHT:.0f} % is right"
    )
    if share > TIGHT:
        return Finding("box", "note", claim, evidence, "extract with a larger box")
    if share < LOOSE:
        return Finding("box", "note", claim, evidence, "a smaller box would save time")
    return Finding("box", "ok", claim, evidence)
