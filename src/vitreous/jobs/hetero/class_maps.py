"""Clusters and class images of a run: options, errors and words of the command."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.core.images import ImageSource
from vitreous.core.params import Pose
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.methods.hetero.class_maps import ClassMap, PosedImages, ReportProgress
from vitreous.methods.hetero.clustering import Clusters, Space, find_clusters
from vitreous.report.html import angstrom


@dataclass(frozen=True)
class Clustering:
    """Options of the clustering of an embedding."""

    min_cluster: int | None = None
    min_samples: int = 10
    space: Space = "auto"
    assign_all: bool = False


def report_progress(bar: RunProgress, stop: StopSignals) -> ReportProgress:
    """Shows the share that is done, and leaves the program when a signal came."""

    def notify(share: float) -> None:
        bar.update(share)
        stop.exit_if_requested()

    return notify


def clustered(latent: Tensor, options: Clustering, seed: int) -> Clusters:
    """:func:`~vitreous.methods.hetero.clustering.find_clusters` with the errors of a command.

    Raises:
        UsageError: UMAP asked for and not installed, or too few particles.
    """
    try:
        return find_clusters(
            latent,
            options.min_cluster,
            min_samples=options.min_samples,
            space=options.space,
            assign_all=options.assign_all,
            seed=seed,
        )
    except ImportError as error:
        raise UsageError(
            "--space umap: the package umap-learn is not installed; install vitreous[umap], or "
            "give --space pca"
        ) from error
    except ValueError as error:
        raise UsageError(f"clusters: {error}") from error


def posed_images(
    data: WorkingSet, working: ProcessingOptions, images: ImageSource, pose: Pose
) -> PosedImages:
    """Return the images of a working set with their poses, for reconstruction."""
    return PosedImages(
        images=images,
        pose=pose,
        optics=None if working.ignore_ctf else data.particles.optics,
        half_set=data.half_set,
        pixel_size_angstrom=data.pixel_size_angstrom,
        diameter_angstrom=working.mask_diameter_angstrom,
        symmetry=working.symmetry,
        seed=working.seed,
        device=data.device,
    )


def resolution_text(class_map: ClassMap) -> str:
    """Return the resolution of a class map in words; empty where it has no half maps."""
    if class_map.halves is None:
        return ""
    return f"{angstrom(class_map.halves.headline[0])} at 0.143"


def cluster_verdict(clusters: Clusters) -> str:
    """Return the sizes of the clusters as one sentence without full stop.

    >>> import torch
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
