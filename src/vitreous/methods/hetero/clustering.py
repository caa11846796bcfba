r"""Clusters of an embedding by density, and the principal path of each.

HDBSCAN finds the clusters in an embedding of few dimensions: by UMAP in two dimensions where the
package ``umap-learn`` is installed, else in the first principal components. HDBSCAN always finds
something to cut, and UMAP tears what is continuous; so every cut is tested. For every two clusters
all points that are nearest to them, noise included, are projected in the *latent* space onto
Fisher's discriminant of the two; where the density along it has no valley, the two are joined. A
density with one mode is one cluster, however long.

Sources: thesis on noise-robust VAE-GANs for cryo-EM, section 11 (UMAP: 2 components, 30
neighbours, distance 0; HDBSCAN: 10 samples, clusters of at least 900; one principal component
inside each cluster, from the 5th to the 95th percentile); Campello, Moulavi, Sander, PAKDD 2013;
McInnes, Healy, Melville, arXiv:1802.03426. The test of the valley is this package's own.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_MIN_SIZE = 900
MIN_SHARE = 0.05
SMALLEST_MIN_SIZE = 10
MAX_POINTS = 30_000  # that are clustered; the others take the label of their nearest
MIN_VARIANCE = 0.01  # of a principal component, relative to the first one's
MAX_COMPONENTS = 5
NEIGHBOURS = 30  # of UMAP
WINDOWS = 12  # of the density along a line, between the 1st and 99th percentile
VALLEY_DEPTH = 0.7  # largest count in a valley, relative to the lower peak beside it
VALLEY_ERRORS = 4.0  # smallest difference between valley and peak, in standard errors

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]
Space = Literal["auto", "umap", "pca"]


@dataclass(frozen=True)
class Clusters:
    """Clusters of an embedding, the largest first."""

    label: Tensor  # long ``(n,)``; 0 to ``k - 1``, -1 for noise
    centre: Tensor  # ``(k, d)``, mean latent of each cluster's members
    probability: Tensor  # ``(n,)``, HDBSCAN's membership probability, 0 to 1; 0 for noise
    sizes: Tensor  # long ``(k,)``
    plane: Tensor  # ``(n, 2)``, the embedding in two dimensions, for plots
    space: str  # in which clusters were searched: ``umap`` or ``pca``

    def __len__(self) -> int:
        return len(self.sizes)


def smallest_cluster(count: int) -> int:
    """Return the default of the smallest cluster size: 900, or 5 % of fewer than 18,000 points.

    >>> smallest_cluster(100_000), smallest_cluster(9000), smallest_cluster(50)
    (900, 450, 10)
    """
    return max(SMALLEST_MIN_SIZE, min(LARGEST_MIN_SIZE, round(MIN_SHARE * count)))


def find_clusters(
    latent: Tensor,
    min_size: int | None = None,
    *,
    min_samples: int = 10,
    space: Space = "auto",
    assign_all: bool = False,
    seed: int = 0,
) -> Clusters:
    """Find the clusters of latents; their number is not given.

    Args:
        latent: ``(n, d)``.
        min_size: smallest size of a cluster; :func:`smallest_cluster` by default.
        min_samples: neighbours by which density is measured.
        space: ``umap``, ``pca``, or ``auto``: UMAP where it is installed.
        assign_all: assign noise to the nearest centre, with probability 0.
        seed: of UMAP, and of the subset that is clustered of more than 30,000 points.

    Raises:
        ValueError: not ``(n, d)``, not finite, or fewer points than ``min_samples`` + 1.
        ImportError: ``umap`` asked for and not installed.

    >>> g = torch.Generator().manual_seed(0)
    >>> blobs = torch.randn(300, 3, generator=g) + 20.0 * torch.arange(3).repeat(100)[:, None]
    >>> find_clusters(blobs, 40, space="pca").sizes.tolist()
    [100, 100, 100]
    """
    points = _checked(latent, min_samples)
    smallest = smallest_cluster(len(points)) if min_size is None else max(2, min_size)
    chosen = _chosen(len(points), seed)
    flat, plane, used_space = _flattened(points[chosen], space, seed)
    share = len(chosen) / len(points)
    label, probability = _hdbscan(flat, max(2, round(share * smallest)), min_samples)
    if share < 1:
        nearest = _nearest(points, points[chosen])
        label, probability, plane = label[nearest], probability[nearest], plane[nearest]
    label = _without_false_cuts(points, label)
    if label.max() < 1:  # one mode or none: all points are one cluster
        label, probability = np.zeros_like(label), np.ones_like(probability)
    count = int(label.max()) + 1
    centre = np.stack([points[label == k].mean(0) for k in range(count)])
    if assign_all and (label < 0).any():
        noise = label < 0
        label[noise] = _nearest(points[noise], centre)
    order = np.argsort(-np.bincount(label[label >= 0], minlength=count), kind="stable")
    label, centre = np.where(label < 0, -1, np.argsort(order)[label]), centre[order]
    return Clusters(
        label=torch.from_numpy(label),
        centre=torch.from_numpy(centre).float(),
        probability=torch.from_numpy(probability).float(),
        sizes=torch.from_numpy(np.bincount(label[label >= 0], minlength=count)),
        plane=torch.from_numpy(np.ascontiguousarray(plane)).float(),
        space=used_space,
    )


@dataclass(frozen=True)
class PrincipalPath:
    """Line through a cluster along its first principal component."""

    points: Tensor  # ``(count, d)`` along it, from one percentile to the other
    score: Tensor  # ``(n,)``, the members' coordinates along the first principal component
    share: float  # of the cluster's variance along the component, 0 to 1


def principal_path(
    latent: Tensor, percentiles: tuple[float, float] = (5.0, 95.0), count: int = 5
) -> PrincipalPath:
    """Return ``count`` even points along the first principal component of a cluster ``(n, d)``.

    They lie between two percentiles of the members' coordinates. The component's sign is that of
    its largest entry, made positive.

    Raises:
        ValueError: no members.

    >>> path = principal_path(torch.arange(101.0)[:, None] * torch.tensor([1.0, 0.0]), count=3)
    >>> path.points.tolist(), path.share
    ([[5.0, 0.0], [50.0, 0.0], [95.0, 0.0]], 1.0)
    """
    if not len(latent):
        raise ValueError("latent must have members of the cluster, got none")
    x = latent.detach().double().cpu()
    mean = x.mean(0)
    variance, vectors = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
    component = vectors[:, -1]
    component = component * component[component.abs().argmax()].sign()
    score = (x - mean) @ component
    ends = np.percentile(score.numpy(), percentiles)
    steps = torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64)
    total = float(variance.clamp_min(0).sum())
    return PrincipalPath(
        points=(mean + steps[:, None] * component).float(),
        score=score.float(),
        share=float(variance[-1]) / total if total > 0 else 1.0,
    )


def centroids(latent: Tensor, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Group points ``(n, d)`` by k-means into ``count`` groups, or fewer where points are equal.

    Returns the point nearest to each centre, ``(k, d)``, largest group first, and the group of
    every point, long ``(n,)``.

    >>> centres, group = centroids(torch.tensor([[0.0], [0.1], [0.2], [5.0]]), 2)
    >>> centres[1].item(), group.tolist()
    (5.0, [0, 0, 0, 1])
    """
    from sklearn.cluster import KMeans

    points = latent.detach().double().cpu().numpy()
    distinct = len(np.unique(points, axis=0))
    task = KMeans(min(count, distinct), n_init=3, random_state=seed).fit(points)
    central = torch.from_numpy(_nearest(task.cluster_centers_, points))
    group = torch.from_numpy(task.labels_.astype(np.int64))
    order = torch.bincount(group, minlength=len(central)).argsort(descending=True, stable=True)
    return latent[central[order]], order.argsort()[group]


def _checked(latent: Tensor, min_samples: int) -> Numbers:
    if latent.ndim != 2 or len(latent) <= min_samples:
        raise ValueError(f"latent must be (n, d) with n > {min_samples}, got {tuple(latent.shape)}")
    points: Numbers = latent.detach().double().cpu().numpy()
    if not np.isfinite(points).all():
        raise ValueError("latents are not finite")
    return points


def _chosen(count: int, seed: int) -> Labels:
    """Return the rows that are clustered: all, or a random subset."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:MAX_POINTS])


def _flattened(points: Numbers, space: Space, seed: int) -> tuple[Numbers, Numbers, str]:
    """Return the points to cluster, those to plot ``(n, 2)``, and the name of the space."""
    scores, kept = _principal_components(points)
    components, plane = scores[:, :kept], np.pad(scores, ((0, 0), (0, 1)))[:, :2]
    if space == "pca" or (space == "auto" and kept <= 2):  # two dimensions already
        return components, plane, "pca"
    try:
        from umap import UMAP
    except ImportError:
        if space == "umap":
            raise
        return components, plane, "pca"
    task: Any = UMAP(
        n_components=2,
        n_neighbors=min(NEIGHBOURS, len(points) - 1),
        min_dist=0.0,
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = np.asarray(task.fit_transform(components), dtype=np.float64)
    return flat, flat, "umap"


def _principal_components(points: Numbers) -> tuple[Numbers, int]:
    """Return coordinates along all components, not whitened, and how many components are kept."""
    centred = points - points.mean(0)
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(points))
    scores: Numbers = centred @ vectors[:, ::-1]
    large = variance[::-1][:MAX_COMPONENTS] > MIN_VARIANCE * variance[-1]
    return scores, max(1, int(large.sum()))


def _hdbscan(flat: Numbers, smallest: int, samples: int) -> tuple[Labels, Numbers]:
    """Return labels (-1: noise) and membership probabilities."""
    from sklearn.cluster import HDBSCAN

    task = HDBSCAN(min_cluster_size=min(smallest, len(flat)), min_samples=samples, copy=True)
    task.fit(flat)
    return task.labels_.astype(np.int64), task.probabilities_.astype(np.float64)


def _nearest(points: Numbers, among: Numbers) -> Labels:
    from scipy.spatial import cKDTree

    return np.asarray(cKDTree(among).query(points)[1], dtype=np.int64)


def _without_false_cuts(points: Numbers, label: Labels) -> Labels:
    """Join clusters, the least separated two first, until a valley lies between any two."""
    label = label.copy()
    while label.max() >= 1:
        count = int(label.max()) + 1
        depths = {
            (a, b): _valley(points, label, a, b) for a in range(count) for b in range(a + 1, count)
        }
        (a, b), depth = min(depths.items(), key=lambda item: item[1])
        if depth > 0:
            break
        label[label == b] = a
        label[label > b] -= 1
    return label


def _valley(points: Numbers, label: Labels, a: int, b: int) -> float:
    """Return the depth of the valley between two clusters; zero or less if there is none.

    It is in standard errors beyond :data:`VALLEY_ERRORS`.
    """
    centre = np.stack([points[label == k].mean(0) for k in range(int(label.max()) + 1)])
    nearest = np.where(label >= 0, label, _nearest(points, centre))
    first, second = points[label == a], points[label == b]
    within = np.cov(first.T).reshape(points.shape[1], -1) * len(first)
    within = within + np.cov(second.T).reshape(points.shape[1], -1) * len(second)
    within /= len(first) + len(second)
    ridge = 1e-6 * np.trace(within) / len(within) + np.finfo(float).tiny
    line = np.linalg.solve(within + ridge * np.eye(len(within)), centre[b] - centre[a])
    return _valley_along(points[(nearest == a) | (nearest == b)] @ line)


def _valley_along(coordinates: Numbers) -> float:
    """Return the depth of a valley, see :func:`_valley`, in coordinates along a line."""
    low, high = np.percentile(coordinates, [1.0, 99.0])
    width = (high - low) / WINDOWS
    if width <= 0:
        return -VALLEY_ERRORS
    ordered = np.sort(coordinates)
    starts = np.linspace(low - width, high, 8 * (WINDOWS + 1) + 1)
    counts = np.searchsorted(ordered, starts + width) - np.searchsorted(ordered, starts)
    left, right = np.maximum.accumulate(counts), np.maximum.accumulate(counts[::-1])[::-1]
    peak = np.minimum(left, right)
    errors = (peak - counts) / np.sqrt(np.maximum(1, peak + counts))
    deep = counts < VALLEY_DEPTH * peak
    return float(np.where(deep, errors, 0.0).max()) - VALLEY_ERRORS
