r"""Templates of a picker: shells or class averages, rotated, and as the microscope images them.

Without a CTF the contrast is that of a weak phase object at low frequency k, where the CTF is
proportional to :math:`k^2` whatever the defocus. A Gaussian :math:`e^{-(k r)^2 / 2}` with r = 0.35
diameters keeps to these frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.core.grid import radius_grid, squared_frequency
from vitreous.core.params import Optics
from vitreous.core.resample import rotate_images
from vitreous.physics.ctf import ctf_half

_INNER = (0.0, 0.6)  # inner over outer radius of the default templates
_SCALES = (0.85, 1.0, 1.15)  # their outer radius over the stated one, which may be wrong
_BLUR = 0.35  # r above, in diameters


def shell_templates(box_size: int, radius_px: float) -> Tensor:
    r"""Return the projections ``(6, n, n)`` of balls and spherical shells, float64.

    :math:`\sqrt{R^2 - r^2} - \sqrt{h^2 R^2 - r^2}`, negative radicands taken as 0, for h = 0 and
    0.6 and outer radii R of 0.85, 1 and 1.15 times ``radius_px``.

    >>> [round(v, 2) for v in shell_templates(9, 4.0)[3, 4, 4:].tolist()]
    [1.6, 1.69, 2.14, 2.65, 0.0]
    """
    squared = radius_grid(box_size, 2, dtype=torch.float64) ** 2
    outer = radius_px * torch.tensor(_SCALES, dtype=torch.float64)[:, None, None, None]
    inner = outer * torch.tensor(_INNER, dtype=torch.float64)[:, None, None]
    shells = (outer**2 - squared).clamp_min(0).sqrt() - (inner**2 - squared).clamp_min(0).sqrt()
    return shells.flatten(0, 1)


def rotated_templates(templates: Tensor, step_deg: float) -> Tensor:
    """Return each template ``(k, n, n)`` at all rotations in its plane, ``(k * m, n, n)``.

    >>> rotated_templates(torch.rand(2, 8, 8), 90.0).shape
    torch.Size([8, 8, 8])
    """
    count, n = max(1, round(360 / step_deg)), templates.shape[-1]
    factor = torch.ones(n, n // 2 + 1, dtype=templates.dtype)
    if n % 2 == 0:
        factor[n // 2], factor[:, -1] = 0, 0
    angles = torch.arange(count, dtype=templates.dtype) * (2 * math.pi / count)
    rotated = rotate_images(
        templates.repeat_interleave(count, 0), angles.repeat(len(templates)), factor
    )
    return rotated


def as_imaged(
    templates: Tensor, pixel_size_angstrom: float, optics: Optics | None, diameter_angstrom: float
) -> Tensor:
    """Return templates ``(k, n, n)`` with the contrast that a micrograph gives, protein positive.

    Args:
        templates: projections of particles.
        pixel_size_angstrom: their pixel size in Å.
        optics: CTF of one micrograph, fields ``(1,)``; None where it is unknown.
        diameter_angstrom: diameter of the particle in Å, for the contrast without CTF.
    """
    n = templates.shape[-1]
    if optics is not None:
        contrast = ctf_half(n, pixel_size_angstrom, optics)[0].double()
    else:
        squared = squared_frequency(n, 2).double() / (n * pixel_size_angstrom) ** 2
        contrast = squared * torch.exp(-squared * (_BLUR * diameter_angstrom) ** 2 / 2)
    return irfft_centered(rfft_centered(templates.double(), 2) * contrast, (n, n))
