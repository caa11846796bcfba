"""The runs behind ``vitreous hetero train``, ``hetero run`` and ``classify2d``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitreous.cli import refine_run, sorters
from vitreous.cli.classify2d_run import CLASS_IMAGES, CLASSES, classify, write_classes
from vitreous.cli.common import StopSignals, say
from vitreous.cli.first_maps import Search
from vitreous.cli.hetero_maps import (
    ClassMap,
    Clustering,
    PosedImages,
    clustered,
    embed_all,
    heeding,
    members,
    model_maps,
    reconstructed_maps,
    traverse_all,
)
from vitreous.cli.hetero_output import UNSORTED, files_of
from vitreous.cli.hetero_recipe import (
    CONSENSUS,
    POSES,
    Recipe,
    consensus_poses,
    material,
    model_pixel_size,
)
from vitreous.cli.hetero_results import (
    Done,
    Sorted,
    settings_shown,
    subtitle,
    write_results,
)
from vitreous.cli.hetero_rounds import search_again
from vitreous.cli.hetero_training import Training, open_history
from vitreous.cli.history import HistoryFile
from vitreous.cli.output import CONFIG, OutputFolder
from vitreous.cli.particle_sources import ParticleFiles
from vitreous.cli.progress import RunProgress, duration
from vitreous.cli.sorters import Material, Method
from vitreous.cli.working_set import Working, WorkingSet, open_working_set
from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Pose
from vitreous.data.tables import pose_columns
from vitreous.io.star import write_star
from vitreous.report.mixed import MixedReport, write_mixed_report
from vitreous.solvers.sorter import Sorter

FILES = ("particles.star", POSES, UNSORTED, CLASSES, CLASS_IMAGES, "history.jsonl", "report.html")
ROUNDS = 3
_CONSENSUS_SETTINGS = {"rounds": 12, "reject": False}  # every particle is to be sorted


@dataclass(frozen=True)
class Request:
    """The options of the commands; see their help.

    Args:
        method: ``gan`` or ``align``; ``classes`` for ``classify2d``.
        config: TOML of solver settings.
        overrides: of them, by options.
        search: how a start is found where poses have to be.
        clustering: None for ``train``.
        points: maps along each cluster; class images of each for ``classify2d``.
        rounds: of poses under several maps; None: :data:`ROUNDS` where poses had to be found.
        shift: how far particles are off centre, for ``gan``.
    """

    files: ParticleFiles
    output: Path
    working: Working
    method: Method = "gan"
    config: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    clustering: Clustering | None = None
    points: int = 5
    rounds: int | None = None
    shift: str = "none"
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    @property
    def command(self) -> str:
        """Which of the three it is."""
        if self.method == "classes":
            return "classify2d"
        return "hetero train" if self.clustering is None else "hetero run"


def run(request: Request) -> Done:
    """Train, and for ``run`` embed, cluster, make maps, and report.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    if request.rounds and request.method != "align":
        raise UsageError("--rounds: needs poses; leave out --no-align")
    data = open_working_set(request.files, request.working, check_all=True, quiet=request.quiet)
    settings = sorters.settle(
        request.method, request.config, request.overrides, request.working, data
    )
    recipe = Recipe(request.files, request.working, request.method, settings, request.shift)
    folder = _folder(request, recipe, data)
    with folder, StopSignals() as stop:
        if folder.was_finished:
            say(f"{folder.root}: the run was finished already; its results are written once more")
        rounds: list[dict[str, Any]] = []
        pose = _poses(request, folder, data) if request.method == "align" else None
        if pose is not None:
            pose, rounds = _second_poses(request, recipe, folder, data, pose, stop)
        made = material(recipe, data, pose)
        sorter = sorters.build(request.method, settings, made)
        training = Training(sorter, folder, stop, quiet=request.quiet)
        with open_history(folder, training.step) as history:
            for row in rounds:
                history.add(row)
            training.run(history)
            if request.clustering is None:
                done = _end_of_training(folder, request, training, history)
            elif request.method == "classes":
                with RunProgress("classifying", quiet=request.quiet) as bar:
                    classes = classify(
                        sorter,
                        request.clustering,
                        request.points,
                        len(data.particles),
                        request.working.seed,
                        heeding(bar, stop),
                    )
                done = write_classes(
                    folder,
                    data.particles,
                    classes,
                    pixel_size_angstrom=model_pixel_size(data, sorter),
                    title=f"{request.files.path.name}: class images",
                    history=history.rows,
                    seconds=training.seconds(),
                )
            else:
                with RunProgress("sorting", quiet=request.quiet) as bar:
                    found = sort(request, made, sorter, bar, stop)
                done = write_results(
                    folder,
                    found,
                    command=request.command,
                    title=f"{request.files.path.name}: mixed particles",
                    history=history.rows,
                    seconds=training.seconds(),
                )
        folder.finish()
    return done


def sort(
    request: Request,
    made: Material,
    sorter: Sorter,
    bar: RunProgress,
    stop: StopSignals,
) -> Sorted:
    """Everything between training and files."""
    assert request.clustering is not None
    particles, place = made.data.particles, 0
    stages, names = 4, ("embedding", "clusters", "maps", "maps along clusters")

    def notify(share: float) -> None:
        bar.update((place + share) / stages, {"stage": names[place]})
        stop.exit_if_requested()

    latent = embed_all(sorter, len(particles), notify)
    place = 1
    notify(0.0)
    clusters = clustered(latent, request.clustering, request.working.seed)
    place = 2
    maps: list[ClassMap | None] = []
    if made.pose is None:
        maps += model_maps(sorter, clusters.centre, notify)
    else:
        posed = PosedImages.of(made.data, made.working, made.images, made.pose)
        maps = reconstructed_maps(posed, clusters.label, len(clusters), notify)
    place = 3
    rows = members(clusters.label, len(clusters))
    return Sorted(
        particles=particles,
        half_set=None if made.pose is None else made.data.half_set,
        latent=latent,
        clusters=clusters,
        pose=made.pose,
        maps=maps,
        traversals=traverse_all(sorter, latent, rows, request.points, notify),
        pixel_size_angstrom=model_pixel_size(made.data, sorter),
    )


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
    if request.clustering is not None:
        options |= asdict(request.clustering)
        options |= {"points": request.points, "rounds": request.rounds}
    return OutputFolder(
        request.output,
        request.command,
        options,
        inputs={"particles": request.files.path},
        outputs=files_of(request.output, *FILES),
        machine={"device": str(data.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=True,
        changeable=False,
    )


def _poses(request: Request, folder: OutputFolder, data: WorkingSet) -> Pose:
    """The table's, or those of one structure that all particles are refined to.

    Raises:
        InputError: the particles agree on no structure.
    """
    if data.particles.pose is not None:
        return data.particles.pose
    target = folder.path(CONSENSUS, CONFIG).parent
    begun = (target / CONFIG).is_file()
    if not (folder.resuming and (target / "particles.star").is_file()):
        say("no poses in the table: all particles are first refined to one structure")
        found = refine_run.refine(
            refine_run.Request(
                request.files,
                target,
                request.working,
                search=request.search,
                settings=_CONSENSUS_SETTINGS,
                overwrite=begun and not folder.resuming,
                resume=begun and folder.resuming,
                quiet=request.quiet,
            )
        )
        if not found.solved:
            raise InputError(
                f"{request.files.path}: no structure that all particles agree on, so there are no "
                f"poses to sort them with: {found.verdict}"
            )
    return _found_poses(folder, data)


def _second_poses(
    request: Request,
    recipe: Recipe,
    folder: OutputFolder,
    data: WorkingSet,
    pose: Pose,
    stop: StopSignals,
) -> tuple[Pose, list[dict[str, Any]]]:
    """Poses under the maps of a first sorting's clusters, and the numbers of every round.

    The first sorting is not saved: if it is stopped it begins anew.
    """
    rounds = request.rounds
    if rounds is None:
        rounds = ROUNDS if data.particles.pose is None else 0
    if rounds == 0:
        return pose, []
    if folder.resuming and folder.path(POSES).is_file():
        return _found_poses(folder, data), []
    made, rows = material(recipe, data, pose), list[dict[str, Any]]()
    sorter = sorters.build(request.method, recipe.settings, made)
    share = [0.0, 0.8]  # where the stage at hand begins, and how much it is
    with RunProgress("sorting a first time", quiet=request.quiet) as bar:

        def notify(done: float) -> None:
            bar.update(share[0] + share[1] * done)
            stop.exit_if_requested()

        while not sorter.done:
            sorter.step()
            notify(sorter.progress)
        share[:] = [0.8, 0.1]
        latent = embed_all(sorter, len(data.particles), notify)
        clusters = clustered(latent, request.clustering or Clustering(), request.working.seed)
        if len(clusters) < 2:
            return pose, []
        posed = PosedImages.of(data, made.working, made.images, pose)
        maps = reconstructed_maps(posed, clusters.label, len(clusters), notify)
        share[:] = [0.9, 0.1]
        pose = search_again(posed, maps, rounds, notify=notify, record=rows.append)
    columns = pose_columns(pose)
    document = data.particles.to_star_document(relative_to=folder.root, **columns)
    write_star(folder.path(POSES), document)
    return pose, rows


def _found_poses(folder: OutputFolder, data: WorkingSet) -> Pose:
    """As the files of this run hold them."""
    pose = consensus_poses(folder.root, data)
    assert pose is not None
    return pose


def _end_of_training(
    folder: OutputFolder, request: Request, training: Training, history: HistoryFile
) -> Done:
    seconds = training.seconds()
    verdict = f"trained in {training.step:,} steps"
    folder.config["run"] |= {"verdict": verdict, "seconds": round(seconds, 1)}
    page = MixedReport(
        title=f"{request.files.path.name}: training on mixed particles",
        subtitle=subtitle(request.command),
        verdict=f"Trained in {training.step:,} steps. See vitreous hetero embed.",
        key_numbers={"steps": f"{training.step:,}", "time": duration(seconds)},
        settings=settings_shown(folder.config["options"]),
        history=history.rows,
    )
    write_mixed_report(folder.path("report.html"), page)
    lines = (
        f"time         {duration(seconds)}",
        f"report       {folder.root / 'report.html'}",
        f"next         vitreous hetero embed {folder.root} -o OUT",
    )
    return Done(verdict, "\n".join(lines))
