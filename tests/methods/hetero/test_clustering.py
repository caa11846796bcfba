"""Clusters of latents: as many as there are, and one where there is one."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor

from vitreous.methods.hetero import clustering
from vitreous.methods.hetero.clustering import centroids, find_clusters, principal_path


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def blobs(n: int, d: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three of unit deviation at the corners of a triangle."""
    truth = torch.arange(3).repeat_interleave(n)
    corners = torch.zeros(3, d)
    corners[1, 0] = corners[2, 1] = apart
    return normal(3 * n, d, seed) + corners[truth], truth


@pytest.mark.parametrize(("d", "apart"), [(2, 6.0), (8, 7.0)])
def test_three_blobs_are_three_clusters(d: int, apart: float) -> None:
    latent, truth = blobs(600, d, apart)
    found = find_clusters(latent, space="pca", assign_all=True)
    assert len(found) == 3
    for k in range(3):
        counts = torch.bincount(truth[found.label == k], minlength=3)
        assert counts.max() > 0.97 * counts.sum()
    assert torch.bincount(found.label).tolist() == found.sizes.tolist()
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["gaussian", "uniform", "line", "steps", "bow"])
def test_what_has_one_mode_is_one_cluster(shape: str, seed: int) -> None:
    n = 1500
    g = torch.Generator().manual_seed(seed)
    latent = {
        "gaussian": normal(n, 8, seed),
        "uniform": torch.rand(n, 2, generator=g),
        "line": normal(n, 4, seed) + 12 * torch.rand(n, 1, generator=g) * torch.eye(4)[0],
        "steps": normal(n, 4, seed) + 2.0 * torch.arange(n)[:, None].fmod(10) * torch.eye(4)[1],
        "bow": normal(n, 3, seed) + 14 * bow(torch.rand(n, generator=g)),
    }[shape]
    for least in (None, 30):
        found = find_clusters(latent, least, space="pca")
        assert len(found) == 1, (shape, least)
        assert found.sizes.tolist() == [n]


def bow(t: Tensor) -> Tensor:
    """A third of a circle in three dimensions."""
    angle = 2 * torch.pi / 3 * t
    return torch.stack([angle.cos(), angle.sin(), torch.zeros_like(t)], dim=-1)


def test_false_cuts_are_what_joining_undoes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above fail without it: the tree of densities is cut by chance."""
    monkeypatch.setattr(clustering, "_without_false_cuts", lambda points, label: label)
    counts = [
        len(find_clusters(torch.rand(1500, 2, generator=g), 30, space="pca"))
        for g in (torch.Generator().manual_seed(seed) for seed in range(4))
    ]
    assert max(counts) > 1


def test_noise_goes_to_the_nearest_centre_when_asked() -> None:
    latent, _ = blobs(300, 2, 12.0)
    stray = torch.tensor([[6.0, 6.0], [30.0, 0.0]])
    both = torch.cat([latent, stray])
    left = find_clusters(both, 50, space="pca")
    assert left.label[-2:].tolist() == [-1, -1]
    assert left.probability[-2:].tolist() == [0, 0]
    given = find_clusters(both, 50, space="pca", assign_all=True)
    assert (given.label >= 0).all()
    assert given.label[-1] == given.label[(latent - torch.tensor([12.0, 0.0])).norm(dim=1).argmin()]
    assert torch.equal(given.centre.sort(0).values, left.centre.sort(0).values)


def test_more_points_than_are_clustered_go_with_their_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "MAX_POINTS", 400)
    latent, truth = blobs(400, 2, 12.0)
    found = find_clusters(latent, space="pca", assign_all=True)
    assert found.sizes.tolist() == [400, 400, 400]
    assert all(len(found.label[truth == k].unique()) == 1 for k in range(3))


def test_without_umap_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "umap":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    latent, _ = blobs(100, 5, 12.0)
    assert find_clusters(latent).space == "pca"
    with pytest.raises(ImportError):
        find_clusters(latent, space="umap")


@pytest.mark.slow
def test_umap_tears_no_continuous_motion() -> None:
    latent, _ = blobs(500, 8, 8.0)
    found = find_clusters(latent, space="umap")
    assert (found.space, len(found)) == ("umap", 3)
    again = find_clusters(latent, space="umap")
    assert torch.equal(found.plane, again.plane)
    t = torch.rand(1500, 1, generator=torch.Generator().manual_seed(1))
    assert len(find_clusters(normal(1500, 8, 2) + 12 * t * torch.eye(8)[0], space="umap")) == 1


def test_latents_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="n > 10"):
        find_clusters(torch.zeros(10, 2))
    with pytest.raises(ValueError, match="not finite"):
        find_clusters(torch.full((20, 2), torch.nan))
    with pytest.raises(ValueError, match="must have members"):
        principal_path(torch.zeros(0, 2))


def test_equal_latents_are_one_cluster() -> None:
    assert find_clusters(torch.zeros(50, 3), space="pca").sizes.tolist() == [50]


def test_path_follows_the_longest_axis_between_percentiles() -> None:
    latent = normal(4000, 3, 5) * torch.tensor([1.0, 5.0, 0.5]) + torch.tensor([3.0, -2.0, 1.0])
    path = principal_path(latent, (5, 95), 4)
    assert path.points.shape == (4, 3)
    steps = path.points.diff(dim=0)
    torch.testing.assert_close(steps[0], steps[2])
    assert (steps[:, 1] > 0).all()
    assert path.points[0, 1].item() == pytest.approx(-2 - 5 * 1.645, abs=0.5)
    assert path.points[-1, 1].item() == pytest.approx(-2 + 5 * 1.645, abs=0.5)
    assert abs(torch.corrcoef(torch.stack([path.score, latent[:, 1]]))[0, 1]) > 0.99
    assert path.share == pytest.approx(25 / 26.25, abs=0.02)


def test_centroids_are_points_one_in_each_blob() -> None:
    latent, truth = blobs(50, 2, 20.0)
    latent, truth = latent[:-20], truth[:-20]
    found, group = centroids(latent, 3)
    rows = [(latent == one).all(1).nonzero().item() for one in found]
    assert group[rows].tolist() == [0, 1, 2]
    assert torch.bincount(group).tolist() == [50, 50, 30]
    assert all(len(group[truth == k].unique()) == 1 for k in range(3))
    equal, group = centroids(torch.zeros(5, 2), 3)
    assert (len(equal), group.tolist()) == (1, [0] * 5)
