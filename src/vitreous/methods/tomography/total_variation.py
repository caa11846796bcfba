r"""Tomography from sparsely scanned tilt series by total variation.

.. math::

    \min_{c \ge 0} \tfrac12 \|S H c - b\|^2 + \lambda \sum_n \|(\nabla c)_n\|_2,

S the scan masks and H the projections of one volume tilted about y. :math:`H^T S H` is no
convolution where S is random, but its mean over masks is, which preconditions it.

Source: L. Donati, PhD thesis, EPFL 2020, equation (3.6), whose :math:`\lambda` is twice ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.optim.admm import Admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import StrengthRange, StrengthSearch
from vitreous.optim.least_squares import LeastSquares, Normal, nearest_circulant
from vitreous.optim.loop import Callback
from vitreous.optim.priors import TotalVariation
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.tomography.projector import TiltProjector
from vitreous.physics.tomography.scan import ScanMask

SIMULATION_WINDOW = KaiserBessel(2, 10.83, 2.0)
WINDOW = KaiserBessel(2, 19.0, 4.0)
"""Basis of reconstructions: another one than that of simulations, as in the thesis."""
FULL_SHARE = 0.9  # of its pixels: an image with more counts as fully scanned
_STIFFNESS = 30.0  # of the constraints at the start, in mean eigenvalues of H^T S H
_SEARCH_ITERATIONS = 15
_GUESS = 3e-3  # start of the search, of the strength that leaves nothing of the map


@dataclass(frozen=True)
class Scan:
    """A tilt series, of which pixels may be missing.

    Raises:
        ValueError: shapes that do not agree.
    """

    images: Tensor  # ``(tilts, y, x)``, 0 where not scanned
    tilts_degrees: Tensor  # ``(tilts,)``
    scanned: Tensor  # bool, shape of the images

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.images.shape != self.scanned.shape:
            raise ValueError(
                f"images {tuple(self.images.shape)} and mask {tuple(self.scanned.shape)} must "
                "both be (tilts, y, x)"
            )
        if len(self.tilts_degrees) != len(self.images):
            raise ValueError(f"{len(self.tilts_degrees)} angles for {len(self.images)} images")

    @property
    def shares(self) -> Tensor:
        """Share of the pixels of each image that were scanned, float64 ``(tilts,)``."""
        return self.scanned.double().mean((1, 2))

    def __getitem__(self, tilts: Tensor) -> "Scan":
        """Select tilts by index or mask."""
        return Scan(self.images[tilts], self.tilts_degrees[tilts], self.scanned[tilts])

    def compact(self) -> "Scan":
        """Leave out tilts of which nothing was scanned."""
        return self[self.shares > 0]

    def only(self, pixels: Tensor) -> "Scan":
        """Keep only those scanned pixels that are also in ``pixels``."""
        scanned = self.scanned & pixels
        return Scan(self.images * scanned, self.tilts_degrees, scanned)

    def busiest(self, count: int) -> "Scan":
        """Select the ``count`` successive slices with the strongest contrast."""
        height = self.images.shape[1]
        if count >= height:
            return self
        n = self.scanned.sum((0, 2)).clamp_min(1)
        mean = self.images.sum((0, 2)) / n
        energy = ((self.images - mean[:, None]) * self.scanned).square().sum((0, 2))
        sums = torch.cat([energy.new_zeros(1), energy.cumsum(0)])
        first = int((sums[count:] - sums[:-count]).argmax())
        part = slice(first, first + count)
        return Scan(self.images[:, part], self.tilts_degrees, self.scanned[:, part])

    def halves(self, generator: torch.Generator) -> "tuple[Scan, Scan]":
        """Split the measurements into independent halves.

        Every other tilt where images are fully scanned; random halves of the scanned pixels where
        they are not, as few tilts less would cost more there than few pixels less.

        Raises:
            ValueError: a single fully scanned image.
        """
        if bool((self.shares > FULL_SHARE).all()):
            if len(self.images) < 2:
                raise ValueError("one fully scanned image has no halves; give more tilts")
            order = torch.argsort(self.tilts_degrees)
            return self[order[0::2]], self[order[1::2]]
        heads = torch.rand(self.images.shape, generator=generator).to(self.images.device) < 0.5
        return self.only(heads), self.only(~heads)

    def projector(self, depth: int, window: KaiserBessel = WINDOW) -> TiltProjector:
        """Return H, for volumes ``depth`` voxels thick."""
        shape = (depth, self.images.shape[1], self.images.shape[2])
        return TiltProjector(self.tilts_degrees, shape, window)

    def equations(self, depth: int, window: KaiserBessel = WINDOW) -> LeastSquares:
        """Return H^T S H, H^T b and |b|^2."""
        projector = self.projector(depth, window)
        squares = float(torch.sum(self.images.square(), dtype=torch.float64))
        normal = ScannedNormal(projector, self.scanned)
        return LeastSquares(normal, projector.adjoint(self.images), squares)


class ScannedNormal(Normal):
    """H^T S H, and the circulant matrix nearest to its mean over masks of the same doses.

    Args:
        projector: H.
        scanned: the diagonal of S, bool ``(tilts, y, x)``.
    """

    def __init__(self, projector: TiltProjector, scanned: Tensor) -> None:
        super().__init__(ScanMask(scanned) @ projector)
        depth, _, n = projector.domain_shape
        kernel = projector.normal_kernel(scanned.double().mean((1, 2)))
        self.circulant = nearest_circulant(kernel, (depth, 1, n))


def tomography_config(
    equations: LeastSquares, *, iterations: int = 60, tolerance: float = 1e-3
) -> AdmmConfig:
    """Return the settings for (3.6): one preconditioned conjugate-gradient step an iteration."""
    operator = equations.operator
    assert isinstance(operator, ScannedNormal)
    return AdmmConfig(
        linear_step="cg",
        iterations=iterations,
        cg_iterations=1,
        cg_tolerance=0.0,
        rho=_STIFFNESS * float(operator.circulant.mean()),
        tolerance=tolerance,
    )


def total_variation_solver(
    scan: Scan,
    depth: int,
    strength: float,
    *,
    window: KaiserBessel = WINDOW,
    iterations: int = 60,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> Admm:
    """Return the solver for coefficients that minimise (3.6), ``depth`` voxels thick.

    ``expand_slices(result.volume, window)`` of its result is the map. It starts from coefficients
    ``(z, y, x)``, zeros by default.
    """
    equations = scan.compact().equations(depth, window)
    config = tomography_config(equations, iterations=iterations, tolerance=tolerance)
    return Admm(equations, TotalVariation(strength) if strength else None, config, start=start)


def strength_search(
    halves: tuple[Scan, Scan],
    depth: int,
    *,
    judges: tuple[Scan, Scan] | None = None,
    window: KaiserBessel = WINDOW,
    callbacks: Iterable[Callback] = (),
) -> StrengthSearch:
    """Return the solver for the strength whose map of each half predicts the other half best.

    A few slices will do: strengths hold for any number. ``judges`` are the measurements to predict,
    where those of the halves are not the original ones. Every ADMM iteration calls the callbacks.
    """
    equations = _equations(halves, depth, window)
    prior = TotalVariation(0.0)
    return StrengthSearch(
        equations,
        prior,
        tomography_config(equations[0], iterations=_SEARCH_ITERATIONS, tolerance=1e-2),
        judges=None if judges is None else _equations(judges, depth, window),
        among=StrengthRange(_GUESS * prior.strongest(equations[0])),
        callbacks=callbacks,
    )


def _equations(
    halves: tuple[Scan, Scan], depth: int, window: KaiserBessel
) -> tuple[LeastSquares, LeastSquares]:
    first, second = (half.compact().equations(depth, window) for half in halves)
    return first, second
