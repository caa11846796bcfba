"""Is protein dark or white, how large is it, and how strong is the noise?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import radius_grid
from vitreous.core.params import Optics
from vitreous.doctor.finding import Finding
from vitreous.physics.ctf import ctf_half

CENTRE, RING = 0.2, (0.4, 0.5)  # radii in boxes
LEAST_Z = 5.0
ABOVE_NOISE = 0.05  # of the excess of variance at the centre: the particle's edge
MANY_TIMES = 4.0  # the scatter of the profile: least height of the excess
TIGHT, LOOSE = 0.9, 0.25  # diameter in boxes
_PIECE = 256


@dataclass(frozen=True)
class ContrastTest:
    """Brightness of the particles' centre, and spread of grey values over the box.

    Args:
        z: mean over images of (centre - surroundings), over its standard error.
        difference: the same mean, in units of the images' deviation.
        diameter_px: of the region where images differ by more than noise; None if there is none.
        box_size: pixels.
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
    """Undo the CTF's sign, then look at centre and surroundings.

    Args:
        images: ``(b, n, n)``.
        optics: of each image; None takes the CTF for positive.
        pixel_size_angstrom: Å.
    """
    n = images.shape[-1]
    radius = radius_grid(n, 2) / n
    centre, ring = radius < CENTRE, (radius > RING[0]) & (radius < RING[1])
    differences, variances, average = [], torch.zeros(n, n), torch.zeros(n, n)
    for rows in torch.split(torch.arange(len(images)), _PIECE):
        part = images[rows]
        part = part - part[:, ring].mean(1)[:, None, None]
        variances += part.square().sum(0)
        if optics is not None:
            sign = ctf_half(n, pixel_size_angstrom, optics[rows]).sign()
            part = torch.fft.irfft2(torch.fft.rfft2(part) * sign, s=(n, n))
        average += part.sum(0)
        differences.append(part[:, centre].mean(1) - part[:, ring].mean(1))
    average /= len(images)
    seen = torch.cat(differences)
    variance = variances / len(images)
    shell = (radius * n).round().long().clamp(max=n // 2)
    sums = torch.zeros(n // 2 + 1).index_add_(0, shell.flatten(), variance.flatten())
    profile = (sums / torch.bincount(shell.flatten()))[: n // 2]
    scale = float(variance[ring].mean())
    z = float(seen.mean() / seen.std().clamp_min(1e-30)) * len(seen) ** 0.5
    return ContrastTest(
        z,
        float(seen.mean()) / scale**0.5,
        _diameter(profile / scale, n),
        n,
        profile / scale,
        average,
    )


def _diameter(profile: Tensor, n: int) -> float | None:
    """Twice the radius at which the excess of variance has fallen to its foot."""
    outside = profile[int(RING[0] * n) :]
    width = 2 * (n // 48) + 1
    padded = torch.nn.functional.pad(profile[None], (width // 2, width // 2), mode="replicate")
    excess = padded.unfold(1, width, 1).mean(2)[0] - outside.median()
    height = float(excess[: max(3, n // 8)].mean())
    if height < MANY_TIMES * float(outside.std()):
        return None
    below = (excess < ABOVE_NOISE * height).nonzero().flatten()
    return 2.0 * float(below[0]) if len(below) else float(n)


def findings(
    test: ContrastTest, *, dark_expected: bool, pixel_size_angstrom: float
) -> list[Finding]:
    """Verdicts on contrast, box and diameter.

    Args:
        test: from :func:`measure`.
        dark_expected: whether the file, or the user, says that protein is dark.
        pixel_size_angstrom: Å.
    """
    evidence = (
        f"centre {test.difference:+.3f} deviations against the surroundings, z {test.z:+.1f} over "
        "images"
    )
    if abs(test.z) < LEAST_Z:
        contrast = Finding("contrast", "unclear", "centres are as bright as surroundings", evidence)
    elif (test.z < 0) == dark_expected:
        shade = "dark, as stated" if dark_expected else "white"
        contrast = Finding("contrast", "ok", f"protein is {shade}", evidence)
    elif test.z < 0:
        contrast = Finding(
            "contrast",
            "wrong",
            "protein is dark",
            evidence,
            "give --invert where particles are read, or run `vitreous prepare --invert`",
            "contrast",
        )
    else:
        contrast = Finding(
            "contrast",
            "wrong",
            "protein is white, although stated to be dark",
            evidence,
            "leave out --invert",
            "contrast",
        )
    return [contrast, _size(test, pixel_size_angstrom)]


def _size(test: ContrastTest, pixel: float) -> Finding:
    box = f"box {test.box_size * pixel:.0f} Å"
    if test.diameter_px is None:
        return Finding("box", "unclear", "no particle stands out of the noise", box)
    share = test.diameter_px / test.box_size
    claim = f"particles reach about {test.diameter_px * pixel:.0f} Å across, CTF fringes included"
    evidence = f"{box}, {100 * share:.0f} % of it"
    if share > TIGHT:
        return Finding("box", "note", claim, evidence, "extract with a larger box")
    if share < LOOSE:
        return Finding("box", "note", claim, evidence, "a smaller box would save time")
    return Finding("box", "ok", claim, evidence)
