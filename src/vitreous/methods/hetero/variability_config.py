"""Settings of linear variability."""

from pydantic import Field
from pydantic.dataclasses import dataclass

from vitreous.optim.admm_config import STRICT


@dataclass(frozen=True, config=STRICT)
class LinearVariabilityConfig:
    """Settings of :class:`~vitreous.methods.hetero.linear_variability.LinearVariability`.

    Args:
        components: d. K clearly different structures need K - 1, a motion by more than its own
            width two or three; components too many shrink to zero. 4 to 6 suffice for most data.
        passes: over all images; each is one step.
        radius: highest shell compared, in cycles per box, at most the images' Nyquist frequency.
            Structures differ at low resolution, and time and memory grow with its square and cube.
        start_radius: highest shell of the first pass; it grows to ``radius`` in half of the passes.
        contrast: whether every image has a contrast of its own; otherwise the components explain
            differences of contrast first.
        contrast_spread: standard deviation of the contrasts, whose mean is 1.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
    """

    components: int = Field(default=5, ge=1)
    passes: int = Field(default=20, ge=2)
    radius: int = Field(default=16, ge=3)
    start_radius: int = Field(default=5, ge=2)
    contrast: bool = True
    contrast_spread: float = Field(default=0.15, gt=0)
    diameter_angstrom: float | None = Field(default=None, gt=0)
