"""``vitreous hetero``: particles of several structures, sorted without being told how many."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitreous.cli.options.common import (
    Device,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Threads,
    require_finite,
)
from vitreous.cli.options.hetero import (
    Align,
    AssignAll,
    Config,
    Effort,
    HeteroRounds,
    Latent,
    MinCluster,
    MinSamples,
    Model,
    ModelParticles,
    Particles,
    Points,
    Rounds,
    Shift,
    Space,
    TrainedFolder,
)
from vitreous.cli.options.particles import (
    AllowOutsideRoot,
    Apix,
    DataRoot,
    IgnoreCtf,
    Invert,
    Passthrough,
    Permissive,
    SkipBad,
    WorkingBox,
)
from vitreous.cli.options.refine import Continue, MaskDiameter, Sym
from vitreous.core.errors import UsageError

if TYPE_CHECKING:
    from vitreous.jobs.run.summary import Done

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Mixed particles: sort them into structures without being told how many there are.",
)


class Maps(StrEnum):
    """Where the maps of clusters come from."""

    AUTO = "auto"
    MODEL = "model"
    RECONSTRUCT = "reconstruct"
    NONE = "none"


@app.command("run", no_args_is_help=True)
def run(
    context: typer.Context,
    particles: Particles,
    output: Output,
    align: Align = True,
    sym: Sym = "C1",
    box: WorkingBox = None,
    latent: Latent = None,
    shift: Shift = "none",
    effort: Effort = 1.0,
    config: Config = None,
    mask_diameter: MaskDiameter = None,
    min_cluster: MinCluster = None,
    min_samples: MinSamples = 10,
    space: Space = "auto",
    assign_all: AssignAll = False,
    points: Points = 5,
    passes: HeteroRounds = None,
    rounds: Rounds = None,
    invert: Invert = False,
    ignore_ctf: IgnoreCtf = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    skip_bad: SkipBad = False,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Continue = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """From mixed particles to clusters, a map of each, and the variation inside each.

    Trains a model that gives every particle a place in a latent space and every place a map, finds
    clusters by density alone, and follows each cluster along its first principal component. Writes
    particles.star (class and latents of every particle), class01.star and class01.mrc and so on,
    class01_pc1_1.mrc and so on, report.html and checkpoints. The maps of the classes are
    reconstructed from their particles, with half maps and FSC; with --no-align the model makes
    them.

    Stop it with Ctrl-C and go on later with --continue.

    Example: `vitreous hetero run particles.star -o OUT`
    """
    require_finite(context.params)
    from vitreous.jobs.hetero.class_maps import Clustering
    from vitreous.jobs.hetero.run import run as sort

    clustering = Clustering(min_cluster, min_samples, space, assign_all)
    more = {"clustering": clustering, "points": points, "passes": passes, "rounds": rounds}
    tell(sort(request(context.params, **more)))


@app.command("train", no_args_is_help=True)
def train(
    context: typer.Context,
    particles: Particles,
    output: Output,
    align: Align = True,
    sym: Sym = "C1",
    box: WorkingBox = None,
    latent: Latent = None,
    shift: Shift = "none",
    effort: Effort = 1.0,
    config: Config = None,
    mask_diameter: MaskDiameter = None,
    passes: HeteroRounds = None,
    rounds: Rounds = None,
    invert: Invert = False,
    ignore_ctf: IgnoreCtf = False,
    apix: Apix = None,
    passthrough: Passthrough = None,
    skip_bad: SkipBad = False,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Continue = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """The first step of `run`: train a model of mixed particles.

    Writes checkpoints (all that `embed`, `cluster` and `traverse` need), history.jsonl and
    report.html.

    Example: `vitreous hetero train particles.star -o MODEL`
    """
    require_finite(context.params)
    from vitreous.jobs.hetero.run import run as sort

    tell(sort(request(context.params, passes=passes, rounds=rounds)))


@app.command("embed", no_args_is_help=True)
def embed(
    model: TrainedFolder,
    output: Output,
    particles: ModelParticles = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """The second step of `run`: the place of every particle in the latent space.

    Writes particles.star with columns vitreousLatent1 and so on, and the same numbers as
    latents.safetensors.

    Example: `vitreous hetero embed MODEL -o EMBEDDED`
    """
    from vitreous.jobs.hetero.steps import EmbedRequest
    from vitreous.jobs.hetero.steps import embed as work

    tell(work(EmbedRequest(model, output, particles, overwrite, device, threads, quiet)))


@app.command("cluster", no_args_is_help=True)
def cluster(
    context: typer.Context,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="EMBEDDED.star", help="The particles.star of `vitreous hetero embed` or `run`."
        ),
    ],
    output: Output,
    model: Model = None,
    model_particles: ModelParticles = None,
    maps: Annotated[
        Maps,
        typer.Option(
            help="`reconstruct`: from the particles of each cluster and the table's poses; "
            "`model`: what the model shows at the centre of each; `auto`: the first if the table "
            "has poses."
        ),
    ] = Maps.AUTO,
    sym: Sym = "C1",
    box: WorkingBox = None,
    mask_diameter: MaskDiameter = None,
    min_cluster: MinCluster = None,
    min_samples: MinSamples = 10,
    space: Space = "auto",
    assign_all: AssignAll = False,
    invert: Invert = False,
    ignore_ctf: IgnoreCtf = False,
    apix: Apix = None,
    data_root: DataRoot = None,
    allow_outside_root: AllowOutsideRoot = False,
    permissive: Permissive = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """The third step of `run`: clusters found by density, and a map of each.

    Writes particles.star (with class and place along the class), class01.star and class01.mrc and
    so on, and report.html.

    Example: `vitreous hetero cluster EMBEDDED/particles.star --model MODEL -o CLUSTERS`
    """
    from vitreous.jobs.hetero.class_maps import Clustering
    from vitreous.jobs.hetero.steps import ClusterRequest
    from vitreous.jobs.hetero.steps import cluster as work
    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.inputs.working_set import ProcessingOptions

    files = ParticleFiles.of({**context.params, "particles": table})
    working = ProcessingOptions.of(context.params)
    clustering = Clustering(min_cluster, min_samples, space, assign_all)
    wanted = ClusterRequest(
        files,
        output,
        working,
        model=model,
        model_particles=model_particles,
        maps=maps.value,
        clustering=clustering,
        overwrite=overwrite,
        quiet=quiet,
    )
    tell(work(wanted))


@app.command("traverse", no_args_is_help=True)
def traverse(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="CLUSTERED.star",
            help="The particles.star of `vitreous hetero cluster` or `run`.",
        ),
    ],
    model: Annotated[
        Path, typer.Option(help="Folder of `vitreous hetero train` or `run`.", metavar="FOLDER")
    ],
    output: Output,
    model_particles: ModelParticles = None,
    classes: Annotated[
        list[int] | None,
        typer.Option(
            "--class", min=1, help="Of this class only; may be given several times.", metavar="INT"
        ),
    ] = None,
    points: Points = 5,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """The last step of `run`: maps along the first principal component of each cluster.

    Writes class01_pc1_1.mrc and so on, from the 5th to the 95th percentile of the members, and
    report.html.

    Example: `vitreous hetero traverse CLUSTERS/particles.star --model MODEL -o PATHS`
    """
    from vitreous.jobs.hetero.steps import TraverseRequest
    from vitreous.jobs.hetero.steps import traverse as work

    wanted = TraverseRequest(
        table,
        model,
        output,
        model_particles=model_particles,
        classes=tuple(classes or ()),
        points=points,
        overwrite=overwrite,
        device=device,
        threads=threads,
        quiet=quiet,
    )
    tell(work(wanted))


def request(given: dict[str, Any], **more: Any) -> Any:
    """The request of ``train``, ``run`` and ``classify2d``, whose options they share."""
    from vitreous.jobs.hetero.run import Request
    from vitreous.jobs.inputs.particles import ParticleFiles
    from vitreous.jobs.inputs.working_set import ProcessingOptions

    if given.get("align") and given["shift"] != "none":
        raise UsageError("--shift: poses found tell shifts; it goes with --no-align")
    return Request(
        files=ParticleFiles.of(given),
        output=given["output"],
        working=ProcessingOptions.of(given),
        method=given.get("method") or ("align" if given["align"] else "gan"),
        config=given["config"],
        overrides={"latent": given["latent"], "effort": given["effort"]},
        shift=given["shift"],
        overwrite=given["overwrite"],
        resume=given["resume"],
        quiet=given["quiet"],
        **more,
    )


def tell(done: Done) -> None:
    """Say how a run ended."""
    typer.secho(f"{done.verdict[0].upper()}{done.verdict[1:]}.", bold=True)
    typer.echo(done.text)
