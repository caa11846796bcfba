"""Options of ``vitreous reconstruct``."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import ParticleJobOptions

_OWN = {  # options that only one kind of method has
    "direct": ("wiener",),
    "regularised": ("scale", "strength", "allow_negative", "iterations"),
}


class ReconstructOptions(ParticleJobOptions):
    """Options of :func:`vitreous.jobs.reconstruct.run.reconstruct`."""

    method: Literal["direct", "tv", "wavelet", "l2"] = Field(
        "direct",
        description="`direct`: weighted Fourier gridding, in one pass. The others solve "
        "regularised least squares: `tv` (total variation), for few or noisy particles; `wavelet` "
        "(l1 norm of wavelet coefficients); `l2` (squared norm).",
    )
    wiener: Annotated[float, Field(ge=0)] | Literal["auto", "none"] = Field(
        "auto",
        description="Regularisation of map.mrc: `auto` (by the FSC between the half maps), `none`, "
        "or the noise's power over the signal's, a number. The half maps have none.",
    )
    scale: str = Field(
        "2..1",
        description="Spacing of the basis in pixels, 1 to 4. `2` solves at that scale; `4..1` or "
        "`4,2,1` go from coarse to fine. Coarse scales are fast and bear wrong angles better, but "
        "end at 2 s pixels.",
    )
    strength: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Weight of the regulariser for all particles: `auto` (the one whose map of "
        "either half set fits the other's images best) or a number; a run prints the one it took.",
    )
    allow_negative: bool = Field(False, description="Do not forbid densities below the solvent's.")
    iterations: int = Field(
        100,
        ge=1,
        description="Most iterations for each of the three maps; they end earlier once settled.",
    )

    @property
    def regularised(self) -> bool:
        """Whether the method solves regularised least squares."""
        return self.method != "direct"

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales to go through, from coarse to fine.

        Raises:
            UsageError: `scale` is not 1 to 4, from coarse to fine.
        """
        first, dots, last = self.scale.partition("..")
        try:
            if dots:
                scales = tuple(range(int(first), int(last) - 1, -1))
            else:
                scales = tuple(int(part) for part in self.scale.split(","))
        except ValueError:
            scales = ()
        falling = all(a > b for a, b in pairwise(scales))
        if not scales or not falling or scales[0] > 4 or scales[-1] < 1:
            raise UsageError(
                f"`scale` {self.scale}: give 1 to 4, from coarse to fine, such as 2, 4..1, 4,2,1"
            )
        return scales

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.scales
        self.refuse(self._without_meaning(), f"has no meaning for `method` {self.method}")
        return self

    def _without_meaning(self) -> set[str]:
        return set(_OWN["direct" if self.regularised else "regularised"])

    def recorded(self) -> dict[str, Any]:
        """Return what determines the result, without what the method does not have."""
        without = self._without_meaning()
        return {name: value for name, value in super().recorded().items() if name not in without}
