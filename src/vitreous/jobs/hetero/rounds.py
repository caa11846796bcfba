"""Passes of ``vitreous hetero`` by poses: sort, seek poses under the clusters' maps, sort again.

A refinement of a mixture as one structure loses poses, and lost poses spoil the sorting. Under the
maps of clusters many are found, and what is sorted with those has better maps. Passes end when the
clusters no longer change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.data.tables import pose_columns
from vitreous.io.star import write_star
from vitreous.jobs.hetero import solvers as sorters
from vitreous.jobs.hetero.class_maps import Clustering, clustered, posed_images
from vitreous.jobs.hetero.recipe import POSES, Recipe, material, pose_of_state
from vitreous.jobs.hetero.request import Request
from vitreous.jobs.hetero.solvers import TrainingData
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.training import RunState, Training
from vitreous.methods.hetero.class_maps import (
    embed_all,
    reconstruct_class_maps,
)
from vitreous.methods.hetero.clustering import Clusters
from vitreous.methods.hetero.latent_model import LatentModel
from vitreous.methods.hetero.merge_classes import distinct_maps
from vitreous.methods.hetero.pose_rescue import pose_search
from vitreous.metrics.clustering import normalised_mutual_information

SETTLED = 0.98  # NMI of the clusters of two passes


@dataclass(frozen=True)
class Model:
    """A trained sorter, what it was trained on, and where it puts the particles.

    Args:
        latent, clusters: None where nobody asked for them.
        passes: that it took; None where there could be only one.
        unsettled: the clusters still changed in the last of them.
    """

    sorter: LatentModel
    material: TrainingData
    latent: Tensor | None = None
    clusters: Clusters | None = None
    passes: int | None = None
    unsettled: bool = False


@dataclass(frozen=True)
class Place:
    """Where a run stands between its stages.

    Args:
        number: of the pass, from 1 on.
        pose: that this pass sorts with, or searches from.
        label: clusters of the latest sorting that has ended; None before the first.
    """

    number: int
    pose: Pose | None
    label: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        pose = None
        if self.pose is not None:
            pose = {
                "rotation": self.pose.rotation.clone(),
                "shift_angstrom": self.pose.shift_angstrom.clone(),
            }
        return {"pass": self.number, "pose": pose, "label": self.label}

    @classmethod
    def restored(cls, state: Mapping[str, Any], data: WorkingSet) -> Self:
        """From :meth:`state`."""
        return cls(int(state["pass"]), pose_of_state(state, data), state["label"])


class HeteroRounds:
    """The stages between poses and a trained model, each of which a checkpoint can fall into.

    Args:
        request, recipe, data: of the run.
        folder: entered.
        journal: of the run, which may hold a state to go on from.
        history: entered.
        stop: asked all along.
    """

    def __init__(
        self,
        request: Request,
        recipe: Recipe,
        data: WorkingSet,
        folder: OutputFolder,
        journal: RunState,
        history: HistoryFile,
        stop: StopSignals,
    ) -> None:
        self._request, self._recipe, self._data = request, recipe, data
        self._folder, self._journal, self._history = folder, journal, history
        self._stop = stop
        self._most = request.most_passes(poses_known=data.particles.pose is not None)

    def run(self, pose: Pose | None) -> Model:
        """All passes, or those that are left.

        Args:
            pose: to begin with; that of the journal's state goes before it.

        Raises:
            SystemExit: stopped by a signal; stages that can be saved are.
        """
        journal = self._journal
        at = Place(1, pose)
        if journal.state:
            at = Place.restored(journal.state, self._data)
        elif pose is not None:
            journal.save(at.state())
        while True:
            if "search" in journal.state:
                found = self._search(at, journal.state["search"], None)
            else:
                model, training = self._train(at)
                if self._is_last(at, model):
                    journal.save(training.state(), done=True)
                    return self._told(at, model)
                assert model.clusters is not None
                at = Place(at.number, at.pose, model.clusters.label)
                found = self._search(at, None, model)
            self._write(found)
            at = Place(at.number + 1, found, at.label)
            journal.state = {}
            journal.save(at.state())

    def _bar(self, what: str, number: int) -> RunProgress:
        label = f"{what}, pass {number}" if self._most > 1 else what
        return RunProgress(label, quiet=self._request.quiet)

    def _columns(self, number: int) -> dict[str, int]:
        return {"pass": number} if self._most > 1 else {}

    def _train(self, at: Place) -> tuple[Model, Training]:
        """The sorter of a pass; its clusters where another pass may follow."""
        request = self._request
        made = material(self._recipe, self._data, at.pose)
        sorter = sorters.build(request.method, self._recipe.settings, made)
        training = Training(
            sorter,
            self._journal,
            at.state(),
            self._stop,
            label=f"training, pass {at.number}" if self._most > 1 else "training",
            columns=self._columns(at.number),
            quiet=request.quiet,
        )
        training.run(self._history)
        model = Model(sorter, made)
        if at.number < self._most or request.command == "hetero run":
            with self._bar("embedding", at.number) as bar:
                model = embedded(model, request, bar, self._stop)
        return model, training

    def _is_last(self, at: Place, model: Model) -> bool:
        """Whether no pass may follow, or none is worth it."""
        if at.number >= self._most or model.clusters is None or len(model.clusters) < 2:
            return True
        return at.label is not None and settled(at.label, model.clusters.label)

    def _told(self, at: Place, model: Model) -> Model:
        """The last model, and how passes ended."""
        if self._most == 1:
            return model
        changed = False
        if at.label is not None and model.clusters is not None:
            changed = not settled(at.label, model.clusters.label)
        return replace(model, passes=at.number, unsettled=changed and len(model.clusters or ()) > 1)

    def _search(self, at: Place, state: Mapping[str, Any] | None, model: Model | None) -> Pose:
        """Poses of all particles under the maps of clusters, from the start or a saved round."""
        request = self._request
        made = material(self._recipe, self._data, at.pose) if model is None else model.material
        assert at.pose is not None
        assert at.label is not None
        posed = posed_images(self._data, made.working, made.images, at.pose)
        with self._bar("poses under maps of clusters", at.number) as bar:

            def notify(share: float) -> None:
                bar.update(share)
                self._stop.exit_if_requested()

            def keep(row: dict[str, Any], search: dict[str, Any]) -> None:
                self._journal.step += 1
                seconds = round(self._journal.seconds(), 2)
                step = {"step": self._journal.step, "seconds": seconds}
                self._history.add({**self._columns(at.number), **row, **told, **step})
                told.clear()
                self._journal.save({**at.state(), "search": search})
                if self._stop.requested:
                    self._journal.leave(self._stop)

            maps, told = torch.empty(0), dict[str, Any]()
            if state is None:
                count = int(at.label.max()) + 1
                classes = reconstruct_class_maps(posed, at.label, count, lambda share: notify(0.0))
                maps, stands = distinct_maps(
                    classes,
                    posed.pixel_size_angstrom,
                    symmetry=posed.symmetry,
                    diameter_angstrom=posed.diameter_angstrom,
                    report_progress=lambda share: notify(0.0),
                )
                told["map_of"] = [k + 1 for k in stands]
            else:
                maps = state["maps"]
            solver = pose_search(posed, at.label, maps, request.rounds_of_search, notify)
            if state is not None:
                solver.load_state_dict(dict(state))
            while not solver.done:
                stats = solver.step()
                keep({"round": solver.round, **stats}, solver.state_dict())
            return solver.result()

    def _write(self, pose: Pose) -> None:
        """``poses.star``, for people; nothing reads it."""
        columns = pose_columns(pose)
        document = self._data.particles.to_star_document(relative_to=self._folder.root, **columns)
        write_star(self._folder.path(POSES), document)


def embedded(model: Model, request: Request, bar: RunProgress, stop: StopSignals) -> Model:
    """The model with places and clusters of all particles."""

    def notify(share: float) -> None:
        bar.update(share)
        stop.exit_if_requested()

    latent = embed_all(model.sorter, len(model.material.data.particles), notify)
    clusters = clustered(latent, request.clustering or Clustering(), request.working.seed)
    return replace(model, latent=latent, clusters=clusters)


def settled(before: Tensor, now: Tensor) -> bool:
    """Whether two sortings agree.

    >>> settled(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    True
    """
    return normalised_mutual_information(before, now) >= SETTLED
