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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import radius_grid
from vitreous.core.images import read_ahead
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.admm import Admm
from vitreous.optim.choose_strength import StrengthRange, StrengthSearch
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Stateful, Stats
from vitreous.optim.priors import WEIGHTED
from vitreous.optim.prox import project
from vitreous.physics.kaiser_bessel.normal_equations import (
    ConvolutionOperator,
    NormalAccumulator,
    NormalEquations,
)
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size

_SEARCH_ITERATIONS = 30
_EDGE_PX = 2.0  # of the inscribed sphere that is left free

HalfEquations = tuple[NormalEquations, NormalEquations]


@dataclass(frozen=True)
class ScaleSearch:
    """The strength of one scale."""

    scale: int  # s
    strength: float  # lambda of half the images
    tried: tuple[tuple[float, float], ...]  # strengths and scores of the cross-validation


@dataclass(frozen=True)
class ModelBasedMaps:
    """Maps of a finished run."""

    # of either half of the images and of all, ``(n, n, n)``
    half1: Tensor
    half2: Tensor
    average: Tensor
    coefficients: tuple[Tensor, ...]  # of the three maps, ``(N, N, N)``
    strength: float  # lambda of all images
    searches: tuple[ScaleSearch, ...]  # of every scale where the strength was looked for
    converged: bool  # whether the three solutions met the stopping rule


@torch.no_grad()
def accumulate(
    particles: PosedParticles,
    window: KaiserBessel,
    scale: int = 1,
    *,
    box_size: int | None = None,
    symmetry: str = "C1",
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HalfEquations:
    """Sum the normal equations of both half sets at one scale, in one pass over the images.

    ``window`` and ``scale`` are the basis; other arguments are as in
    :func:`vitreous.methods.reconstruct.gridding.accumulate`.

    Raises:
        ValueError: lengths that do not agree, or a box larger than the images'.
    """
    device = device or torch.device("cpu")
    n = particles.checked_box(box_size)
    images, shift, optics = particles.images, particles.shift_angstrom, particles.optics
    pixel = particles.pixel_size_angstrom * images.box_size / n
    sums = [NormalAccumulator(n, window, scale, symmetry=symmetry, device=device) for _ in (1, 2)]
    for rows, read in read_ahead(images, torch.arange(len(images))):
        # grey values of a map whose voxels are larger: fewer of them are summed by a projection
        small = fourier_resize(read.to(device, torch.float32), n, 2) * (n / images.box_size)
        for half, half_sums in zip((1, 2), sums, strict=True):
            in_batch = torch.nonzero(particles.half_set[rows] == half).flatten()
            if len(in_batch):
                chosen = rows[in_batch]
                half_sums.insert(
                    small[in_batch.to(device)],
                    particles.rotations[chosen].to(device),
                    None if shift is None else shift[chosen].to(device),
                    None if optics is None else optics[chosen].to(device),
                    pixel,
                )
        if progress is not None:
            progress(int(rows[-1]) + 1, len(images))
    first, second = sums
    return first.equations(), second.equations()


def support(n: int, scale: int, radius_px: float | None = None) -> Tensor:
    """Return the sphere in which coefficients may differ from 0, bool ``(N, N, N)``.

    ``n`` is the edge of the images and ``radius_px`` that of the sphere, both in pixels; by default
    it is all but inscribed in the box, as what is farther out leaves some of the images.
    """
    radius = n / 2 - _EDGE_PX if radius_px is None else radius_px
    return radius_grid(lattice_size(n, scale), 3) <= radius / scale


class ModelBased(Stateful):
    """Solver for the maps of both halves and of all images.

    One step tries one strength of the cross-validation or does one ADMM iteration of a map. The
    first step of a scale sums the images first.

    Args:
        sums: called with each scale and ``progress``, returns the normal equations of half 1 and
            half 2, such as ``partial(accumulate, particles, config.basis)``.
        n: edge of the images in pixels.
        config: prior, basis and number of iterations.
        radius_px: see :func:`support`.
        device: of the sums; the CPU by default.
        report_progress: called with the share that is done, often within long steps.

    Attributes:
        label: of the last step: the scale of a tried strength, or the number of the iteration and
            the half of a map.
    """

    STATE = ("_part", "_scale", "_converged")

    def __init__(
        self,
        sums: Callable[..., HalfEquations],
        n: int,
        config: ModelBasedConfig,
        *,
        radius_px: float | None = None,
        device: torch.device | None = None,
        report_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.config, self.n = config, n
        self._sums, self._radius_px = sums, radius_px
        self._device = device or torch.device("cpu")
        self._report_progress = report_progress
        self._part = 0  # scales to search, then three maps
        self._scale = config.stages[0]
        self._equations: HalfEquations | None = None
        self._halves: tuple[Tensor, Tensor] | None = None  # coefficients of the last search
        self._searches: list[ScaleSearch] = []
        self._maps: list[Tensor] = []
        self._converged = True
        self._solver: StrengthSearch | Admm | None = None
        self.label: dict[str, int] = {}  # one object, so that a history may hold on to it

    @property
    def _parts(self) -> int:
        return self._scales + 3

    @property
    def _scales(self) -> int:
        return len(self.config.stages) if self.config.searched else 0

    @property
    def done(self) -> bool:
        """Whether all three maps are solved."""
        return self._part == self._parts

    @property
    def progress(self) -> float:
        """Share of scales and maps that are done."""
        part = 0.0 if self._solver is None else self._solver.progress
        if not self.done and self._part <= max(0, self._scales - 1):  # begins with a pass
            part = 0.5 * (self._equations is not None) + 0.5 * part
        return (self._part + part) / self._parts

    @torch.no_grad()
    def step(self) -> Stats:
        """Try a strength ("strength", "score"), or do an iteration of a map (as ADMM's)."""
        if self._solver is None:
            self._solver = self._begin()
        solver = self._solver
        stats = solver.step()
        self.label.clear()
        if isinstance(solver, StrengthSearch):
            self.label["scale"] = self._scale
        else:
            half = self._part - self._scales + 1
            self.label |= {"step": len(solver.history) - 1, **({"half": half} if half < 3 else {})}
        if solver.done:
            self._end(solver)
        return stats

    def result(self) -> ModelBasedMaps:
        """Return the maps.

        Raises:
            ValueError: the run is not done.
        """
        if not self.done:
            raise ValueError("the maps are not solved yet; call step until the solver is done")
        first, second, third = (
            self.config.basis.expand(one, self.n, self._scale) for one in self._maps
        )
        return ModelBasedMaps(
            first,
            second,
            third,
            coefficients=tuple(self._maps),
            strength=self._strengths()[1],
            searches=tuple(self._searches),
            converged=self._converged,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on bit for bit."""
        sums = [
            {
                "spectrum": half.operator.spectrum,
                "diagonal": half.operator.diagonal,
                "right_hand_side": half.right_hand_side,
                "images": half.images,
                "sum_of_squares": half.sum_of_squares,
            }
            for half in self._equations or ()
        ]
        return super().state_dict() | {
            "equations": sums,
            "halves": self._halves,
            "searches": [vars(one) for one in self._searches],
            "maps": list(self._maps),
            "solver": None if self._solver is None else self._solver.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the :meth:`state_dict` of a run with the same images and settings."""
        super().load_state_dict(state)
        saved = [_restored(half, self._device) for half in state["equations"]]
        self._equations = (saved[0], saved[1]) if saved else None
        halves = state["halves"]
        self._halves = halves and (halves[0].to(self._device), halves[1].to(self._device))
        self._searches = [
            ScaleSearch(one["scale"], one["strength"], tuple((a, b) for a, b in one["tried"]))
            for one in state["searches"]
        ]
        self._maps = [one.to(self._device) for one in state["maps"]]
        self._solver = None
        if state["solver"] is not None:
            self._solver = self._begin()
            self._solver.load_state_dict(state["solver"])

    def _begin(self) -> StrengthSearch | Admm:
        """Make the solver of the next part, with the sums of its scale."""
        if self._equations is None:
            part, parts, report = self._part, self._parts, self._report_progress

            def progress(images: int, total: int) -> None:  # half of a part
                report((part + 0.5 * images / total) / parts)

            self._equations = self._sums(self._scale, progress=progress)
        make = self._search if self._part < self._scales else self._map
        return make(self._equations)

    def _end(self, solver: StrengthSearch | Admm) -> None:
        """Keep the result of a part, and go on to the next."""
        self._solver = None
        self._part += 1
        if isinstance(solver, Admm):
            solution = solver.result()
            self._maps.append(solution.volume)
            self._converged &= solution.converged
            return
        choice = solver.result()
        self._searches.append(ScaleSearch(self._scale, choice.strength, choice.tried))
        self._halves = choice.volumes
        if self._part < self._scales:
            coarse, self._scale = self._scale, self.config.stages[self._part]
            self._halves = self._resampled(self._halves, coarse)
            self._equations = None

    def _mask(self, like: Tensor) -> Tensor:
        return support(self.n, self._scale, self._radius_px).to(like.device)

    def _search(self, equations: HalfEquations) -> StrengthSearch:
        """Return the search of this scale, from the volumes and the strength of the coarser one."""
        first, second = map(LeastSquares.of_images, equations)
        zeros, config = torch.zeros_like(first.right_hand_side), self.config
        prior, guess = WEIGHTED[config.regulariser](0.0), None
        if self._searches:
            coarser = self._searches[-1]
            guess = coarser.strength * (self._scale / coarser.scale) ** prior.power_of_scale
        return StrengthSearch(
            (first, second),
            prior,
            replace(config.solver, iterations=min(config.iterations, _SEARCH_ITERATIONS)),
            mask=self._mask(zeros),
            start=self._halves or (zeros, zeros),
            among=StrengthRange(guess),
            callbacks=(lambda step, stats: self._report_progress(self.progress),),
        )

    def _map(self, equations: HalfEquations) -> Admm:
        """Return the solver of half 1, half 2 or all images, at the last scale."""
        which = self._part - self._scales
        zeros = torch.zeros_like(equations[0].right_hand_side)
        starts = self._halves or (zeros, zeros)
        start = starts[which] if which < 2 else (starts[0] + starts[1]) / 2
        sums = equations[which] if which < 2 else equations[0] + equations[1]
        problem = LeastSquares.of_images(sums)
        prior = self.config.prior(self._strengths()[which == 2])
        return Admm(problem, prior, self.config.solver, start=start, mask=self._mask(zeros))

    def _strengths(self) -> tuple[float, float]:
        """Return lambda of half the images and of all."""
        weighted = WEIGHTED.get(self.config.regulariser)
        growth = 2**0.5 if weighted is not None and weighted.is_norm else 1.0
        if self.config.strength is not None:
            return self.config.strength / growth, self.config.strength
        of_half = self._searches[-1].strength if self._searches else 0.0
        return of_half, growth * of_half

    def _resampled(self, halves: tuple[Tensor, Tensor], coarse: int) -> tuple[Tensor, Tensor]:
        """Return the volumes of a coarser scale as coefficients at this one."""
        basis, nonnegative = self.config.basis, self.config.nonnegative
        first, second = (
            project(
                basis.analyse(basis.expand(half, self.n, coarse), self._scale),
                nonnegative=nonnegative,
            )
            for half in halves
        )
        return first, second


def _restored(saved: dict[str, Any], device: torch.device) -> NormalEquations:
    rhs = saved["right_hand_side"].to(device)
    spectrum, diagonal = saved["spectrum"].to(device), float(saved["diagonal"])
    operator = ConvolutionOperator.of_spectrum(spectrum, len(rhs), diagonal)
    return NormalEquations(operator, rhs, int(saved["images"]), float(saved["sum_of_squares"]))
