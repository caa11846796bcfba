"""The runs behind ``vitreous hetero train``, ``hetero run`` and ``classify2d``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from vitreous.jobs.class2d.output import CLASS_IMAGES, CLASSES, write_class_images
from vitreous.jobs.hetero import solvers as sorters
from vitreous.jobs.hetero.class_images import averaged, classify
from vitreous.jobs.hetero.class_maps import posed_images, report_progress
from vitreous.jobs.hetero.consensus import consensus_files, first_poses
from vitreous.jobs.hetero.output import files_of
from vitreous.jobs.hetero.recipe import POSES, Recipe, model_pixel_size
from vitreous.jobs.hetero.report import Sorted, write_results
from vitreous.jobs.hetero.request import Request
from vitreous.jobs.hetero.rounds import HeteroRounds, Model
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.jobs.run.class_tables import UNSORTED
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress, duration
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.summary import Done, settings_shown, subtitle
from vitreous.jobs.run.training import RunState
from vitreous.methods.hetero.class_maps import (
    ClassMap,
    class_rows,
    model_maps,
    reconstruct_class_maps,
    traverse_classes,
)
from vitreous.report.mixed import MixedReport, write_mixed_report

__all__ = ["Request", "run"]

FILES = ("particles.star", POSES, UNSORTED, CLASSES, CLASS_IMAGES, "history.jsonl", "report.html")


def run(request: Request) -> Done:
    """Train, and for ``run`` embed, cluster, make maps, and report.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    request.check()
    data = open_working_set(request.files, request.working, check_all=True, quiet=request.quiet)
    settings = sorters.settle(
        request.method, request.config, request.overrides, request.working, data
    )
    recipe = Recipe(request.files, request.working, request.method, settings, request.shift)
    folder = _folder(request, recipe, data)
    with folder, StopSignals() as stop:
        if folder.was_finished:
            say(f"{folder.root}: the run was finished already; its results are written once more")
        journal, pose = RunState(folder), None
        if request.method == "align" and not journal.state:
            pose, seconds = first_poses(request, folder, data)
            journal.begin_after(seconds)
        with journal.history() as history:
            passes = HeteroRounds(request, recipe, data, folder, journal, history, stop)
            end = _End(request, folder, journal, passes.run(pose), history.rows, stop)
            if request.clustering is None:
                done = end.of_training()
            elif request.method == "classes":
                done = end.of_classes()
            else:
                done = end.of_sorting()
        folder.finish()
    return done


# ------------------------------------------------------------------- before and after


def _folder(request: Request, recipe: Recipe, data: WorkingSet) -> OutputFolder:
    options: dict[str, Any] = {
        "images_sha256": data.digest,
        **recipe.options(),
        "box": data.box_size,
        "pixel_size": data.pixel_size_angstrom,
    }
    if request.method == "align":
        options |= {"search": asdict(request.search)}
        options |= {"passes": request.passes, "rounds": request.rounds}
    if request.clustering is not None:
        options |= asdict(request.clustering)
        options |= {"points": request.points, "shift_range": request.shift_range_angstrom}
    return OutputFolder(
        request.output,
        request.command,
        options,
        inputs={"particles": request.files.path},
        outputs=(*files_of(request.output, *FILES), *consensus_files(request.output)),
        machine={"device": str(data.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=True,
        changeable=False,
    )


class _End:
    """What is done with a trained model, and what is written of it.

    Args:
        request: of the run.
        folder: entered.
        journal: whose clock is that of the whole run.
        model: trained.
        rows: of the history.
        stop: asked all along.
    """

    def __init__(
        self,
        request: Request,
        folder: OutputFolder,
        journal: RunState,
        model: Model,
        rows: Sequence[Mapping[str, Any]],
        stop: StopSignals,
    ) -> None:
        self._request, self._folder, self._journal = request, folder, journal
        self._model, self._data, self._stop = model, model.material.data, stop
        self._rows = [row for row in rows if "round" not in row]  # others are no curves

    def of_training(self) -> Done:
        """The page of a model that nothing was done with yet."""
        folder, seconds = self._folder, self._journal.seconds()
        steps = f"{self._journal.step:,}"
        verdict = f"trained in {steps} steps"
        folder.config["run"] |= {"verdict": verdict, "seconds": round(seconds, 1)}
        page = MixedReport(
            title=f"{self._request.files.path.name}: training on mixed particles",
            subtitle=subtitle(self._request.command),
            verdict=f"Trained in {steps} steps. See vitreous hetero embed.",
            key_numbers={"steps": steps, "time": duration(seconds)},
            settings=settings_shown(folder.config["options"]),
            history=self._rows,
        )
        write_mixed_report(folder.path("report.html"), page)
        lines = (
            f"time         {duration(seconds)}",
            f"report       {folder.root / 'report.html'}",
            f"next         vitreous hetero embed {folder.root} -o OUT",
        )
        return Done(verdict, "\n".join(lines))

    def of_classes(self) -> Done:
        """Class images of a model in two dimensions."""
        request, made = self._request, self._model.material
        assert request.clustering is not None
        with RunProgress("classifying", quiet=request.quiet) as bar:
            notify = report_progress(bar, self._stop)
            grouped = classify(
                self._model.sorter,
                request.clustering,
                request.points,
                len(self._data.particles),
                request.working.seed,
                lambda share: notify(0.2 * share),
            )
            farthest = self._data.shift_range(request.shift_range_angstrom)
            classes = averaged(grouped, made, farthest, lambda share: notify(0.2 + 0.8 * share))
        return write_class_images(
            self._folder,
            self._data.particles,
            classes,
            grouped.shown(classes),
            pixel_size_angstrom=self._data.pixel_size_angstrom,
            title=f"{request.files.path.name}: class images",
            history=self._rows,
            seconds=self._journal.seconds(),
        )

    def of_sorting(self) -> Done:
        """Tables and maps of the clusters."""
        if self._model.passes is not None:
            self._folder.config["run"] |= {"passes": self._model.passes}
        with RunProgress("maps", quiet=self._request.quiet) as bar:
            found = self._sorted(bar)
        return write_results(
            self._folder,
            found,
            command=self._request.command,
            title=f"{self._request.files.path.name}: mixed particles",
            history=self._rows,
            seconds=self._journal.seconds(),
        )

    def _sorted(self, bar: RunProgress) -> Sorted:
        made, sorter = self._model.material, self._model.sorter
        latent, clusters = self._model.latent, self._model.clusters
        assert latent is not None
        assert clusters is not None
        place, names = 0, ("maps", "maps along clusters")

        def notify(share: float) -> None:
            bar.update((place + share) / len(names), {"stage": names[place]})
            self._stop.exit_if_requested()

        maps: list[ClassMap | None] = []
        if made.pose is None:
            maps += model_maps(sorter, clusters.centre, notify)
        else:
            posed = posed_images(made.data, made.working, made.images, made.pose)
            maps = reconstruct_class_maps(posed, clusters.label, len(clusters), notify)
        place = 1
        rows = class_rows(clusters.label, len(clusters))
        return Sorted(
            particles=made.data.particles,
            half_set=None if made.pose is None else made.data.half_set,
            latent=latent,
            clusters=clusters,
            pose=made.pose,
            maps=maps,
            traversals=traverse_classes(sorter, latent, rows, self._request.points, notify),
            pixel_size_angstrom=model_pixel_size(made.data, sorter),
            passes=self._model.passes,
            unsettled=self._model.unsettled,
        )
