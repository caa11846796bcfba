"""Latents, maps of clusters and maps along them, as the ``vitreous hetero`` commands make them."""

from __future__ import annotations

from torch import Tensor

from vitreous.core.errors import UsageError
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.methods.hetero.class_maps import Clustering, Notify
from vitreous.methods.hetero.clustering import (
    Clusters,
    find_clusters,
)


def report_progress(bar: RunProgress, stop: StopSignals) -> Notify:
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
