"""``classify2d`` without alignment: classes by k-means in the clusters of a VAE-GAN's latents."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vitreous.core.images import ImageSubset
from vitreous.core.random import generator
from vitreous.io.star import format_column
from vitreous.jobs.class2d.options import Classify2dOptions
from vitreous.jobs.class2d.output import ClassDetails, class_count_text
from vitreous.jobs.hetero.passes import clustered
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.class_tables import axes_names, clustering_columns, latent_columns
from vitreous.methods.class2d.class_averages import (
    ClassAssignments,
    ClassAverages,
    ClassAveragesResult,
    ClassConfig,
)
from vitreous.methods.hetero.class_maps import class_rows
from vitreous.methods.hetero.clustering import centroids

CLUSTER = "vitreousCluster"
_IN_EACH_CLUSTER = 16  # classes, by default
_ROUNDS = 12  # of a class whose particles are known


def classify_latents(latent: Tensor, options: Classify2dOptions) -> tuple[Tensor, ClassDetails]:
    """Divide every cluster of the latents ``(n, d)`` into classes by k-means.

    Returns:
        class of every particle from 0 on, long ``(n,)``, consecutive in every cluster; and what
        tables and report say of the classes.

    Raises:
        UsageError: the latents cannot be clustered.
    """
    clusters = clustered(latent, options, assign_all=True)
    label = torch.zeros(len(latent), dtype=torch.long)
    cluster_of_class: list[int] = []  # from 1 on
    most = options.classes or _IN_EACH_CLUSTER
    for k, rows in enumerate(class_rows(clusters.label, len(clusters)), 1):
        _, group = centroids(latent[rows], most, seed=options.seed)
        label[rows] = group + len(cluster_of_class)
        cluster_of_class += [k] * (int(group.max()) + 1)
    where = "one cluster" if len(clusters) == 1 else f"{len(clusters)} clusters"
    cluster = (clusters.label + 1).numpy()
    colours = {f"latent {i + 1}": column.numpy() for i, column in enumerate(latent.mT[:6])}
    details = ClassDetails(
        f"{class_count_text(len(cluster_of_class))} in {where}",
        latent_columns(latent) | {CLUSTER: cluster} | clustering_columns(clusters),
        {CLUSTER: format_column(cluster_of_class)},
        {"clusters": len(clusters), "space": clusters.space},
        {
            "plane": clusters.plane.numpy(),
            "axes": axes_names(clusters.space),
            "columns": {"cluster": cluster, **colours},
        },
    )
    return label, details


def average_classes(
    data: WorkingSet,
    label: Tensor,
    shift_range_angstrom: float,
    report_progress: Callable[[float], object],
) -> ClassAveragesResult:
    """Align the particles of each class to one another and average them.

    ``label``, long ``(n,)``, is the class from 0 on; every class has particles.
    """
    count = int(label.max()) + 1
    config = ClassConfig(
        classes=1,
        rounds=_ROUNDS,
        images_per_class=1000,
        shift_range_angstrom=shift_range_angstrom,
        diameter_angstrom=data.options.mask_diameter_angstrom,
    )
    averages, frc, assignments = [], [], ClassAssignments.zeros(len(label))
    for k, rows in enumerate(class_rows(label, count)):
        solver = ClassAverages(
            ImageSubset(data.images, rows),
            None if data.optics is None else data.optics[rows],
            data.half_set[rows],
            config,
            generator=generator(data.options.seed, f"class {k}"),
            pixel_size_angstrom=data.pixel_size_angstrom,
            device=data.device,
        )
        while not solver.done:
            solver.step()
            report_progress((k + solver.progress) / count)
        averages.append(solver.averages)
        frc.append(solver.frc)
        own = replace(solver.assignments, label=torch.full((len(rows),), k))
        assignments = assignments.updated(rows, own)
    return ClassAveragesResult(torch.cat(averages), torch.cat(frc), assignments)
