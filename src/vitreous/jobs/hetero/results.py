"""Results of ``hetero run``: tables with latents and classes, maps, report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.resolution import angstrom
from vitreous.data.maps import write_fsc_csv
from vitreous.jobs.hetero.options import HeteroOptions
from vitreous.jobs.hetero.passes import DOUBT, TrainedModel
from vitreous.jobs.reconstruct.output import with_warnings, write_maps
from vitreous.jobs.run.class_tables import (
    CLASS,
    COMPONENT,
    PROBABILITY,
    axes_names,
    class_name,
    clustering_columns,
    files_of_classes,
    latent_columns,
    write_tables,
)
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import JobResult, page_head, rows_of_text
from vitreous.maps.fsc_warnings import OUTLINE_ONLY, fsc_warnings
from vitreous.maps.half_map_pair import curves_by_name
from vitreous.methods.hetero.class_maps import ClassMap, Traversal, class_rows
from vitreous.methods.hetero.clustering import Clusters
from vitreous.report.figures import Array
from vitreous.report.mixed import ClusterSummary, MixedReport, write_mixed_report

_MAX_LATENTS_SHOWN = 6
_SMALL = 0.02  # of the particles: clusters below it get a warning


@dataclass(frozen=True)
class HeteroResult(JobResult):
    """A finished run, or stage of a run, of ``hetero``."""

    trained: TrainedModel  # the model, its data, and the latents of all particles
    clusters: Clusters | None = None  # found by density; None where the run ended before them
    # of the classes; None for classes of too few particles, empty where none were made
    maps: Sequence[ClassMap | None] = ()
    traversals: Sequence[Traversal] = ()  # of the classes


@dataclass(frozen=True)
class ClusteredParticles:
    """Particles with their clusters, and the maps of these."""

    trained: TrainedModel  # model, data and latents
    clusters: Clusters  # found by density
    # of the clusters; None for clusters of too few particles, empty where none were made
    maps: Sequence[ClassMap | None]
    traversals: Sequence[Traversal]  # of the clusters
    reconstructed: bool  # whether the maps are reconstructions from the particles

    @property
    def label(self) -> Tensor:
        """Cluster of each particle from 0 on, -1 for none, long ``(n,)``."""
        return self.clusters.label

    @cached_property
    def doubts(self) -> list[list[str]]:
        """Sentences on what makes the FSC between the half maps of each cluster doubtful."""
        pixel = self.trained.data.model_pixel_size(self.trained.model)
        halves = [None if one is None else one.halves for one in self.maps]
        return [[] if pair is None else fsc_warnings(pair, pixel) for pair in halves]

    @property
    def fsc_warnings(self) -> list[str]:
        """The same with the names of the clusters."""
        return [f"Class {k}: {text}" for k, texts in enumerate(self.doubts, 1) for text in texts]


def write_results(job: Job, options: HeteroOptions, clustered: ClusteredParticles) -> HeteroResult:
    """Write every output but checkpoints and history, and finish the job.

    Raises:
        ResourceError: the disk is full.
    """
    trained, clusters, seconds = clustered.trained, clustered.clusters, job.seconds()
    for name in files_of_classes(job.path("map.mrc").parent):
        job.path(name).unlink()
    _write_maps(job, options, clustered)
    table = write_tables(
        job.folder,
        trained.data.working_set.particles,
        latent_columns(trained.latent) | _cluster_columns(clustered),
        pose=trained.data.pose,
        half_set=None if not clustered.reconstructed else trained.data.working_set.half_set,
        label=clustered.label,
    )
    verdict, numbers = cluster_verdict(clusters), _numbers(clustered)
    doubt = [job.state[DOUBT]] if DOUBT in job.state else []
    warnings = (*doubt, *_warnings(clustered))
    title = f"{options.particles.name}: mixed particles"
    page = MixedReport(
        **page_head(job.folder, title, verdict, warnings),
        key_numbers=numbers | {"time": duration(seconds)},
        plane=clusters.plane.numpy(),
        axes=axes_names(clusters.space),
        label=(clustered.label + 1).numpy(),
        columns=_colour_columns(clustered),
        clusters=_cluster_summaries(clustered),
        particles=len(clustered.label),
        table=table,
        pixel_size_angstrom=trained.data.model_pixel_size(trained.model),
        history=training_rows(job),
    )
    write_mixed_report(job.path("report.html"), page)
    text = _text(job.folder.root, clustered, numbers, seconds)
    text = with_warnings([*doubt, *clustered.fsc_warnings], text)
    job.finish(
        {
            "verdict": verdict,
            "clusters": len(clusters),
            "sizes": clusters.sizes.tolist(),
            "unsorted": int((clustered.label < 0).sum()),
            "space": clusters.space,
            "seconds": round(seconds, 1),
            **({} if trained.passes is None else {"passes": trained.passes}),
        }
    )
    results = clustered.maps, clustered.traversals
    return HeteroResult(None, verdict, text, job.folder.root, trained, clusters, *results)


def write_trained(job: Job, options: HeteroOptions, trained: TrainedModel) -> HeteroResult:
    """Write the report of a run that ends with the trained model, and finish the job."""
    folder, seconds = job.folder.root, job.seconds()
    verdict = f"trained in {job.step:,} steps"
    page = MixedReport(
        **page_head(job.folder, f"{options.particles.name}: training on mixed particles", verdict),
        key_numbers={"steps": f"{job.step:,}", "time": duration(seconds)},
        history=training_rows(job),
    )
    write_mixed_report(job.path("report.html"), page)
    job.finish({"verdict": verdict, "seconds": round(seconds, 1)})
    rows = {
        "time": duration(seconds),
        "report": f"{folder / 'report.html'}",
        "next": "the same with `resume`: latents, clusters and maps",
    }
    return HeteroResult(None, verdict, rows_of_text(rows), folder, trained)


def write_latents(job: Job, trained: TrainedModel) -> HeteroResult:
    """Write the latents of all particles, as a table and as a tensor, and finish the job."""
    import safetensors.torch

    from vitreous.io.atomic import atomic_file

    data, latent = trained.data, trained.latent
    half_set = None if data.pose is None else data.working_set.half_set
    columns = latent_columns(latent)
    write_tables(job.folder, data.working_set.particles, columns, pose=data.pose, half_set=half_set)
    saved = safetensors.torch.save({"latent": latent.contiguous()})
    with atomic_file(job.path("latents.safetensors")) as stream:
        stream.write(saved)
    verdict = f"{len(latent):,} particles have latents of {latent.shape[1]} dimensions"
    job.finish({"verdict": verdict})
    folder = job.folder.root
    rows = {
        "time": duration(job.seconds()),
        "table": f"{folder / 'particles.star'}",
        "next": "the same with `stage=cluster`",
    }
    return HeteroResult(None, verdict, rows_of_text(rows), folder, trained)


def training_rows(job: Job) -> list[dict[str, Any]]:
    """Return the rows of the history that are about the training of models."""
    first = int(job.state.get("training_begins", 0))
    return [row for row in job.history.rows[first:] if "round" not in row]


def cluster_verdict(clusters: Clusters) -> str:
    """Return the sizes of the clusters as one sentence without full stop.

    >>> from vitreous.methods.hetero.clustering import find_clusters
    >>> cluster_verdict(find_clusters(torch.zeros(50, 2), space="pca"))
    'one cluster of 50 particles: nothing separates them by density'
    """
    total = len(clusters.label)
    if len(clusters) == 1:
        return f"one cluster of {total:,} particles: nothing separates them by density"
    sizes = ", ".join(f"{size:,}" for size in clusters.sizes.tolist())
    noise = int((clusters.label < 0).sum())
    unclustered = f"; {noise:,} in none" if noise else ""
    return f"{len(clusters)} clusters, of {sizes} particles{unclustered}"


def _cluster_columns(clustered: ClusteredParticles) -> dict[str, Any]:
    """Return class (0: none), its probability, the plane, and the coordinate along the class."""
    along = torch.zeros(len(clustered.label))
    for k, traversal in enumerate(clustered.traversals):
        along[clustered.label == k] = traversal.path.score
    columns = clustering_columns(clustered.clusters)
    return {CLASS: (clustered.label + 1).numpy(), **columns, COMPONENT: along.numpy()}


def _write_maps(job: Job, options: HeteroOptions, clustered: ClusteredParticles) -> None:
    """Write the maps of the classes, their half maps and FSC, and the maps along them."""
    pixel = clustered.trained.data.model_pixel_size(clustered.trained.model)
    for number, class_map in enumerate(clustered.maps, 1):
        if class_map is None:
            continue
        name, halves = class_name(number), class_map.halves
        volumes = {f"{name}.mrc": class_map.volume}
        if halves is not None:
            volumes |= {f"{name}_half1.mrc": halves.half1, f"{name}_half2.mrc": halves.half2}
            curves, path = curves_by_name(halves), job.path(f"{name}_fsc.csv")
            write_fsc_csv(path, curves, len(class_map.volume), pixel)
        write_maps(job.folder, volumes, pixel)
    for number, traversal in enumerate(clustered.traversals, 1):
        if options.classes and number not in options.classes:
            continue
        name = class_name(number)
        volumes = {f"{name}_pc1_{k}.mrc": volume for k, volume in enumerate(traversal.maps, 1)}
        write_maps(job.folder, volumes, pixel)


def _numbers(clustered: ClusteredParticles) -> dict[str, str]:
    """Return the key numbers of the report, which are lines on the terminal too."""
    numbers = {
        "particles": f"{len(clustered.label):,}",
        "clusters": str(len(clustered.clusters)),
        "in none": f"{100 * float((clustered.label < 0).float().mean()):.1f} %",
        "latents": str(clustered.trained.latent.shape[1]),
    }
    if clustered.trained.passes is not None:
        numbers["passes"] = str(clustered.trained.passes)
    return numbers


def _colour_columns(clustered: ClusteredParticles) -> dict[str, Array]:
    """Return the columns that can colour the embedding, besides the class."""
    particles, latent = clustered.trained.data.working_set.particles, clustered.trained.latent
    columns = {
        f"latent {i + 1}": column.numpy() for i, column in enumerate(latent.mT[:_MAX_LATENTS_SHOWN])
    }
    own = _cluster_columns(clustered)
    if clustered.traversals:
        columns["along the class"] = own[COMPONENT]
    columns["probability"] = own[PROBABILITY]
    if particles.has_ctf:
        optics = particles.optics
        defocus = 0.5 * (optics.defocus_u_angstrom + optics.defocus_v_angstrom)
        columns["defocus (Å)"] = defocus.cpu().numpy()
    columns["micrograph"] = particles.micrograph_id.numpy()
    return columns


def _cluster_summaries(clustered: ClusteredParticles) -> list[ClusterSummary]:
    summaries = []
    for k, rows in enumerate(class_rows(clustered.label, len(clustered.clusters))):
        class_map = clustered.maps[k] if clustered.maps else None
        traversal = clustered.traversals[k] if clustered.traversals else None
        resolution = ""
        if class_map is not None and class_map.halves is not None:
            resolution = f"{angstrom(class_map.halves.headline[0])} at 0.143"
            if OUTLINE_ONLY in clustered.doubts[k]:
                resolution = "no resolution"
        summaries.append(
            ClusterSummary(
                name=f"class {k + 1}",
                size=len(rows),
                volume=None if class_map is None else class_map.volume.numpy(),
                resolution=resolution,
                path=() if traversal is None else tuple(v.numpy() for v in traversal.maps),
                share=None if traversal is None else traversal.path.share,
            )
        )
    return summaries


def _warnings(clustered: ClusteredParticles) -> tuple[str, ...]:
    warnings = list(clustered.fsc_warnings)
    if clustered.trained.unsettled:
        warnings.append(
            "The clusters still changed in the last pass; give more `passes`, or look at what the "
            "classes have in common."
        )
    noise = float((clustered.label < 0).float().mean())
    if noise > 0.2:
        warnings.append(
            f"{100 * noise:.0f} % of the particles are in no cluster; `assign_all` gives them to "
            "the nearest one."
        )
    sizes = clustered.clusters.sizes.tolist()
    small = [str(k + 1) for k, size in enumerate(sizes) if size < _SMALL * len(clustered.label)]
    if small:
        warnings.append(
            f"Classes of few particles, whose maps must be looked at first: {', '.join(small)}."
        )
    if any(one is not None and one.halves is not None for one in clustered.maps):
        warnings.append(
            "The half maps of a class share the model that chose its particles: their FSC is too "
            "high where the model is wrong. Refine each class by itself before quoting it."
        )
    return tuple(warnings)


def _text(
    folder: Path, clustered: ClusteredParticles, numbers: Mapping[str, str], seconds: float
) -> str:
    rows = dict(numbers)
    for summary in _cluster_summaries(clustered):
        resolution = f", {summary.resolution}" if summary.resolution else ""
        rows[summary.name] = f"{summary.size:,} particles{resolution}"
    first = folder / f"{class_name(1)}.star"
    rows |= {
        "time": duration(seconds),
        "tables": f"{folder / 'particles.star'}, one for each class from {first} on",
        "report": f"{folder / 'report.html'}",
    }
    return rows_of_text(rows)
