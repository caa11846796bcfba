"""Training of a model in passes: train, search poses under the maps of its clusters, train again.

A refinement of a mixture as one structure loses poses, and lost poses spoil the sorting. Under the
maps of clusters a search finds many of them, and a model trained with those has better clusters.
Passes end when the clusters no longer change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Pose
from vitreous.data.tables import pose_columns
from vitreous.io.star import write_star
from vitreous.jobs.hetero import models
from vitreous.jobs.hetero.models import ModelKind, TrainingData
from vitreous.jobs.hetero.options import ROUNDS, HeteroOptions, LatentModelOptions
from vitreous.jobs.refine.evidence import refusal
from vitreous.jobs.refine.stages import (
    INITIAL_MODEL,
    images_evidence,
    initial_model_stage,
    refinement_stage,
)
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.messages import say
from vitreous.methods.em.config import InitialModelConfig, RefinementConfig
from vitreous.methods.hetero.class_maps import LatentModel, embed_all, reconstruct_class_maps
from vitreous.methods.hetero.clustering import Clusters, find_clusters
from vitreous.methods.hetero.merge_classes import distinct_maps
from vitreous.methods.hetero.pose_rescue import pose_search
from vitreous.metrics.clustering import normalised_mutual_information

POSES = "poses.star"
PASS, SEARCH, MODEL = "pass", "search", "model"  # results of stages, in checkpoints
DOUBT = "doubt"  # in checkpoints: what makes the first poses doubtful, a text
_CONSENSUS = "The one structure that gave all particles their first poses"
_SO_CLUSTERS = "With poses that are wrong, so are the clusters"
_CONSENSUS_ROUNDS = 12
_FEWEST_PER_HALF = 6  # particles: fewer have no covariance of latents
_SETTLED = 0.98  # NMI of the clusters of two passes


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its data."""

    model: LatentModel  # trained
    data: TrainingData  # what it was trained on; with poses of the last pass
    latent: Tensor  # of all particles, ``(n, d)``
    passes: int | None = None  # number of passes done; None where only one was possible
    unsettled: bool = False  # whether the clusters still changed in the last pass


class TrainingPasses:
    """Passes of a job, whose checkpoint holds what was done of them; ``data`` is without poses."""

    def __init__(
        self,
        job: Job,
        options: HeteroOptions,
        settings: Mapping[str, Any],
        data: TrainingData,
    ) -> None:
        self._job, self._options = job, options
        self._settings, self._data = settings, data
        poses_known = data.working_set.particles.pose is not None
        self._max = options.max_passes(poses_known=poses_known)

    def run(self) -> TrainedModel:
        """Do the passes that are left, and return the last model.

        Raises:
            InputError: the particles agree on no structure, so that there are no poses.
            SystemExit: stopped by a signal, after saving.
        """
        job = self._job
        if MODEL in job.state:
            return restored_model(self._options.kind, self._settings, self._data, job.state[MODEL])
        if PASS not in job.state:
            pose = first_poses(job, self._options, self._data)
            job.state["training_begins"] = len(job.history.rows)
            self._keep_pass(1, pose, None)
        while True:
            state = job.state[PASS]
            number, data = int(state["number"]), with_poses(self._data, state["pose"])
            if SEARCH not in job.state:
                trained = self._train(number, data)
                if self._max == 1:
                    return self._keep_model(trained)
                clusters, before = clustered(trained.latent, self._options), state["label"]
                settled = before is not None and (
                    normalised_mutual_information(before, clusters.label) >= _SETTLED
                )
                if number >= self._max or len(clusters) < 2 or settled:
                    unsettled = before is not None and len(clusters) > 1 and not settled
                    return self._keep_model(replace(trained, passes=number, unsettled=unsettled))
                self._keep_class_maps(number, data, clusters.label)
            pose = self._search(number, data)
            self._write_poses(pose)
            label = job.state.pop(SEARCH)["label"]
            self._keep_pass(number + 1, pose, label)

    def _keep_pass(self, number: int, pose: Pose | None, label: Tensor | None) -> None:
        saved = None
        if pose is not None:
            saved = {name: value.clone() for name, value in vars(pose).items()}
        self._job.keep(PASS, {"number": number, "pose": saved, "label": label})

    def _columns(self, number: int) -> dict[str, Any]:
        return {"pass": number} if self._max > 1 else {}

    def _label(self, text: str, number: int) -> str:
        return f"{text}, pass {number}" if self._max > 1 else text

    def _train(self, number: int, data: TrainingData) -> TrainedModel:
        model = models.build_model(self._options.kind, self._settings, data)
        label, columns = self._label("training", number), self._columns(number)
        self._job.run(model, f"training {number}", label=label, columns=columns)
        latent = embedded(self._job, model, data, self._label("embedding", number))
        return TrainedModel(model, data, latent)

    def _keep_model(self, trained: TrainedModel) -> TrainedModel:
        """Keep the last model in the checkpoint, and how the passes ended."""
        state = {
            "model": trained.model.state_dict(),
            "latent": trained.latent,
            "pose": self._job.state.pop(PASS)["pose"],
            "passes": trained.passes,
            "unsettled": trained.unsettled,
        }
        self._job.keep(MODEL, state)
        return trained

    def _keep_class_maps(self, number: int, data: TrainingData, label: Tensor) -> None:
        """Reconstruct the clusters' maps, without those that show one structure twice."""
        job, posed = self._job, data.posed()
        job.report_progress(0.0, label=self._label("poses under maps of clusters", number))
        classes = reconstruct_class_maps(posed, label, int(label.max()) + 1, _waiting(job))
        maps, map_of_class = distinct_maps(
            classes,
            posed.pixel_size_angstrom,
            symmetry=posed.symmetry,
            diameter_angstrom=posed.diameter_angstrom,
            report_progress=_waiting(job),
        )
        map_of = [k + 1 for k in map_of_class]
        job.keep(SEARCH, {"maps": maps, "map_of": map_of, "label": label})

    def _search(self, number: int, data: TrainingData) -> Pose:
        """Search the poses of all particles under the maps of clusters."""
        state, job = self._job.state[SEARCH], self._job
        rounds = ROUNDS if self._options.rounds is None else self._options.rounds
        solver = pose_search(
            data.posed(), state["label"], state["maps"], rounds, job.report_progress
        )
        return job.run(
            solver,
            f"search {number}",
            label=self._label("poses under maps of clusters", number),
            columns={**self._columns(number), "map_of": state["map_of"]},
            rows=None,
            allow_infinite=True,
        )

    def _write_poses(self, pose: Pose) -> None:
        """Write ``poses.star`` for the user; no stage reads it."""
        folder, particles = self._job.folder, self._data.working_set.particles
        document = particles.to_star_document(relative_to=folder.root, **pose_columns(pose))
        write_star(folder.path(POSES), document)


def first_poses(job: Job, options: HeteroOptions, data: TrainingData) -> Pose | None:
    """Return the table's poses, or those of one structure that all particles are refined to.

    The refinement is a stage of the job. None for the model without poses.

    Raises:
        InputError: the particles agree on no structure.
    """
    working_set = data.working_set
    if not options.align or working_set.particles.pose is not None:
        return working_set.particles.pose if options.align else None
    say("no poses in the table: all particles are first refined to one structure")
    common: dict[str, Any] = {
        "symmetry": options.symmetry,
        "shift_range_angstrom": working_set.shift_range(None),
        "diameter_angstrom": options.mask_diameter_angstrom,
        "seed": options.seed,
    }
    start = initial_model_stage(job, working_set, InitialModelConfig(**common), (0.0, 0.3))
    if not start.solved:
        raise InputError(
            f"{options.particles}: no structure that all particles agree on, so there are no "
            f"poses to sort them with: {start.verdict}"
        )
    config = RefinementConfig(rounds=_CONSENSUS_ROUNDS, reject=False, **common)
    refined = refinement_stage(job, working_set, start, config, (0.3, 1.0))
    poses, finer = refined.poses.pose, images_evidence(job, working_set, refined, config)
    if finer is None or not finer.shown:
        doubt = f"{_CONSENSUS}: {refusal(finer, refined.resolution_angstrom)}. {_SO_CLUSTERS}"
        job.state[DOUBT] = doubt
        say(f"warning: {doubt}")
    job.state.pop(INITIAL_MODEL)
    return Pose(poses.rotation.cpu(), poses.shift_angstrom.cpu())


def with_poses(data: TrainingData, saved: Mapping[str, Any] | None) -> TrainingData:
    """Return the data with poses of a checkpoint; the table's own object where they are equal."""
    if saved is None:
        return replace(data, pose=None)
    pose, own = Pose(saved["rotation"], saved["shift_angstrom"]), data.working_set.particles.pose
    same = own is not None and (
        torch.equal(pose.rotation, own.rotation)
        and torch.equal(pose.shift_angstrom, own.shift_angstrom)
    )
    return replace(data, pose=own if same else pose)


def restored_model(
    kind: ModelKind, settings: Mapping[str, Any], data: TrainingData, state: Mapping[str, Any]
) -> TrainedModel:
    """Return the trained model of a checkpoint's state."""
    data = with_poses(data, state["pose"])
    model = models.build_model(kind, settings, data)
    model.load_state_dict(state["model"])
    return TrainedModel(model, data, state["latent"], state["passes"], state["unsettled"])


def fewest_particles(options: LatentModelOptions) -> int:
    """Return the number of particles that each half set needs for latents that can be clustered."""
    return max(_FEWEST_PER_HALF, options.min_samples // 2 + 1, options.latent_dimensions or 0)


def embedded(job: Job, model: LatentModel, data: TrainingData, label: str) -> Tensor:
    """Return the latents of all particles, with progress shown."""
    job.report_progress(0.0, label=label)
    return embed_all(model, len(data.working_set.particles), job.report_progress)


def clustered(
    latent: Tensor, options: LatentModelOptions, *, assign_all: bool | None = None
) -> Clusters:
    """Find the clusters of latents ``(n, d)`` with the options of a job, ``assign_all`` if given.

    Raises:
        UsageError: UMAP was asked for and is not installed, or there are too few particles.
    """
    if assign_all is None:
        assign_all = bool(getattr(options, "assign_all", False))
    try:
        return find_clusters(
            latent,
            options.min_cluster_size,
            min_samples=options.min_samples,
            space=options.space,
            assign_all=assign_all,
            seed=options.seed,
        )
    except ImportError as error:
        raise UsageError(
            "`space=umap`: the package umap-learn is not installed; install vitreous[umap], or "
            "give `space=pca`"
        ) from error
    except ValueError as error:
        raise UsageError(f"clusters: {error}") from error


def _waiting(job: Job) -> Callable[[float], None]:
    """Return a callback that leaves the bar at its start but stops on a signal."""
    return lambda share: job.report_progress(0.0)
