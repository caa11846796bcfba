"""Grey values of particle images: background, scale and contrast, decided from the images.

Stacks hold raw counts as well as normalised images, and protein dark as well as white. Methods see
images whose background (outside a circle around the particle) has mean 0 and deviation 1, and in
which protein is positive.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.data.bad_images import finite_and_constant
from vitreous.data.prepare import DEFAULT_MASK_FRACTION, flip_phases
from vitreous.metrics.significance import standard_errors

if TYPE_CHECKING:
    from vitreous.data.particles import Particles

CENTRE, RING = 0.2, (0.4, 0.5)  # radii over the box
LEAST_Z = 5.0  # standard errors of the centres' brightness from which contrast is certain
OFFSET, UNEVEN = 0.1, 0.3  # mean of backgrounds and spread, in deviations, that are worth a word
_SAMPLES = (250, 1000, 4000)  # images that are read until contrast is certain
_SAMPLE_BYTES = 1 << 28
_CONTRAST_BOX = 64
_NOISY = 0.5  # least deviation of the background over the image's where noise dominates
_FEWEST = 16  # pixels of a background
_LEAST_SQUARE = 1e-30  # beyond it and its inverse squares leave single precision
_ABSURD = 1e15  # scale from which single precision fails


@dataclass(frozen=True)
class GreyValues:
    """Rule by which stored grey values become those that methods see.

    Args:
        dark: whether protein is dark in the files.
        normalise: take off every image's background, and scale.
        circle: diameter of the circle around the particle, over the images' edge; the background
            lies outside.
        divisor: of the grey values; None: of every image the deviation of its background.
        typical: deviation that serves where an image's background is flat.

    >>> images = 3 + 2 * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> [round(float(value), 1) for value in (images.mean(), GreyValues().apply(images).mean())]
    [3.1, 0.0]
    """

    dark: bool = False
    normalise: bool = True
    circle: float = DEFAULT_MASK_FRACTION
    divisor: float | None = None
    typical: float = 1.0

    @property
    def contrast(self) -> str:
        """Contrast of protein in the files, as an output folder records it."""
        return "dark" if self.dark else "white"

    def apply(self, images: Tensor) -> Tensor:
        """Return stored images ``(b, n, n)``, on the CPU, as methods see them."""
        if not self.normalise:
            return -images if self.dark else images
        mean, deviation = background_statistics(images, self.circle)
        if self.divisor is not None:
            deviation = np.full_like(deviation, self.divisor)
        deviation = np.where(deviation > 0, deviation, self.typical)
        factor = np.float32((-1.0 if self.dark else 1.0) / deviation)
        centred = images - torch.from_numpy(mean.astype(np.float32))[:, None, None]
        return centred.mul_(torch.from_numpy(factor)[:, None, None])


@lru_cache(maxsize=8)
def _background(n: int, circle: float) -> NDArray[np.int64]:
    """Return the places of the pixels outside the circle in a flat image."""
    radius = radius_grid(n, 2).flatten().numpy()
    outside = np.flatnonzero(radius > circle * n / 2)
    return outside if len(outside) >= _FEWEST else np.argsort(radius)[-_FEWEST:]


def background_statistics(
    images: Tensor, circle: float = DEFAULT_MASK_FRACTION
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation ``(b,)`` of the pixels outside a circle of images ``(b, n, n)``.

    ``circle`` is its diameter over the edge. Sums do not depend on the batch or on threads.
    """
    places = _background(images.shape[-1], circle)
    pixels = images.flatten(1).numpy().take(places, axis=1)
    with np.errstate(all="ignore"):  # of images that are not finite, which later checks name
        mean = pixels.mean(axis=1)
        pixels -= mean[:, None]
        variance = np.einsum("ij,ij->i", pixels, pixels) / len(places)
        if not ((variance > _LEAST_SQUARE) & (variance < 1 / _LEAST_SQUARE)).all():
            wide = images.flatten(1).numpy().take(places, axis=1).astype(np.float64)
            return wide.mean(axis=1), wide.std(axis=1)
    return mean.astype(np.float64), np.sqrt(variance, dtype=np.float64)


def centre_brightness(images: Tensor) -> Tensor:
    """Return the mean of the centre of images ``(b, n, n)`` minus that of a ring around it."""
    radius = radius_grid(images.shape[-1], 2) / images.shape[-1]
    ring = (radius > RING[0]) & (radius < RING[1])
    return images[:, radius < CENTRE].mean(1) - images[:, ring].mean(1)


def decide_grey_values(
    particles: Particles,
    *,
    invert: bool | None = None,
    normalise: bool = True,
    diameter_angstrom: float | None = None,
) -> GreyValues:
    """Decide background, scale and contrast of particles on a sample of their images.

    Warns, once, where something is done to the images that their file does not state, and where
    contrast cannot be told.

    Args:
        particles: the images with their CTFs.
        invert: whether protein is dark; None: by the images, and by the file where they do not
            tell.
        normalise: take off backgrounds and scale.
        diameter_angstrom: of the circle around the particle; 75 % of the edge by default.

    Raises:
        InputError: grey values that cannot be computed with unless they are scaled.
    """
    edge = particles.box_size * particles.pixel_size_angstrom
    circle = DEFAULT_MASK_FRACTION if diameter_angstrom is None else diameter_angstrom / edge
    grey = GreyValues(normalise=normalise, circle=min(circle, 1.0))
    most = min(len(particles), max(_SAMPLES[0], _SAMPLE_BYTES // (4 * particles.box_size**2)))
    z = 0.0
    for count in _SAMPLES:
        images, rows = _sample(particles, min(count, most))
        if not len(rows):
            return replace(grey, dark=bool(invert))
        z = standard_errors(_brightness(particles, images, rows, grey.circle))
        if count >= most or abs(z) >= LEAST_Z:
            break
    grey = _with_scale(grey, images, particles.source)
    return replace(grey, dark=_is_dark(particles, invert, z))


def _sample(particles: Particles, most: int) -> tuple[Tensor, Tensor]:
    """Return usable images, evenly spaced, and their rows."""
    rows = torch.linspace(0, len(particles) - 1, most, dtype=torch.float64).round().long()
    images = particles.read(rows)
    finite, constant = finite_and_constant(images)
    usable = finite & ~constant
    return images[usable], rows[usable]


def _brightness(particles: Particles, images: Tensor, rows: Tensor, circle: float) -> Tensor:
    """Return :func:`centre_brightness` of images after the CTF's sign, in noise deviations."""
    n = min(_CONTRAST_BOX, particles.box_size)
    pixel = particles.pixel_size_angstrom * particles.box_size / n
    small = fourier_resize(GreyValues(circle=circle).apply(images), n, 2)
    if particles.has_ctf:
        small = flip_phases(small, pixel, particles.optics[rows])
    return centre_brightness(small)


def _with_scale(grey: GreyValues, images: Tensor, source: object) -> GreyValues:
    """Return the rule with its scale, and warn where it changes images that are not normalised."""
    mean, deviation = background_statistics(images, grey.circle)
    typical, of_image = float(np.median(deviation)), background_statistics(images, 0.0)[1]
    divisor = None
    if typical < _NOISY * float(np.median(of_image)):  # backgrounds show fringes rather than noise
        divisor = typical = 2.0 ** round(np.log2(np.median(of_image)))
    offsets, gains = mean / typical, np.log(np.maximum(deviation, 1e-3 * typical) / typical)
    offset = float(np.median(offsets))
    absurd = not 1 / _ABSURD < typical < _ABSURD
    uneven = _spread(offsets) > UNEVEN or (divisor is None and _spread(gains) > UNEVEN)
    if absurd and not grey.normalise:
        raise InputError(
            f"{source}: grey values of {typical:.2g} cannot be computed with; leave out "
            "`normalise=False`, or scale the images"
        )
    if absurd or uneven or abs(offset) > OFFSET:
        kind = f"backgrounds of mean {np.median(mean):.3g} and deviation {typical:.3g}"
        done = "taken off and scaled, image by image; `normalise=False` leaves them"
        if not grey.normalise:
            done = "used as they are, which can ruin map and FSC"
        warnings.warn(f"{source}: grey values, {kind}, are {done}", stacklevel=4)
    return replace(grey, divisor=divisor, typical=typical)


def _spread(values: NDArray[np.float64]) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _is_dark(particles: Particles, invert: bool | None, z: float) -> bool:
    """Return whether protein is dark, and warn unless file, user and images agree."""
    stated = {"dark": True, "light": False}.get(particles.stated_contrast or "")
    seen = None if abs(z) < LEAST_Z else z < 0
    claimed = stated if invert is None else invert
    dark = bool(claimed) if invert is not None or seen is None else seen
    evidence = f"{particles.source}: contrast: centres differ from their surroundings by {z:+.1f}"
    if seen is None and invert is None:
        word = "as the table says" if stated is not None else "as RELION writes it"
        shade = "dark" if dark else "white"
        text = f" only, too little to tell; protein is taken as {shade}, {word}; give `invert`"
    elif seen is not None and seen != bool(claimed):
        shade = "dark" if seen else "white"
        text = f": protein is {shade}"
        if invert is not None:
            text += ", although `invert` says otherwise: leave it out, or the map is negative"
        elif stated is not None:
            text += ", although the table says otherwise; the images are believed"
        else:
            text += "; the images are inverted; `invert=no` leaves them"
    else:
        return dark
    warnings.warn(f"{evidence} standard errors{text}", stacklevel=4)
    return dark
