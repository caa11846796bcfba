r"""Model-based reconstruction from images with known poses: equation (2.10), coarse to fine.

.. math::

    \hat c_s = \arg\min_c \tfrac12 \|H_s c - b\|^2 + \lambda R(L c)
    \quad \text{s.t. } c \ge 0, \text{ and } c = 0 \text{ outside a sphere},

for half 1, half 2 and all images. One pass over the images for every scale s sums
:math:`H_s^T H_s` and :math:`H_s^T b` of both halves; after it the images are not needed. The
strength :math:`\lambda` is the one whose map of either half fits the other half's images best. From
a coarse scale its volumes, resampled, and its strength, converted, start the next finer one.

Source: L. Donati, PhD thesis, EPFL 2020, equations (2.10), (4.9) and (4.42), section 4.1.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.core.images import ImageSource, check_image_rows, read_ahead
from vitreous.core.params import Optics
from vitreous.optim.admm import AdmmResult, admm
from vitreous.optim.admm_config import STRICT, AdmmConfig
from vitreous.optim.choose_strength import Told, cross_validated
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Callback
from vitreous.optim.prox import project
from vitreous.physics.kaiser_bessel.normal_equations import NormalAccumulator, NormalEquations
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size

# R of the same volume on a lattice of spacing s goes with s to the power of minus this.
_POWER_OF_SCALE = {"tv": 2.0, "wavelet": 1.5, "l2": 3.0}
_NORMS = ("tv", "wavelet")  # whose strength grows with the root of the number of images
_SEARCH_ITERATIONS = 30
_EDGE_PX = 2.0  # of the inscribed sphere that is left free


@validated(frozen=True, config=STRICT)
class ModelBasedConfig:
    """The prior, the basis, and how long to work.

    Args:
        regulariser: see :class:`~vitreous.optim.admm_config.AdmmConfig`.
        strength: lambda of all images at the last scale; None: by cross-validation.
        scales: spacings of the basis in pixels, from coarse to fine; coarse ones serve to find the
            strength, and are left out where it is given.
        nonnegative: whether coefficients below 0 are forbidden.
        window: order m, taper alpha and support a of the basis.
        iterations, tolerance: of ADMM, for each of the last maps.
    """

    regulariser: str = "tv"
    strength: float | None = Field(default=None, ge=0)
    scales: tuple[int, ...] = Field(default=(2, 1), min_length=1)
    nonnegative: bool = True
    window: tuple[int, float, float] = (2, 10.83, 2.0)
    iterations: int = Field(default=100, ge=1)
    tolerance: float = Field(default=1e-3, ge=0)

    def __post_init__(self) -> None:
        """Raise ValueError for scales that do not go from coarse to fine."""
        if self.scales[-1] < 1 or any(a <= b for a, b in pairwise(self.scales)):
            raise ValueError(f"scales must fall and be at least 1, got {self.scales}")
        self.admm(0.0)

    def admm(self, strength: float) -> AdmmConfig:
        """Settings of one solution."""
        return AdmmConfig(
            regulariser=self.regulariser,  # type: ignore[arg-type]  # checked by pydantic
            strength=strength,
            nonnegative=self.nonnegative,
            iterations=self.iterations,
            cg_iterations=1,  # preconditioned: a second one saves no iterations
            tolerance=self.tolerance,
        )

    @property
    def stages(self) -> tuple[int, ...]:
        """The scales to go through."""
        searched = self.strength is None and self.regulariser != "none"
        return self.scales if searched else self.scales[-1:]

    @property
    def basis(self) -> KaiserBessel:
        """The window."""
        return KaiserBessel(*self.window)


@dataclass(frozen=True)
class ModelBasedStage:
    """What one scale has found.

    Args:
        scale: s.
        strength: lambda of half the images; None where it was not looked for.
        tried: strengths and scores of the cross-validation.
        halves: the solutions of half 1 and half 2, coefficients ``(N, N, N)``.
    """

    scale: int
    strength: float | None
    tried: tuple[tuple[float, float], ...]
    halves: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelBasedMaps:
    """The end of a run.

    Args:
        half1, half2, average: of either half of the images and of all, ``(n, n, n)``.
        strength: lambda of all images.
        solutions: of ADMM, for half 1, half 2 and all.
    """

    half1: Tensor
    half2: Tensor
    average: Tensor
    strength: float
    solutions: tuple[AdmmResult, AdmmResult, AdmmResult]


@torch.no_grad()
def accumulate(
    images: ImageSource,
    rotations: Tensor,
    shift_angstrom: Tensor | None,
    optics: Optics | None,
    pixel_size_angstrom: float,
    half: Tensor,
    *,
    window: KaiserBessel,
    scale: int = 1,
    box_size: int | None = None,
    symmetry: str = "C1",
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NormalEquations, NormalEquations]:
    """The normal equations of both half sets at one scale, in one pass over the images.

    Args:
        images: protein positive; read in order, the next batch while one is worked on.
        rotations: ``(b, 3, 3)``, volume to particle coordinates.
        shift_angstrom: ``(b, 2)`` displacement (x, y) of each particle in its image; None for none.
        optics: CTF of each image; None for images without.
        pixel_size_angstrom: of the images as read, Å.
        half: long ``(b,)`` of 1 and 2; images with another number are left out.
        window, scale: the basis.
        box_size: crop the images to this many pixels in Fourier space; their own by default.
        symmetry: name of the point group, in RELION's axes.
        device: where to sum; the CPU by default.
        progress: told images done and images in all, after each batch.

    Raises:
        ValueError: lengths that do not agree, or a box larger than the images'.
    """
    device = device or torch.device("cpu")
    n = images.box_size if box_size is None else box_size
    check_image_rows(images, rotations, shift_angstrom, optics, half, n)
    pixel = pixel_size_angstrom * images.box_size / n
    sums = [NormalAccumulator(n, window, scale, symmetry=symmetry, device=device) for _ in (1, 2)]
    for rows, read in read_ahead(images, torch.arange(len(images))):
        # grey values of a map whose voxels are larger: fewer of them are summed by a projection
        small = fourier_resize(read.to(device, torch.float32), n, 2) * (n / images.box_size)
        for which, grown in zip((1, 2), sums, strict=True):
            mine = torch.nonzero(half[rows] == which).flatten()
            if len(mine):
                chosen = rows[mine]
                grown.insert(
                    small[mine.to(device)],
                    rotations[chosen].to(device),
                    None if shift_angstrom is None else shift_angstrom[chosen].to(device),
                    None if optics is None else optics[chosen].to(device),
                    pixel,
                )
        if progress is not None:
            progress(int(rows[-1]) + 1, len(images))
    first, second = sums
    return first.equations(), second.equations()


def support(n: int, scale: int, radius_px: float | None = None) -> Tensor:
    """Where coefficients may differ from 0: a sphere, bool ``(N, N, N)``.

    Args:
        n: edge of the images in pixels.
        scale: s.
        radius_px: of the sphere in pixels; by default it is all but inscribed in the box, as what
            is farther out leaves some of the images.
    """
    radius = n / 2 - _EDGE_PX if radius_px is None else radius_px
    return radius_grid(lattice_size(n, scale), 3) <= radius / scale


def find_strength(
    equations: tuple[NormalEquations, NormalEquations],
    n: int,
    scale: int,
    config: ModelBasedConfig,
    *,
    coarser: ModelBasedStage | None = None,
    radius_px: float | None = None,
    notify: Told | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> ModelBasedStage:
    """Both halves' maps at a scale, and the strength with which they foretell each other's images.

    With a given strength, or without a regulariser, there is nothing to find; the halves are zeros.

    Args:
        equations: of half 1 and half 2 at this scale.
        n: edge of the images in pixels.
        scale: s.
        config: the prior.
        coarser: where to start from.
        radius_px: see :func:`support`.
        notify: told every strength that was tried, and its score.
        callbacks: told the numbers of every iteration.
    """
    problems = LeastSquares.of_images(equations[0]), LeastSquares.of_images(equations[1])
    zeros = torch.zeros_like(problems[0].right_hand_side)
    if config.strength is not None or config.regulariser == "none":
        return ModelBasedStage(scale, None, (), (zeros, zeros))
    start, around = (zeros, zeros), None
    if coarser is not None and coarser.strength is not None:
        start = _resampled(coarser, n, scale, config)
        power = _POWER_OF_SCALE[config.regulariser]
        around = coarser.strength * (scale / coarser.scale) ** power
    choice = cross_validated(
        *problems,
        replace(config.admm(0.0), iterations=min(config.iterations, _SEARCH_ITERATIONS)),
        mask=support(n, scale, radius_px).to(zeros.device),
        start=start,
        around=around,
        notify=notify,
        callbacks=callbacks,
    )
    first, second = choice.results
    return ModelBasedStage(scale, choice.strength, choice.tried, (first.volume, second.volume))


def _resampled(
    stage: ModelBasedStage, n: int, scale: int, config: ModelBasedConfig
) -> tuple[Tensor, Tensor]:
    """The halves of a coarser scale as coefficients at this one."""
    basis = config.basis
    first, second = (
        project(
            basis.analyse(basis.expand(half, n, stage.scale), scale),
            nonnegative=config.nonnegative,
        )
        for half in stage.halves
    )
    return first, second


def final_maps(
    equations: tuple[NormalEquations, NormalEquations],
    n: int,
    stage: ModelBasedStage,
    config: ModelBasedConfig,
    *,
    radius_px: float | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> ModelBasedMaps:
    """The maps of both halves and of all images, at the last scale.

    Args:
        equations: of half 1 and half 2 at the scale of ``stage``.
        n: edge of the images in pixels.
        stage: of the last scale.
        config: the prior.
        radius_px: see :func:`support`.
        callbacks: told the numbers of every iteration; the three solutions follow each other.
    """
    halves = LeastSquares.of_images(equations[0]), LeastSquares.of_images(equations[1])
    everything = LeastSquares.of_images(equations[0] + equations[1])
    growth = 2**0.5 if config.regulariser in _NORMS else 1.0
    if config.strength is not None:
        of_half, of_all = config.strength / growth, config.strength
    else:
        of_half = stage.strength or 0.0
        of_all = growth * of_half
    mean = (stage.halves[0] + stage.halves[1]) / 2
    mask = support(n, stage.scale, radius_px).to(mean.device)
    solutions = []
    tasks = ((halves[0], of_half), (halves[1], of_half), (everything, of_all))
    for (problem, strength), start in zip(tasks, (*stage.halves, mean), strict=True):
        settings = config.admm(strength)
        solutions.append(admm(problem, settings, start=start, mask=mask, callbacks=callbacks))
    maps = [config.basis.expand(one.volume, n, stage.scale) for one in solutions]
    first, second, third = solutions
    return ModelBasedMaps(maps[0], maps[1], maps[2], of_all, (first, second, third))
