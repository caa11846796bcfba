"""The runs behind ``vitreous hetero embed``, ``cluster`` and ``traverse``."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.core.images import ImageCache
from vitreous.data.working_images import SignedImages
from vitreous.io.atomic import atomic_write
from vitreous.io.star import read_star
from vitreous.jobs.hetero.class_maps import Clustering, clustered, posed_images, report_progress
from vitreous.jobs.hetero.output import files_of, latent_columns, read_latents, write_traversals
from vitreous.jobs.hetero.recipe import load_trained
from vitreous.jobs.hetero.report import Sorted, write_results
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet, open_working_set
from vitreous.jobs.run.class_tables import CLASS, UNSORTED, class_name, write_tables
from vitreous.jobs.run.folder import CHECKPOINTS, CONFIG, OutputFolder
from vitreous.jobs.run.progress import RunProgress, duration
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.summary import Done, subtitle
from vitreous.methods.hetero.class_maps import (
    ClassMap,
    PosedImages,
    class_rows,
    embed_all,
    model_maps,
    reconstruct_class_maps,
    traverse_classes,
)
from vitreous.report.mixed import ClusterShown, MixedReport, write_mixed_report

Maps = Literal["auto", "model", "reconstruct", "none"]


@dataclass(frozen=True)
class EmbedRequest:
    """The options of ``embed``; see its help."""

    model: Path
    output: Path
    particles: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class ClusterRequest:
    """The options of ``cluster``; see its help."""

    files: ParticleFiles
    output: Path
    working: ProcessingOptions
    model: Path | None = None
    model_particles: Path | None = None
    maps: Maps = "auto"
    clustering: Clustering = field(default_factory=Clustering)
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class TraverseRequest:
    """The options of ``traverse``; see its help."""

    table: Path
    model: Path
    output: Path
    model_particles: Path | None = None
    classes: tuple[int, ...] = ()
    points: int = 5
    overwrite: bool = False
    device: str = "auto"
    threads: int = 0
    quiet: bool = False


def embed(request: EmbedRequest) -> Done:
    """Latents of all particles that a model was trained on.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    import safetensors.torch

    started = time.monotonic()
    trained = load_trained(
        request.model,
        request.particles,
        device=request.device,
        threads=request.threads,
        quiet=request.quiet,
    )
    particles = trained.material.data.particles
    folder = _folder(
        request.output,
        "hetero embed",
        {},
        {"particles": trained.recipe.files.path},
        request.model,
        overwrite=request.overwrite,
        names=("particles.star", "latents.safetensors"),
    )
    with folder, StopSignals() as stop, RunProgress("embedding", quiet=request.quiet) as bar:
        latent = embed_all(trained.sorter, len(particles), report_progress(bar, stop))
        pose = trained.material.pose
        half = None if pose is None else trained.material.data.half_set
        write_tables(folder, particles, latent_columns(latent), pose=pose, half_set=half)
        saved = safetensors.torch.save({"latent": latent.contiguous()})
        path = folder.path("latents.safetensors")
        atomic_write(path, lambda stream: stream.write(saved))
        verdict = f"{len(particles):,} particles at places of {latent.shape[1]} dimensions"
        folder.config["run"] |= {"verdict": verdict}
        folder.finish()
    table = folder.root / "particles.star"
    lines = (
        f"time         {duration(time.monotonic() - started)}",
        f"table        {table}",
        f"next         vitreous hetero cluster {table} --model {request.model} -o OUT",
    )
    return Done(verdict, "\n".join(lines))


def cluster(request: ClusterRequest) -> Done:
    """Clusters of a table with latents, and their maps.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    started = time.monotonic()
    data = open_working_set(request.files, request.working)
    latent = read_latents(request.files.path, len(data.particles))
    way = _way(request, data)
    trained = None
    if way == "model":
        assert request.model is not None
        trained = load_trained(
            request.model,
            request.model_particles,
            device=request.working.device,
            threads=request.working.threads,
        )
    options = {**asdict(request.clustering), **_asked(request.working, data), "maps": way}
    folder = _folder(
        request.output,
        "hetero cluster",
        options,
        {"particles": request.files.path},
        request.model,
        overwrite=request.overwrite,
        names=("particles.star", UNSORTED, "report.html"),
    )
    with folder, StopSignals() as stop, RunProgress("clustering", quiet=request.quiet) as bar:
        notify = report_progress(bar, stop)
        clusters = clustered(latent, request.clustering, request.working.seed)
        maps: list[ClassMap | None] = []
        pixel = data.pixel_size_angstrom
        if trained is not None:
            maps += model_maps(trained.sorter, clusters.centre, notify)
            pixel = trained.pixel_size_angstrom
        elif way == "reconstruct":
            posed = _posed(request, data)
            maps = reconstruct_class_maps(posed, clusters.label, len(clusters), notify)
        rows = class_rows(clusters.label, len(clusters))
        found = Sorted(
            particles=data.particles,
            half_set=data.half_set if way == "reconstruct" else None,
            latent=latent,
            clusters=clusters,
            pose=None,
            maps=maps,
            traversals=traverse_classes(None, latent, rows, 2, notify),
            pixel_size_angstrom=pixel,
        )
        done = write_results(
            folder,
            found,
            command="hetero cluster",
            title=f"{request.files.path.name}: clusters",
            seconds=time.monotonic() - started,
        )
        folder.finish()
    return done


def traverse(request: TraverseRequest) -> Done:
    """Maps along clusters.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal.
    """
    started = time.monotonic()
    table = read_star(request.table).blocks.get("particles")
    if table is None or CLASS not in table:
        raise InputError(
            f"{request.table}: column _{CLASS}: missing; give the particles.star of vitreous "
            "hetero cluster"
        )
    label = torch.from_numpy(table.integers(CLASS, request.table))
    latent = read_latents(request.table, len(label))
    known = sorted(set(label.tolist()) - {0})
    numbers = request.classes or tuple(known)
    strange = sorted(set(numbers) - set(known))
    if strange or not numbers:
        told = ", ".join(map(str, known)) or "none"
        raise UsageError(f"--class {strange[0] if strange else ''}: the table has classes {told}")
    trained = load_trained(
        request.model,
        request.model_particles,
        device=request.device,
        threads=request.threads,
        quiet=request.quiet,
    )
    pixel = trained.pixel_size_angstrom
    options = {"points": request.points, "classes": list(numbers)}
    folder = _folder(
        request.output,
        "hetero traverse",
        options,
        {"table": request.table},
        request.model,
        overwrite=request.overwrite,
        names=("report.html",),
    )
    with folder, StopSignals() as stop, RunProgress("traversing", quiet=request.quiet) as bar:
        rows = [(label == number).nonzero().flatten() for number in numbers]
        ways = traverse_classes(
            trained.sorter, latent, rows, request.points, report_progress(bar, stop)
        )
        write_traversals(folder, ways, pixel, numbers)
        shown = [
            ClusterShown(
                f"class {number}",
                len(members_),
                path=tuple(v.numpy() for v in way.maps),
                share=way.path.share,
            )
            for number, members_, way in zip(numbers, rows, ways, strict=True)
        ]
        verdict = f"{request.points} maps along each of {len(numbers)} classes"
        folder.config["run"] |= {"verdict": verdict}
        page = MixedReport(
            title=f"{request.table.name}: variation inside classes",
            subtitle=subtitle("hetero traverse"),
            verdict=verdict + ".",
            clusters=shown,
            particles=len(label),
        )
        write_mixed_report(folder.path("report.html"), page)
        folder.finish()
    lines = (
        f"time         {duration(time.monotonic() - started)}",
        f"maps         {folder.root / (class_name(numbers[0]) + '_pc1_1.mrc')} and so on",
        f"report       {folder.root / 'report.html'}",
    )
    return Done(verdict, "\n".join(lines))


def _folder(
    path: Path,
    command: str,
    options: dict[str, Any],
    inputs: dict[str, Path],
    model: Path | None,
    *,
    overwrite: bool,
    names: tuple[str, ...],
) -> OutputFolder:
    if model is not None:
        inputs |= {"model": model / CONFIG, "state": _state(model)}
    return OutputFolder(
        path,
        command,
        options,
        inputs=inputs,
        outputs=files_of(path, *names),
        overwrite=overwrite,
    )


def _state(model: Path) -> Path:
    """The newest record in a model's checkpoints, which holds the hash of its tensors."""
    return max((model / CHECKPOINTS).glob("step_*.json"))


def _asked(working: ProcessingOptions, data: WorkingSet) -> dict[str, Any]:
    return {
        "box": data.box_size,
        "sym": working.symmetry,
        "mask_diameter": working.mask_diameter_angstrom,
        "invert": working.invert,
        "ignore_ctf": working.ignore_ctf,
        "seed": working.seed,
    }


def _way(request: ClusterRequest, data: WorkingSet) -> Maps:
    """How maps are made.

    Raises:
        UsageError: not possible with what was given.
    """
    posed = data.particles.pose is not None
    if request.maps == "auto":
        if posed:
            return "reconstruct"
        return "none" if request.model is None else "model"
    if request.maps == "model" and request.model is None:
        raise UsageError("--maps model: give the folder of the model as well (--model)")
    if request.maps == "reconstruct" and not posed:
        raise UsageError("--maps reconstruct: the table has no poses; give --maps model")
    return request.maps


def _posed(request: ClusterRequest, data: WorkingSet) -> PosedImages:
    particles, working = data.particles, request.working
    assert particles.pose is not None
    images = SignedImages(particles, invert=working.invert)
    cached = ImageCache(images, data.box_size, torch.device("cpu"))
    return posed_images(data, working, cached, particles.pose)
