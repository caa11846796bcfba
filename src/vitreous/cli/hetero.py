"""``vitreous hetero``: particles of several structures, sorted without their number being given."""

from __future__ import annotations

from typing import Any

import typer

from vitreous.cli.options.command import options_command
from vitreous.cli.options.suggestions import SuggestingCommand
from vitreous.jobs.hetero.options import HeteroOptions

LATENT_FLAGS: dict[str, Any] = {
    "latent_dimensions": "--latent",
    "shift_distribution": "--shift",
    "settings_file": typer.Option("--config", metavar="FILE.toml"),
    "min_cluster_size": "--min-cluster",
}
MODEL = (
    "align",
    "latent_dimensions",
    "shift_distribution",
    "effort",
    "settings_file",
    "mask_diameter_angstrom",
)
CLUSTERS = ("min_cluster_size", "min_samples", "space")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Mixed particles: sort them into structures without being told how many there are.\n\n"
    "It has one command, `vitreous hetero run`; see `vitreous hetero run --help`.",
)


@app.callback()
def hetero() -> None:
    """Sort mixed particles into structures without being told how many there are."""


@app.command("run", no_args_is_help=True, cls=SuggestingCommand)
@options_command(
    HeteroOptions,
    {**LATENT_FLAGS, "classes": typer.Option("--class", metavar="INTEGER")},
    panels={
        "Model": MODEL,
        "Clusters": (*CLUSTERS, "assign_all", "maps", "points", "classes", "passes", "rounds"),
    },
)
def run(options: HeteroOptions) -> object:
    """From mixed particles to clusters, a map of each, and the variation inside each.

    Trains a model that gives every particle a latent, a few numbers that describe its structure,
    and every latent a map. Computes the latents of all particles ("embed"), finds clusters of them
    by density alone, and makes maps along the first principal component of each cluster
    ("traverse"). Writes
    particles.star (class and latents of every particle), class01.star and class01.mrc and so on,
    class01_pc1_1.mrc and so on, report.html and checkpoints. The maps of the classes are
    reconstructed from their particles, with half maps and FSC; with --no-align the model makes
    them.

    Stop it with Ctrl-C and go on later with --continue. With --stage a part of a finished run is
    done again in its folder.

    Example: `vitreous hetero run particles.star -o OUT`
    """
    from vitreous.jobs.hetero.run import hetero

    return hetero(options)
