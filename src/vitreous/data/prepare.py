r"""Preparation of particle images: window, resample, flip phases, invert contrast, normalise.

Every function is pure and batched. The order in :class:`Preparer` is fixed: phase flip (on the
extracted image), window, Fourier crop, inversion, ramp, normalisation. The normalisation is last,
so that its statistics are those of the pixels that are written.

Normalisations, with B the pixels outside a background circle of radius R, S those inside:

``ring``
    :math:`(I - \mathrm{mean}_B I) / \mathrm{std}_B I`, as RELION normalises: the background has
    mean 0 and deviation 1.
``signal``
    :math:`(I - \mathrm{mean}_B I) / (\mathrm{mean}_S I - \mathrm{mean}_B I)`: background mean 0,
    particle mean 1 (the thesis's equation 49).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.fourier import fourier_resize, irfft_centered, rfft_centered
from vitreous.core.grid import radius_grid
from vitreous.core.params import Optics
from vitreous.physics.ctf import ctf_half

Normalisation = Literal["ring", "signal", "none"]
DEFAULT_MASK_FRACTION = 0.75
SMALLEST_BOX = 8
_FLAT = 1e-5  # deviation over largest value that is zero in single precision
_APIX_TOLERANCE = 1e-3
_TRIM = 0.04
_FEWEST_RING_PIXELS = 16


def crop_window(images: Tensor, size: int) -> Tensor:
    """Crop images to the central ``size`` pixels; the origin ``n // 2`` becomes ``size // 2``.

    Raises:
        ValueError: ``size`` is larger than the images.

    >>> crop_window(torch.arange(25.0).reshape(5, 5), 3)[1, 1].item()
    12.0
    """
    n = images.shape[-1]
    if not 0 < size <= n:
        raise ValueError(f"a window of {size} px cannot be cut from {n} px")
    first = n // 2 - size // 2
    return images[..., first : first + size, first : first + size]


def flip_phases(images: Tensor, pixel_size_angstrom: float, optics: Optics) -> Tensor:
    """Multiply images by the sign of their CTF; frequencies where the CTF is zero stay as they are.

    >>> images = torch.randn(2, 8, 8)
    >>> twice = flip_phases(flip_phases(images, 2.0, Optics.uniform(2)), 2.0, Optics.uniform(2))
    >>> torch.allclose(twice, images, atol=1e-5)
    True
    """
    n = images.shape[-1]
    negative = ctf_half(n, pixel_size_angstrom, optics) < 0
    spectrum = rfft_centered(images, 2)
    return irfft_centered(torch.where(negative, -spectrum, spectrum), (n, n))


def remove_ramp(images: Tensor, background: Tensor) -> Tensor:
    """Subtract the least-squares plane of each image's pixels in ``background``, bool ``(n, n)``.

    >>> y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    >>> ramp = (2 + 3 * x - y)[None]
    >>> remove_ramp(ramp, torch.ones(6, 6, dtype=torch.bool)).abs().max().item() < 1e-4
    True
    """
    n = images.shape[-1]
    axis = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    weight = background.double()
    rows, columns = weight.sum(1), weight.sum(0)
    y, x, mixed = rows @ axis, columns @ axis, axis @ weight @ axis
    normal = torch.stack(
        [weight.sum(), y, x, y, rows @ axis**2, mixed, x, mixed, columns @ axis**2]
    ).reshape(3, 3)
    masked = torch.where(background, images, 0)
    rows, columns = masked.sum(-1, dtype=torch.float64), masked.sum(-2, dtype=torch.float64)
    moments = torch.stack([rows.sum(1), rows @ axis, columns @ axis])
    level, down, across = torch.linalg.solve(normal, moments).unsqueeze(-1).to(images.dtype)
    slope = axis.to(images.dtype)
    return images - (level + down * slope)[:, :, None] - (across * slope)[:, None, :]


def normalise_ring(images: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise each image to mean 0 and deviation 1 over its pixels in ``background``, ``(n, n)``.

    Also returns bool ``(b,)``: False where the background is flat; such images become 0.

    >>> images, sound = normalise_ring(torch.randn(1, 8, 8), torch.ones(8, 8, dtype=torch.bool))
    >>> bool(sound), round(images.std(correction=0).item(), 4)
    (True, 1.0)
    """
    pixels = images[:, background].double()
    mean = pixels.mean(1)
    return _affine(images, mean, pixels.std(1, correction=0))


def normalise_signal(images: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise each image to mean 0 over ``background`` and mean 1 over the other pixels.

    Also returns bool ``(b,)``: False where the two means are equal; such images become 0.

    >>> disc = (radius_grid(8, 2) <= 3).float()[None]
    >>> images, sound = normalise_signal(5 - 2 * disc, disc[0] == 0)
    >>> torch.allclose(images, disc)
    True
    """
    mean = images[:, background].double().mean(1)
    return _affine(images, mean, images[:, ~background].double().mean(1) - mean)


def _affine(images: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    largest = images.abs().amax((-2, -1)).double()
    sound = scale.abs() > _FLAT * largest
    factor = torch.where(sound, 1 / torch.where(sound, scale, 1.0), 0.0)
    scaled = (images - mean.to(images.dtype)[:, None, None]) * factor.to(images.dtype)[
        :, None, None
    ]
    return scaled, sound


@dataclass(frozen=True)
class Geometry:
    """Sizes before and after a preparation; ``window`` is the edge of the part cut first, px."""

    input_box: int
    input_pixel_angstrom: float
    window: int
    box_size: int

    @property
    def pixel_size_angstrom(self) -> float:
        """Pixel size of the output in Å: the window's width over its new number of pixels."""
        return self.window * self.input_pixel_angstrom / self.box_size

    @property
    def edge_angstrom(self) -> float:
        """Edge of the output in Å."""
        return self.window * self.input_pixel_angstrom


@dataclass(frozen=True)
class Preparation:
    """Recipe for particle images: size, grey values and phases.

    Args:
        box_size: edge to resample to, px; the window's by default.
        target_pixel_size_angstrom: pixel size to resample to, Å. Alone: the nearest even box, the
            window trimmed by up to 4 % where that gives the size to 0.1 %. With ``box_size``:
            the window that gives both.
        window: edge of the central part that is kept, px of the input; all by default.
        normalise: normalisation, as in the module's docstring.
        mask_diameter_angstrom: diameter of the background circle, Å; 75 % of the edge by default.
        ramp: subtract the background's least-squares plane before the normalisation.
        invert: multiply by -1.
        phase_flip: multiply the spectrum by the sign of the CTF.

    Raises:
        UsageError: sizes out of range, or all three of box, pixel size and window given.
    """

    box_size: int | None = None
    target_pixel_size_angstrom: float | None = None
    window: int | None = None
    normalise: Normalisation = "ring"
    mask_diameter_angstrom: float | None = None
    ramp: bool = False
    invert: bool = False
    phase_flip: bool = False

    def __post_init__(self) -> None:
        sizes = {"`box_size`": self.box_size, "`window`": self.window}
        for name, size in sizes.items():
            if size is not None and size < SMALLEST_BOX:
                raise UsageError(f"{name} {size}: must be at least {SMALLEST_BOX} px")
        lengths = {
            "`target_pixel_size_angstrom`": self.target_pixel_size_angstrom,
            "`mask_diameter_angstrom`": self.mask_diameter_angstrom,
        }
        for name, length in lengths.items():
            if length is not None and not (math.isfinite(length) and length > 0):
                raise UsageError(f"{name} {length}: must be positive and finite, in Å")
        if None not in (self.box_size, self.target_pixel_size_angstrom, self.window):
            raise UsageError(
                "`box_size`, `target_pixel_size_angstrom` and `window`: two of "
                "them fix the third; leave one out"
            )
        if self.normalise not in ("ring", "signal", "none"):
            raise UsageError(f"`normalise` {self.normalise}: choose ring, signal or none")

    def plan(self, box_size: int, pixel_size_angstrom: float) -> Geometry:
        """Return the sizes for images of ``box_size`` px of ``pixel_size_angstrom`` Å.

        Raises:
            UsageError: a window larger than the images, a box below 8 px, or a background circle
                that leaves no background or no particle.

        >>> Preparation(box_size=192).plan(384, 0.637).pixel_size_angstrom
        1.274
        >>> geometry = Preparation(target_pixel_size_angstrom=1.5).plan(384, 0.637)
        >>> geometry.window, geometry.box_size, round(geometry.pixel_size_angstrom, 4)
        (372, 158, 1.4998)
        """
        window, box = self._sizes(box_size, pixel_size_angstrom)
        if window > box_size:
            asked = f"`window` {window}" if self.window else f"`box_size` {box} at this pixel size"
            raise UsageError(
                f"{asked}: needs {window} px of the input, whose images have {box_size} px; "
                "choose less"
            )
        if box < SMALLEST_BOX:
            raise UsageError(
                f"`target_pixel_size_angstrom` {self.target_pixel_size_angstrom:g}: leaves a box "
                f"of {box} px; choose a smaller pixel"
            )
        geometry = Geometry(box_size, pixel_size_angstrom, window, box)
        self.background(geometry)
        return geometry

    def _sizes(self, n: int, pixel: float) -> tuple[int, int]:
        """Return window and box in pixels."""
        window = self.window or n
        if self.target_pixel_size_angstrom is None:
            return window, self.box_size or window
        ratio = self.target_pixel_size_angstrom / pixel
        if self.box_size is not None:
            parity = n % 2
            return 2 * round((self.box_size * ratio - parity) / 2) + parity, self.box_size
        shortest = window if self.window else math.ceil((1 - _TRIM) * n)
        best = (math.inf, window, window)
        for trial in range(window, shortest - 1, -2):
            box = 2 * round(trial / ratio / 2)
            error = abs(trial / box / ratio - 1) if box else math.inf
            best = min(best, (error, trial, box), key=lambda item: item[0])
            if error <= _APIX_TOLERANCE:
                break
        return best[1], best[2] if math.isfinite(best[0]) else 0

    def background(self, geometry: Geometry) -> Tensor:
        """Return the mask of pixels outside the background circle, bool ``(box_size, box_size)``.

        Raises:
            UsageError: too few pixels outside, or none inside.
        """
        diameter = self.mask_diameter_angstrom or DEFAULT_MASK_FRACTION * geometry.edge_angstrom
        distance = radius_grid(geometry.box_size, 2) * geometry.pixel_size_angstrom
        outside = distance > diameter / 2
        count = int(outside.sum())
        if self.normalise != "none" or self.ramp:
            if count < _FEWEST_RING_PIXELS:
                raise UsageError(
                    f"`mask_diameter_angstrom` {diameter:g}: leaves {count} background pixels in "
                    f"images of {geometry.edge_angstrom:.0f} Å; choose a smaller one"
                )
            if diameter < 2 * geometry.pixel_size_angstrom:
                raise UsageError(f"`mask_diameter_angstrom` {diameter:g}: smaller than two pixels")
        return outside


@dataclass(frozen=True)
class Preparer:
    """Preparation of images of one size, by a recipe and the sizes of :meth:`Preparation.plan`."""

    recipe: Preparation
    geometry: Geometry

    @cached_property
    def _background(self) -> Tensor:
        return self.recipe.background(self.geometry)

    def __call__(self, images: Tensor, optics: Optics | None = None) -> tuple[Tensor, Tensor]:
        """Prepare a batch of finite images ``(b, n, n)``; optics are needed to flip phases.

        Returns float32 ``(b, box_size, box_size)``, and bool ``(b,)``: False where the
        normalisation would divide by zero; such images are 0.

        Raises:
            ValueError: images of another size, or a phase flip without optics.
        """
        recipe, geometry = self.recipe, self.geometry
        if images.shape[-1] != geometry.input_box:
            raise ValueError(f"expected images of {geometry.input_box} px, got {images.shape[-1]}")
        # without its mean, which may be thousands of deviations, an image keeps single precision
        mean = images.mean((-2, -1), keepdim=True, dtype=torch.float64).float()
        x = images.float() - mean
        if recipe.phase_flip:
            if optics is None:
                raise ValueError("flipping phases needs the optics of the images")
            x = flip_phases(x, geometry.input_pixel_angstrom, optics)
        x = fourier_resize(crop_window(x, geometry.window), geometry.box_size, 2)
        if recipe.invert:
            x, mean = -x, -mean
        if recipe.ramp:
            x, mean = remove_ramp(x, self._background), torch.zeros_like(mean)
        if recipe.normalise == "ring":
            return normalise_ring(x, self._background)
        if recipe.normalise == "signal":
            return normalise_signal(x, self._background)
        return x + mean, torch.ones(len(x), dtype=torch.bool)


def describe(geometry: Geometry) -> str:
    """Return the sizes as one line of text.

    >>> from vitreous.data.prepare import Preparation
    >>> describe(Preparation(box_size=64, window=80).plan(100, 2.0))
    '100 px of 2 Å, window 80 px -> 64 px of 2.5 Å'
    """
    window = f", window {geometry.window} px" if geometry.window != geometry.input_box else ""
    before = f"{geometry.input_box} px of {geometry.input_pixel_angstrom:.5g} Å"
    return f"{before}{window} -> {geometry.box_size} px of {geometry.pixel_size_angstrom:.5g} Å"
