"""Settings of model-based reconstruction."""

from itertools import pairwise
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from vitreous.optim.admm_config import STRICT, AdmmConfig
from vitreous.optim.priors import WEIGHTED, WeightedPrior
from vitreous.physics.kaiser_bessel.window import KaiserBessel


@validated(frozen=True, config=STRICT)
class ModelBasedConfig:
    """Prior, basis and number of iterations.

    Args:
        regulariser: "tv" (total variation), "wavelet" (sparse wavelet coefficients), "l2" (half the
            squared norm) or "none"; see :mod:`vitreous.optim.priors`.
        strength: lambda of all images at the last scale; None: by cross-validation.
        scales: spacings of the basis in pixels, from coarse to fine; coarse ones serve to find the
            strength, and are left out where it is given.
        nonnegative: whether coefficients below 0 are forbidden.
        window: order m, taper alpha and support a of the basis.
        iterations, tolerance: of ADMM, for each of the last maps.

    >>> ModelBasedConfig("wavelet", scales=(4, 2, 1)).stages
    (4, 2, 1)
    """

    regulariser: Literal["tv", "wavelet", "l2", "none"] = "tv"
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

    def prior(self, strength: float) -> WeightedPrior | None:
        """Return the prior of a strength; None where there is none."""
        if self.regulariser == "none" or strength == 0:
            return None
        return WEIGHTED[self.regulariser](strength)

    @property
    def solver(self) -> AdmmConfig:
        """Settings of one solution."""
        return AdmmConfig(
            nonnegative=self.nonnegative,
            iterations=self.iterations,
            cg_iterations=1,  # preconditioned: a second one saves no iterations
            tolerance=self.tolerance,
        )

    @property
    def searched(self) -> bool:
        """Whether the strength is chosen by cross-validation."""
        return self.strength is None and self.regulariser != "none"

    @property
    def stages(self) -> tuple[int, ...]:
        """The scales to go through."""
        return self.scales if self.searched else self.scales[-1:]

    @property
    def basis(self) -> KaiserBessel:
        """The window."""
        return KaiserBessel(*self.window)
