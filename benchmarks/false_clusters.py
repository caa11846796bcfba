"""Clusters in synthetic latents: how many the tree of densities cuts, how many are believed. JSON.

    python benchmarks/false_clusters.py
    python benchmarks/false_clusters.py --seeds 0 1 2 --points 9000 --space umap

Each shape has unit noise in every dimension: a Gaussian, a line 12 long, ten steps along a line, a
third of a circle of radius 14 (all one cluster), and three blobs at the corners of a triangle. With
UMAP and with principal components, with the default and with a small least size.

Fails (exit 1) where what has one mode is cut, or three blobs 6 apart are not found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

from _circumstances import where_and_when
from vitreous.methods.hetero import clustering
from vitreous.methods.hetero.clustering import find_clusters
from vitreous.metrics.clustering import normalised_mutual_information

BLOBS = (4.0, 5.0, 6.0)
SMALL = 30
MUST_BE_FOUND = 6.0


def shapes(n: int, d: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Latents ``(n, d)`` and their true clusters by name."""
    draw = torch.Generator().manual_seed(seed)
    noise, t = torch.randn(n, d, generator=draw), torch.rand(n, generator=draw)
    one, axes = torch.zeros(n, dtype=torch.long), torch.eye(d)
    angle = 2 * math.pi / 3 * t
    arc = angle.cos()[:, None] * axes[0] + angle.sin()[:, None] * axes[1]
    found = {
        "gaussian": (noise, one),
        "line": (noise + 12 * t[:, None] * axes[0], one),
        "ten steps": (noise + 2.0 * torch.arange(n).fmod(10)[:, None] * axes[0], one),
        "third of a circle": (noise + 14 * arc, one),
    }
    truth = torch.arange(n) % 3
    for apart in BLOBS:
        corners = torch.stack([0 * axes[0], apart * axes[0], apart * axes[1]])
        found[f"three blobs {apart:g} apart"] = (noise + corners[truth], truth)
    return found


def one_case(latent: Tensor, truth: Tensor, space: Any, least: int | None) -> dict[str, Any]:
    """Cluster once; what HDBSCAN cut is looked at on the way."""
    cut: list[int] = []
    join = clustering._without_false_cuts

    def watched(points: Any, label: Any) -> Any:
        cut.append(int(label.max()) + 1)
        return join(points, label)

    clustering._without_false_cuts = watched
    started = time.perf_counter()
    try:
        found = find_clusters(latent, least, space=space, assign_all=True)
    finally:
        clustering._without_false_cuts = join
    return {
        "space": found.space,
        "least": least or "default",
        "cut": cut[0],
        "believed": len(found),
        "nmi": round(normalised_mutual_information(truth, found.label), 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    """All cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--dimensions", type=int, default=8)
    parser.add_argument("--space", nargs="+", default=["umap", "pca"])
    options = parser.parse_args()
    rows, wrong = [], 0
    for seed in options.seeds:
        for name, (latent, truth) in shapes(options.points, options.dimensions, seed).items():
            must = name not in [f"three blobs {v:g} apart" for v in BLOBS if v < MUST_BE_FOUND]
            for space in options.space:
                for least in (None, SMALL):
                    row = one_case(latent, truth, space, least)
                    wrong += must and row["believed"] != int(truth.max()) + 1
                    rows.append({"shape": name, "seed": seed, **row})
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({**where_and_when(), **vars(options), "rows": rows}, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
