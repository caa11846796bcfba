"""Feature vectors under all cyclic shifts, figure 34 of the thesis: prints JSON.

Images of 64 px (projections of a built-in phantom, with noise) are shifted by each of 64 x 64 whole
pixels; the largest difference of a feature vector from that of the unshifted image is told, for
the invariant trunk and for the plain one, with seeded, untrained weights, and relative to the
largest difference between images.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from _circumstances import where_and_when
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.nn.encoder import Trunk
from vitreous.physics.projector import project


def images(count: int, box: int) -> Tensor:
    """Noisy projections with mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(5)
    clean = project(
        protein_phantom(box, 256 / box, seed=3), random_rotations(count, generator=generator)
    )
    noisy = clean / clean.std() + 0.5 * torch.randn(clean.shape, generator=generator)
    return (noisy - noisy.mean((-2, -1), keepdim=True)) / noisy.std((-2, -1), keepdim=True)


@torch.no_grad()
def departure(trunk: Trunk, image: Tensor) -> tuple[float, float]:
    """Largest and mean absolute difference over all shifts."""
    n = image.shape[-1]
    still = trunk(image[None])[1]
    largest, total = 0.0, 0.0
    for y in range(n):
        moved = torch.stack([image.roll((y, x), (-2, -1)) for x in range(n)])
        difference = (trunk(moved)[1] - still).abs()
        largest = max(largest, float(difference.max()))
        total += float(difference.mean()) / n
    return largest, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--width", type=int, default=8)
    args = parser.parse_args()
    stack = images(args.images, args.box)
    rows = {}
    for name, invariant in (("invariant", True), ("plain", False)):
        start = time.perf_counter()
        seed = torch.Generator().manual_seed(1)
        trunk = Trunk(args.box, args.width, invariant=invariant, generator=seed).eval()
        found = [departure(trunk, image) for image in stack]
        with torch.no_grad():
            vectors = trunk(stack)[1]
        rows[name] = {
            "largest_difference": max(one for one, _ in found),
            "mean_difference": sum(mean for _, mean in found) / len(found),
            "between_images": float((vectors - vectors[:1]).abs().max()),
            "seconds": round(time.perf_counter() - start, 1),
        }
    print(json.dumps(where_and_when() | vars(args) | rows, indent=2))


if __name__ == "__main__":
    main()
