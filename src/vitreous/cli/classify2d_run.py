"""What ``vitreous classify2d`` does after training: class images by k-means in every cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitreous.cli.common import generator
from vitreous.cli.hetero_maps import Clustering, Notify, clustered, embed_all, members
from vitreous.cli.hetero_output import (
    CLASS,
    PLANE,
    PROBABILITY,
    latent_columns,
    write_tables,
)
from vitreous.cli.hetero_results import Done, axes_names, settings_shown, subtitle
from vitreous.cli.output import OutputFolder
from vitreous.cli.progress import duration
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.report.mixed import MixedReport, write_mixed_report
from vitreous.solvers.clustering import Clusters, centroids
from vitreous.solvers.sorter import Sorter

CLASSES = "classes.star"
CLASS_IMAGES = "classes.mrcs"
CLUSTER = "vitreousCluster"
AVERAGED = 64  # of its particles, whose images a class image is the mean of


@dataclass(frozen=True)
class Classes:
    """Class images, and the class of every particle.

    Args:
        latent: ``(n, d)``.
        clusters: found by density; every particle is in one.
        label: long ``(n,)``, class from 0 on; those of a cluster follow one another.
        cluster_of: long ``(k,)``, cluster of each class, from 0 on.
        images: ``(k, m, m)``.
    """

    latent: Tensor
    clusters: Clusters
    label: Tensor
    cluster_of: Tensor
    images: Tensor


def classify(
    sorter: Sorter, options: Clustering, most: int, count: int, seed: int, notify: Notify
) -> Classes:
    """Class images of a trained model in two dimensions.

    Args:
        sorter: whose ``volume`` is an image.
        options: of the clusters; all particles are given to one.
        most: classes of each cluster.
        count: of particles.
        seed: of k-means.
        notify: told the share that is done.

    Raises:
        DivergedError: latents that are not finite.
        UsageError: clusters cannot be found.
    """
    latent = embed_all(sorter, count, lambda share: notify(0.5 * share))
    clusters = clustered(latent, options, seed)
    label = torch.zeros(count, dtype=torch.long)
    groups: list[Tensor] = []
    owners: list[int] = []
    for k, rows in enumerate(members(clusters.label, len(clusters))):
        found, group = centroids(latent[rows], most, seed=seed)
        label[rows] = group + len(groups)
        groups += [rows[some] for some in members(group, len(found))]
        owners += [k] * len(found)
    images, unsure = [], (1 - latent.var(0)).clamp_min(0).sqrt()  # the prior's variance is 1
    draw = generator(seed, "class images")
    for i, rows in enumerate(groups, 1):
        places = latent[rows[:: max(1, len(rows) // AVERAGED)]]
        places = places + unsure * torch.randn(places.shape, generator=draw)
        shown = [sorter.volume(place).detach().float().cpu() for place in places]
        images.append(torch.stack(shown).mean(0))
        notify(0.5 + 0.5 * i / len(groups))
    return Classes(latent, clusters, label, torch.tensor(owners), torch.stack(images))


def write_classes(
    folder: OutputFolder,
    particles: Particles,
    found: Classes,
    *,
    pixel_size_angstrom: float,
    title: str,
    history: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Done:
    """Write images, tables and page.

    Raises:
        ResourceError: the disk is full.
    """
    sizes = torch.bincount(found.label, minlength=len(found.images))
    clusters = found.clusters
    columns = latent_columns(found.latent) | {
        CLASS: (found.label + 1).numpy(),
        CLUSTER: (clusters.label + 1).numpy(),
        PROBABILITY: clusters.probability.numpy(),
        PLANE[0]: clusters.plane[:, 0].numpy(),
        PLANE[1]: clusters.plane[:, 1].numpy(),
    }
    write_tables(folder, particles, columns)
    stack = folder.path(CLASS_IMAGES)
    write_mrc(stack, found.images.numpy(), pixel_size_angstrom, is_stack=True)
    table = {
        "rlnReferenceImage": [f"{k + 1:06d}@{CLASS_IMAGES}" for k in range(len(sizes))],
        "rlnClassNumber": format_column(range(1, len(sizes) + 1)),
        "rlnClassDistribution": format_column((sizes / sizes.sum()).numpy()),
        CLUSTER: format_column((found.cluster_of + 1).numpy()),
    }
    write_star(folder.path(CLASSES), StarDocument({"model_classes": StarBlock(table)}))
    verdict = f"{len(sizes)} class images in {_clusters(len(clusters))}"
    folder.config["run"] |= {
        "verdict": verdict,
        "clusters": len(clusters),
        "sizes": sizes.tolist(),
        "space": clusters.space,
        "seconds": round(seconds, 1),
    }
    latents = {f"latent {i + 1}": column.numpy() for i, column in enumerate(found.latent.mT[:6])}
    page = MixedReport(
        title=title,
        subtitle=subtitle("classify2d"),
        verdict=verdict + ".",
        key_numbers={
            "particles": f"{len(particles):,}",
            "clusters": str(len(clusters)),
            "class images": str(len(sizes)),
            "time": duration(seconds),
        },
        settings=settings_shown(folder.config["options"]),
        plane=clusters.plane.numpy(),
        axes=axes_names(clusters.space),
        label=(found.label + 1).numpy(),
        columns={"cluster": (clusters.label + 1).numpy(), **latents},
        particles=len(particles),
        history=history,
        images=found.images.numpy(),
        sizes=sizes.tolist(),
    )
    write_mixed_report(folder.path("report.html"), page)
    lines = (
        f"time         {duration(seconds)}",
        f"images       {stack}",
        f"table        {folder.root / 'particles.star'}",
        f"report       {folder.root / 'report.html'}",
    )
    return Done(verdict, "\n".join(lines))


def _clusters(count: int) -> str:
    return "one cluster" if count == 1 else f"{count} clusters"
