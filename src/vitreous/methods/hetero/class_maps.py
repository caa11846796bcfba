"""Models with latents; embeddings of all images, maps of classes, and maps along classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vitreous.core.errors import DivergedError
from vitreous.maps.half_map_pair import Halves
from vitreous.methods.hetero.clustering import PrincipalPath, principal_path
from vitreous.methods.reconstruct.gridding import accumulate
from vitreous.methods.reconstruct.half_maps import HalfMapComparison, direct_halves
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.loop import Solver

_BATCH = 2048
_MIN_IMAGES = 2  # of each half set that a map is made from
_PERCENTILES = (5.0, 95.0)

ReportProgress = Callable[[float], object]  # called with the share that is done, 0 to 1


class LatentModel(Solver[Any], Protocol):
    """Latent variable model of mixed particles, trained step by step.

    Images are those of the :class:`~vitreous.core.images.ImageSource` that it was made with.
    """

    @property
    def box_size(self) -> int:
        """Edge of the maps in pixels."""

    def embed(self, rows: Tensor) -> Tensor:
        """Return latent means ``(m, d)`` float32, on the CPU, of the images ``rows (m,)``."""

    def volume(self, latent: Tensor) -> Tensor:
        """Return the map ``(n, n, n)``, real, protein positive, at a latent ``(d,)``."""


@dataclass(frozen=True)
class ClassMap:
    """The map of a class, and its half maps where it was reconstructed from images."""

    volume: Tensor
    halves: Halves | None = None


@dataclass(frozen=True)
class Traversal:
    """The principal path through a class, and the model's maps along it."""

    path: PrincipalPath
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class PosedImages(PosedParticles):
    """Images of known poses, and how to make maps from them."""

    diameter_angstrom: float | None  # of the mask; None: it is estimated from the maps
    symmetry: str  # point group of all maps
    seed: int  # of randomised phases
    device: torch.device  # where to sum


def embed_all(model: LatentModel, count: int, report_progress: ReportProgress) -> Tensor:
    """Return the latents ``(count, d)`` of all images, computed batch by batch.

    Raises:
        DivergedError: latents that are not finite.
    """
    batches = []
    for rows in torch.split(torch.arange(count), _BATCH):
        batches.append(model.embed(rows).float().cpu())
        report_progress((int(rows[-1]) + 1) / count)
    latent = torch.cat(batches)
    if not bool(latent.isfinite().all()):
        raise DivergedError("latents are not finite; train again with other settings or `seed`")
    return latent


def model_maps(
    model: LatentModel, centres: Tensor, report_progress: ReportProgress
) -> list[ClassMap]:
    """Return the model's maps at the clusters' centres ``(k, d)``."""
    maps = []
    for k, centre in enumerate(centres, 1):
        maps.append(ClassMap(model.volume(centre).detach().float().cpu()))
        report_progress(k / len(centres))
    return maps


def reconstruct_class_maps(
    posed: PosedImages, label: Tensor, count: int, report_progress: ReportProgress
) -> list[ClassMap | None]:
    """Reconstruct the half maps of every class by gridding, and average them.

    ``label``, long ``(n,)``, is the class from 0 to ``count - 1``; images of other labels are left
    out. A class has None for a map where a half set has less than two images.
    """
    maps: list[ClassMap | None] = []
    for k, rows in enumerate(class_rows(label, count)):
        half = posed.half_set[rows]
        if min(int((half == h).sum()) for h in (1, 2)) < _MIN_IMAGES:
            maps.append(None)
            continue

        def progress(done: int, total: int, k: int = k) -> None:
            report_progress((k + done / total) / count)

        sums = accumulate(
            posed.subset(rows),
            symmetry=posed.symmetry,
            device=posed.device,
            progress=progress,
        )
        halves = direct_halves(
            sums,
            HalfMapComparison(posed.pixel_size_angstrom, posed.diameter_angstrom, posed.seed),
        )
        maps.append(ClassMap(halves.average, halves))
    return maps


def traverse_classes(
    model: LatentModel | None,
    latent: Tensor,
    classes: Sequence[Tensor],
    count: int,
    report_progress: ReportProgress,
) -> list[Traversal]:
    """Compute the principal path of every class, and the model's maps along it.

    ``classes`` are the rows of each in ``latent (n, d)``; a path has ``count`` points, and no maps
    without ``model``.
    """
    traversals = []
    for k, rows in enumerate(classes):
        path = principal_path(latent[rows], _PERCENTILES, count)
        maps = []
        for i, point in enumerate(path.points):
            if model is not None:
                maps.append(model.volume(point).detach().float().cpu())
            report_progress((k + (i + 1) / count) / len(classes))
        traversals.append(Traversal(path, tuple(maps)))
    return traversals


def class_rows(label: Tensor, count: int) -> list[Tensor]:
    """Return the rows of every class from 0 to ``count - 1``."""
    return [(label == k).nonzero().flatten() for k in range(count)]
