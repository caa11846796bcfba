"""Settings of regularised least squares by ADMM."""

from typing import Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class AdmmConfig:
    """How a problem is solved.

    Args:
        nonnegative: whether densities below 0 are forbidden.
        linear_step: how x is updated: "cg" by a few conjugate gradients (algorithms 1 and 2),
            "majorised" by one step with a circulant matrix above H^T H (algorithm 6),
            "padded" by giving the padded volume a variable of its own (needs a convolution);
            "auto" is "padded" where that is possible and its matrix nearly positive, else "cg"; a
            circulant H^T H is divided by.
        iterations: most iterations.
        cg_iterations, cg_tolerance: most inner steps of "cg", and the relative residual, as a share
            of that at the start, at which they end.
        rho: penalty parameter of every constraint at the start; None: the mean eigenvalue of H^T H.
        adapt_rho: balance primal and dual residual of each constraint, over the first half of the
            iterations.
        tolerance: stop when both relative residuals and the objective's relative change are below.

    >>> AdmmConfig(iterations=50).linear_step
    'auto'
    """

    nonnegative: bool = True
    linear_step: Literal["auto", "cg", "majorised", "padded"] = "auto"
    iterations: PositiveInt = 200
    cg_iterations: PositiveInt = 2
    cg_tolerance: NonNegativeFloat = 0.1
    rho: PositiveFloat | None = None
    adapt_rho: bool = True
    tolerance: NonNegativeFloat = 1e-4
