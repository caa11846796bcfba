"""Options of ``classify2d``."""

from typing import Self

from pydantic import Field, model_validator

from vitreous.jobs.hetero.options import LatentModelOptions

_LATENT_ONLY = (
    *("latent_dimensions", "shift_distribution", "min_cluster_size", "min_samples", "space"),
)


class Classify2dOptions(LatentModelOptions):
    """Options of ``classify2d``."""

    classes: int | None = Field(
        default=None,
        ge=1,
        description="Most class averages. By default 50, or one for every 100 particles; with "
        "`align=False` 16 in each cluster.",
    )
    align: bool = Field(
        default=True,
        description="Find classes together with the in-plane rotation and shift of every particle. "
        "`align=False`: by the latents of a VAE-GAN, which separate views less well.",
    )
    shift_range_angstrom: float | None = Field(
        default=None,
        ge=0,
        description="How far particles may be off centre in Å; by default 8 % of the box.",
    )

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        """Refuse options of the model that is not used."""
        if self.align:
            self.refuse(_LATENT_ONLY, "needs `align=False`")
        return self
