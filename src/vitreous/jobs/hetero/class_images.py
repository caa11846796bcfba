"""What ``vitreous classify2d --no-align`` does after training: classes by k-means in clusters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.random import generator
from vitreous.io.star import format_column
from vitreous.jobs.class2d.output import ClassImages, Shown, aligned_classes
from vitreous.jobs.hetero.class_maps import Clustering, clustered
from vitreous.jobs.hetero.output import latent_columns
from vitreous.jobs.hetero.report import axes_names
from vitreous.jobs.hetero.solvers import TrainingData
from vitreous.jobs.run.class_tables import PLANE, PROBABILITY
from vitreous.methods.class2d.class_averages import ClassAverages, ClassConfig
from vitreous.methods.hetero.class_maps import ReportProgress, class_rows, embed_all
from vitreous.methods.hetero.clustering import Clusters, centroids
from vitreous.methods.hetero.latent_model import LatentModel

CLUSTER = "vitreousCluster"


@dataclass(frozen=True)
class Grouped:
    """Classes that were found in an embedding.

    Args:
        latent: ``(n, d)``.
        clusters: found by density; every particle is in one.
        label: long ``(n,)``, class from 0 on; those of a cluster follow one another.
        cluster_of: long ``(k,)``, cluster of each class, from 0 on.
    """

    latent: Tensor
    clusters: Clusters
    label: Tensor
    cluster_of: Tensor

    def shown(self, classes: ClassImages) -> Shown:
        """For tables and page."""
        clusters, latent = self.clusters, self.latent
        count = len(clusters)
        columns = latent_columns(latent) | {
            CLUSTER: (clusters.label + 1).numpy(),
            PROBABILITY: clusters.probability.numpy(),
            PLANE[0]: clusters.plane[:, 0].numpy(),
            PLANE[1]: clusters.plane[:, 1].numpy(),
        }
        colours = {f"latent {i + 1}": column.numpy() for i, column in enumerate(latent.mT[:6])}
        return Shown(
            f"{classes.words} in {'one cluster' if count == 1 else f'{count} clusters'}",
            columns,
            {CLUSTER: format_column((self.cluster_of + 1).numpy())},
            {"clusters": count, "space": clusters.space},
            {
                "plane": clusters.plane.numpy(),
                "axes": axes_names(clusters.space),
                "label": (self.label + 1).numpy(),
                "columns": {"cluster": (clusters.label + 1).numpy(), **colours},
            },
        )


def classify(
    sorter: LatentModel,
    options: Clustering,
    most: int,
    count: int,
    seed: int,
    notify: ReportProgress,
) -> Grouped:
    """Classes of a trained model in two dimensions.

    Args:
        sorter: whose embedding is grouped.
        options: of the clusters; all particles are given to one.
        most: classes of each cluster.
        count: of particles.
        seed: of k-means.
        notify: told the share that is done.

    Raises:
        DivergedError: latents that are not finite.
        UsageError: clusters cannot be found.
    """
    latent = embed_all(sorter, count, notify)
    clusters = clustered(latent, options, seed)
    label = torch.zeros(count, dtype=torch.long)
    owners: list[int] = []
    for k, rows in enumerate(class_rows(clusters.label, len(clusters))):
        _, group = centroids(latent[rows], most, seed=seed)
        label[rows] = group + len(owners)
        owners += [k] * (int(group.max()) + 1)
    return Grouped(latent, clusters, label, torch.tensor(owners))


def averaged(
    grouped: Grouped, material: TrainingData, shift_range_angstrom: float, notify: ReportProgress
) -> ClassImages:
    """The particles of each class, brought onto one another.

    Args:
        grouped: the classes.
        material: what the model was trained on.
        shift_range_angstrom: farthest shift of a particle.
        notify: told the share that is done.
    """
    data, seed = material.data, material.working.seed
    solver = ClassAverages(
        material.images,
        material.optics,
        data.pixel_size_angstrom,
        data.half_set,
        ClassConfig(
            classes=1,
            shift_range_angstrom=shift_range_angstrom,
            diameter_angstrom=material.working.mask_diameter_angstrom,
        ),
        generator=generator(seed, "class averages"),
        device=data.device,
    )
    return aligned_classes(solver, grouped.label, seed, notify)
