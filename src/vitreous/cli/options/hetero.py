"""Options that several ``vitreous hetero`` commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_MODEL, _CLUSTERS = "Model", "Clusters"

Particles = Annotated[
    Path,
    typer.Argument(
        metavar="PARTICLES", help="Particle table of RELION (.star) or cryoSPARC (.cs)."
    ),
]
Align = Annotated[
    bool,
    typer.Option(
        "--align/--no-align",
        help="Sort by poses, with a linear model: the table's, or, where it has none, those of one "
        "structure that all particles are first refined to, as `vitreous auto` does. --no-align: a "
        "VAE-GAN that needs none; it is slow, and has not yet told structures apart in our tests.",
        rich_help_panel=_MODEL,
    ),
]
Latent = Annotated[
    int | None,
    typer.Option(min=1, help="Dimensions of the latent space.", rich_help_panel=_MODEL),
]
Shift = Annotated[
    str,
    typer.Option(
        help="Without --align: how far particles are off centre, in Å: `none`, "
        "`triangular:WIDTH` (full width), `pixels:WIDTH` or `gaussian:SIGMA`.",
        rich_help_panel=_MODEL,
    ),
]
Effort = Annotated[
    float,
    typer.Option(min=1e-3, help="Multiplies the steps of training.", rich_help_panel=_MODEL),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of the model's settings; the table [options.solver] of a run's config.toml "
        "lists them all, docs/hetero.md explains them.",
        metavar="FILE.toml",
        rich_help_panel=_MODEL,
    ),
]
MinCluster = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Particles that a cluster has at least; 900 by default, 5 % of fewer than 18,000.",
        rich_help_panel=_CLUSTERS,
    ),
]
MinSamples = Annotated[
    int,
    typer.Option(min=1, help="Neighbours by which density is measured.", rich_help_panel=_CLUSTERS),
]
Space = Annotated[
    Literal["auto", "umap", "pca"],
    typer.Option(
        help="What is clustered: latents flattened by `umap` (needs umap-learn) or by `pca`; "
        "`auto`: the first where it is installed.",
        rich_help_panel=_CLUSTERS,
    ),
]
AssignAll = Annotated[
    bool,
    typer.Option(
        "--assign-all",
        help="Give particles that are in no cluster to the nearest one.",
        rich_help_panel=_CLUSTERS,
    ),
]
Points = Annotated[
    int,
    typer.Option(
        min=2,
        help="Maps along each cluster, from the 5th to the 95th percentile.",
        rich_help_panel=_CLUSTERS,
    ),
]
HeteroRounds = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="So many sortings at most. Between two of them every particle's pose is sought under "
        "the maps of the clusters; they end when the clusters no longer change, or there is only "
        "one. By default 4 if poses had to be found or --rounds is given, else 1.",
        rich_help_panel=_CLUSTERS,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Of each search for poses between two sortings, so many rounds at most; 3 by default. "
        "0: sort once.",
        rich_help_panel=_CLUSTERS,
    ),
]
TrainedFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Folder of `vitreous hetero train` or `run`."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Folder of `vitreous hetero train` or `run`.", metavar="FOLDER"),
]
ModelParticles = Annotated[
    Path | None,
    typer.Option(
        "--particles",
        help="The table that the model was trained on, if it has moved.",
        metavar="FILE",
    ),
]
