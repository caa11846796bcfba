"""Options of ``hetero run``, and those that ``classify2d`` shares with it."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.options import ParticleJobOptions

PASSES, ROUNDS = 4, 3  # by default
STAGES: dict[str, frozenset[str]] = {  # of a run, and the options that may change when it is redone
    "train": frozenset(),
    "embed": frozenset(),
    "cluster": frozenset(
        {"min_cluster_size", "min_samples", "space", "assign_all", "maps", "points"}
    ),
    "traverse": frozenset({"maps", "points"}),
}


class LatentModelOptions(ParticleJobOptions):
    """Options of a latent variable model and of the clusters of its latents."""

    CONTROL = frozenset({"settings_file"})
    latent_dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Number of latent coordinates of every particle: numbers that say how its "
        "structure differs from the mean.",
    )
    shift_distribution: str = Field(
        default="none",
        description="With `align=False`: how far particles are off centre, in Å: `none`, "
        "`triangular:WIDTH` (full width), `pixels:WIDTH` or `gaussian:SIGMA`.",
    )
    effort: float = Field(
        default=1.0, ge=1e-3, description="Multiplies the number of training steps."
    )
    settings_file: Path | None = Field(
        default=None,
        description="TOML file of the model's settings; the table [options.solver] of a run's "
        "config.toml lists them all, docs/hetero.md explains them.",
    )
    min_cluster_size: int | None = Field(
        default=None,
        ge=2,
        description="Smallest number of particles in a cluster; by default 5 % of all particles, "
        "at most 900.",
    )
    min_samples: int = Field(
        default=10, ge=1, description="Number of neighbours by which density is measured."
    )
    space: Literal["auto", "umap", "pca"] = Field(
        default="auto",
        description="Where clusters are searched: in two dimensions of `umap` (needs umap-learn) "
        "or in the principal components, `pca`; `auto`: UMAP where it is installed.",
    )


class HeteroOptions(LatentModelOptions):
    """Options of ``hetero run``."""

    CONTROL = frozenset({"stage", "classes"})
    align: bool = Field(
        default=True,
        description="Sort by poses, with a linear model: the table's poses, or, where it has none, "
        "those of one structure that all particles are first refined to, as `vitreous auto` does. "
        "`align=False`: a VAE-GAN (two neural networks trained against each other) that needs "
        "no poses; it is slow, and has not yet separated structures in our tests.",
    )
    assign_all: bool = Field(
        default=False, description="Assign particles that are in no cluster to the nearest one."
    )
    maps: Literal["auto", "model", "reconstruct", "none"] = Field(
        default="auto",
        description="Maps of clusters: `reconstruct`: from the particles of each by their poses; "
        "`model`: the model's at the centre of each; `none`; `auto`: reconstruct where there are "
        "poses.",
    )
    points: int = Field(
        default=5,
        ge=2,
        description="Number of maps along each cluster, from the 5th to the 95th percentile.",
    )
    classes: tuple[int, ...] = Field(
        default=(),
        description="Write maps along this class only; may be given several times. All by default.",
    )
    passes: int | None = Field(
        default=None,
        ge=1,
        description="Most passes. Between two of them the pose of every particle is searched under "
        "the maps of the clusters; they end when the clusters no longer change, or there is only "
        "one. By default 4 if the table has no poses or `rounds` is given, else 1.",
    )
    rounds: int | None = Field(
        default=None,
        ge=0,
        description="Most rounds of each search for poses between two passes; 3 by default. 0: one "
        "pass.",
    )
    stage: Literal["train", "embed", "cluster", "traverse"] | None = Field(
        default=None,
        description="`train`: end with the trained model. The others redo a part of the run in the "
        "folder: `embed` the latents of all particles, `cluster` the clusters and their maps, "
        "`traverse` the maps along each cluster. Options that are not given are those of the run.",
    )

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        """Refuse options that exclude each other."""
        if self.align and self.shift_distribution != "none":
            raise UsageError("`shift_distribution`: poses give the shifts; it needs `align=False`")
        for name, value, smallest in (("passes", self.passes, 2), ("rounds", self.rounds, 1)):
            if not self.align and value is not None and value >= smallest:
                raise UsageError(f"`{name}`: needs poses; leave out `align=False`")
        if not self.align and self.maps == "reconstruct":
            raise UsageError("`maps=reconstruct`: needs poses; leave out `align=False`")
        if self.rounds == 0 and (self.passes or 1) > 1:
            raise UsageError("`passes`: needs `rounds` of 1 or more between two passes")
        return self

    @property
    def kind(self) -> Literal["linear", "vaegan"]:
        """Kind of the model."""
        return "linear" if self.align else "vaegan"

    def max_passes(self, *, poses_known: bool) -> int:
        """Return the largest number of passes, which depends on whether the table has poses."""
        if not self.align or self.rounds == 0:
            return 1
        if self.passes is not None:
            return self.passes
        return 1 if poses_known and self.rounds is None else PASSES
