"""Embeddings, maps of classes and maps along their paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.core.images import ImageSource, ImageSubset
from vitreous.core.params import Optics, Pose
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet
from vitreous.maps.half_map_pair import Halves
from vitreous.methods.hetero.clustering import (
    Clusters,
    PrincipalPath,
    Space,
    principal_path,
)
from vitreous.methods.hetero.latent_model import LatentModel
from vitreous.methods.reconstruct.gridding import accumulate
from vitreous.methods.reconstruct.half_maps import direct_halves
from vitreous.report.html import angstrom

PIECE = 2048


FEWEST = 2  # particles of each half set that a map is made from


PERCENTILES = (5.0, 95.0)


Notify = Callable[[float], object]


@dataclass(frozen=True)
class ClassMap:
    """The map of a class, and its halves where it was reconstructed from images."""

    volume: Tensor
    halves: Halves | None = None

    @property
    def resolution(self) -> str:
        """In words; empty where there are no halves."""
        return "" if self.halves is None else f"{angstrom(self.halves.headline[0])} at 0.143"


@dataclass(frozen=True)
class Traversal:
    """The way through one cluster, and the model's maps along it."""

    path: PrincipalPath
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class PosedImages:
    """Images whose poses are known, for reconstruction.

    Args:
        images: at the box of the maps, protein positive.
        pose, optics: of each; optics None where images are free of the CTF.
        half_set: long ``(n,)`` of 1 and 2.
        pixel_size_angstrom: of the images and the maps.
        diameter_angstrom: of the mask; None: it is found from the maps.
        symmetry: point group of all.
        seed: of randomised phases.
        device: where to sum.
    """

    images: ImageSource
    pose: Pose
    optics: Optics | None
    half_set: Tensor
    pixel_size_angstrom: float
    diameter_angstrom: float | None
    symmetry: str
    seed: int
    device: torch.device

    @classmethod
    def of(
        cls, data: WorkingSet, working: ProcessingOptions, images: ImageSource, pose: Pose
    ) -> Self:
        """Those of a working set, as its options say."""
        return cls(
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


@dataclass(frozen=True)
class Clustering:
    """How an embedding is clustered; the options of these names."""

    min_cluster: int | None = None
    min_samples: int = 10
    space: Space = "auto"
    assign_all: bool = False


def embed_all(sorter: LatentModel, count: int, notify: Notify) -> Tensor:
    """Latents ``(count, d)`` of all particles, a piece at a time.

    Raises:
        DivergedError: they are not finite.
    """
    found = []
    for rows in torch.split(torch.arange(count), PIECE):
        found.append(sorter.embed(rows).float().cpu())
        notify((int(rows[-1]) + 1) / count)
    latent = torch.cat(found)
    if not bool(latent.isfinite().all()):
        raise DivergedError("latents are not finite; train again with other settings or --seed")
    return latent


def model_maps(sorter: LatentModel, centre: Tensor, notify: Notify) -> list[ClassMap]:
    """The model's maps at the clusters' centres ``(k, d)``."""
    found = []
    for k, one in enumerate(centre, 1):
        found.append(ClassMap(sorter.volume(one).detach().float().cpu()))
        notify(k / len(centre))
    return found


def reconstructed_maps(
    posed: PosedImages, label: Tensor, count: int, notify: Notify
) -> list[ClassMap | None]:
    """Half maps and their average, by direct reconstruction, of every class.

    Args:
        posed: all images.
        label: long ``(n,)``, 0 to ``count - 1``; others are left out.
        count: of classes.
        notify: told the share that is done.

    Returns:
        None for classes of which a half set holds less than two particles.
    """
    maps: list[ClassMap | None] = []
    for k, rows in enumerate(members(label, count)):
        half = posed.half_set[rows]
        if min(int((half == h).sum()) for h in (1, 2)) < FEWEST:
            maps.append(None)
            continue
        sums = accumulate(
            ImageSubset(posed.images, rows),
            posed.pose.rotation[rows],
            posed.pose.shift_angstrom[rows],
            None if posed.optics is None else posed.optics[rows],
            posed.pixel_size_angstrom,
            half,
            symmetry=posed.symmetry,
            device=posed.device,
            progress=_part(notify, k, count),
        )
        halves = direct_halves(
            sums,
            pixel_size_angstrom=posed.pixel_size_angstrom,
            diameter_angstrom=posed.diameter_angstrom,
            seed=posed.seed,
        )
        maps.append(ClassMap(halves.average, halves))
    return maps


def _part(notify: Notify, part: int, parts: int) -> Callable[[int, int], None]:
    """Tells of one part's progress as of that of the whole."""

    def told(done: int, total: int) -> None:
        notify((part + done / total) / parts)

    return told


def traverse_all(
    sorter: LatentModel | None,
    latent: Tensor,
    clusters: Sequence[Tensor],
    count: int,
    notify: Notify,
) -> list[Traversal]:
    """Paths through clusters, with the model's maps along them where there is a model.

    Args:
        sorter: trained; None for paths alone.
        latent: ``(n, d)``.
        clusters: rows of each.
        count: of places along each.
        notify: told the share that is done.
    """
    found = []
    for k, rows in enumerate(clusters):
        path = principal_path(latent[rows], PERCENTILES, count)
        maps = []
        for i, place in enumerate(path.points):
            if sorter is not None:
                maps.append(sorter.volume(place).detach().float().cpu())
            notify((k + (i + 1) / count) / len(clusters))
        found.append(Traversal(path, tuple(maps)))
    return found


def members(label: Tensor, count: int) -> list[Tensor]:
    """Rows of every class from 0 on."""
    return [(label == k).nonzero().flatten() for k in range(count)]


def found_in_words(clusters: Clusters) -> str:
    """One sentence without full stop.

    >>> from vitreous.solvers.clustering import find_clusters
    >>> found_in_words(find_clusters(torch.zeros(50, 2), space="pca"))
    'one cluster of 50 particles: nothing separates them by density'
    """
    total = len(clusters.label)
    if len(clusters) == 1:
        return f"one cluster of {total:,} particles: nothing separates them by density"
    sizes = ", ".join(f"{size:,}" for size in clusters.sizes.tolist())
    noise = int((clusters.label < 0).sum())
    rest = f"; {noise:,} in none" if noise else ""
    return f"{len(clusters)} clusters, of {sizes} particles{rest}"
