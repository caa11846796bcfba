"""The work of ``vitreous hetero run``: mixed particles to clusters and the maps of these."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.io.checkpoint import load_checkpoint
from vitreous.io.nested import restore_state
from vitreous.jobs.hetero.models import TrainingData, model_settings, training_job
from vitreous.jobs.hetero.options import STAGES, HeteroOptions
from vitreous.jobs.hetero.passes import (
    MODEL,
    POSES,
    TrainedModel,
    TrainingPasses,
    clustered,
    embedded,
    fewest_particles,
    restored_model,
)
from vitreous.jobs.hetero.results import (
    ClusteredParticles,
    HeteroResult,
    write_latents,
    write_results,
    write_trained,
)
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.jobs.run.class_tables import UNSORTED, files_of_classes
from vitreous.jobs.run.folder import CHECKPOINTS, CONFIG, read_config
from vitreous.jobs.run.job import Job
from vitreous.methods.hetero.class_maps import (
    ClassMap,
    class_rows,
    model_maps,
    reconstruct_class_maps,
    traverse_classes,
)
from vitreous.methods.hetero.clustering import Clusters

COMMAND = "hetero run"
FILES = ("particles.star", POSES, UNSORTED, "latents.safetensors", "report.html")
_CLUSTERS = "clusters"


class RepeatedStage(HeteroOptions):
    """Options of a run in a folder, some of which were changed to redo a stage of it."""

    CONTROL = frozenset({"allow_config_change"})
    allow_config_change: bool = True


def hetero(options: HeteroOptions) -> HeteroResult:
    """Train a model of mixed particles, cluster its latents, and make the maps of the clusters.

    With ``options.stage`` only a part of it, see :class:`HeteroOptions`.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    redone = options.stage not in (None, "train")
    if redone:
        options, data, settings = _earlier_run(options)
    else:
        data = open_working_set(options, check_all=True, fewest=fewest_particles(options))
        settings = model_settings(options.kind, options, data)
    outputs = *FILES, *files_of_classes(options.output)
    with training_job(COMMAND, options, outputs, data, settings) as job:
        if redone and MODEL not in job.state:
            raise UsageError(f"{options.output}: training has not ended; `resume` it first")
        trained = TrainingPasses(job, options, settings, TrainingData(data, options)).run()
        if options.stage == "train":
            return write_trained(job, options, trained)
        if options.stage == "embed":
            latent = embedded(job, trained.model, trained.data, "embedding")
            job.state.pop(_CLUSTERS, None)  # they were of the former latents
            job.keep(MODEL, job.state[MODEL] | {"latent": latent})
            return write_latents(job, replace(trained, latent=latent))
        clusters = _clusters(job, options, trained.latent)
        return write_results(job, options, _clustered_particles(job, options, trained, clusters))


def load_trained(
    folder: Path, particles: Path | None = None, *, device: str = "auto"
) -> TrainedModel:
    """Return the trained model of a run's folder; ``particles`` is its table, if it has moved.

    Raises:
        UsageError: no such folder, or training has not ended.
        InputError: files that cannot be read, or other images than it was trained on.
    """
    config = _config_of(folder)
    path = particles or Path(config["inputs"]["particles"]["path"])
    given = HeteroOptions(particles=path, output=folder, device=device, stage="embed")
    options, data, settings = _earlier_run(given)
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    kept = {} if checkpoint is None else restore_state(checkpoint.tensors, checkpoint.meta["tree"])
    if MODEL not in kept.get("kept", {}):
        raise UsageError(f"{folder}: training has not ended; `resume` it first")
    training_data = TrainingData(data, options)
    return restored_model(options.kind, settings, training_data, kept["kept"][MODEL])


def _earlier_run(options: HeteroOptions) -> tuple[RepeatedStage, WorkingSet, dict[str, Any]]:
    """Return options, particles and settings of the model of a run of which a stage is redone."""
    earlier = _config_of(options.output)["options"]
    repeated_options = repeated(options, earlier)
    data = open_working_set(repeated_options, check_all=True)
    if data.digest != earlier.get("images_sha256"):
        raise InputError(
            f"{repeated_options.particles}: not the images that the model in {options.output} was "
            "trained on; give theirs"
        )
    return repeated_options, data, earlier["solver"]


def repeated(options: HeteroOptions, earlier: Mapping[str, Any]) -> RepeatedStage:
    """Return the options of a run in a folder, changed by those that were given for a stage.

    ``earlier`` is the table ``[options]`` of the run; what the stage cannot change must be equal.

    Raises:
        UsageError: an option was given that the stage cannot change.
    """
    assert options.stage is not None
    fields, recorded = set(HeteroOptions.model_fields), options.recorded()
    fixed = (set(recorded) | (fields & set(earlier))) - STAGES[options.stage]
    for name in sorted(options.model_fields_set & fixed):
        if recorded.get(name) != earlier.get(name):
            raise UsageError(
                f"`{name}`: the run in {options.output} has {earlier.get(name, 'none')}; leave it "
                "out, or start a run in another folder"
            )
    given = {name: getattr(options, name) for name in options.model_fields_set - fixed}
    before = {name: value for name, value in earlier.items() if name in fields}
    return RepeatedStage(**{**before, **given, "resume": True, "overwrite": False})


def _config_of(folder: Path) -> dict[str, Any]:
    """Return what ``config.toml`` of an earlier run holds."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"`stage`: {folder} holds no run; run all stages first")
    config = read_config(folder / CONFIG)
    command = config.get("run", {}).get("command")
    if command != COMMAND:
        raise UsageError(f"{folder}: output of 'vitreous {command}'; give that of {COMMAND}")
    return config


def _clusters(job: Job, options: HeteroOptions, latent: Tensor) -> Clusters:
    """Return the clusters of the latents; those in the checkpoint unless they are to be redone."""
    if options.stage == "cluster" or _CLUSTERS not in job.state:
        job.report_progress(0.0, label="clustering")
        job.keep(_CLUSTERS, dict(vars(clustered(latent, options))))
    return Clusters(**job.state[_CLUSTERS])


def _clustered_particles(
    job: Job, options: HeteroOptions, trained: TrainedModel, clusters: Clusters
) -> ClusteredParticles:
    """Make the maps of the clusters, and those along them."""
    rows = class_rows(clusters.label, len(clusters))
    unknown = sorted(set(options.classes) - set(range(1, len(rows) + 1)))
    if unknown:
        raise UsageError(f"`classes` {unknown[0]}: there are classes 1 to {len(rows)}")
    how = options.maps
    if how == "auto":
        how = "model" if trained.data.pose is None else "reconstruct"
    job.report_progress(0.0, label="maps")
    maps: list[ClassMap | None] = []
    if how == "model":
        maps += model_maps(trained.model, clusters.centre, job.report_progress)
    elif how == "reconstruct":
        posed = trained.data.posed()
        maps = reconstruct_class_maps(posed, clusters.label, len(clusters), job.report_progress)
    job.report_progress(0.0, label="maps along clusters")
    model, points = trained.model, options.points
    traversals = traverse_classes(model, trained.latent, rows, points, job.report_progress)
    return ClusteredParticles(trained, clusters, maps, traversals, how == "reconstruct")
