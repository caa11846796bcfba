"""Assignment of particles to half sets."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.random import generator


def assign_half_sets(
    half_set: Tensor, seed: int, *, fewest: int = 2, source: object = "particles"
) -> Tensor:
    """Assign every particle to half set 1 or 2, at random where ``half_set (n,)`` is 0.

    Raises:
        InputError: fewer than ``fewest`` particles in a half set; the text names the ``source``.

    >>> assign_half_sets(torch.tensor([2, 0, 0, 2]), seed=1).tolist()
    [2, 1, 1, 2]
    """
    half = half_set.clone()
    free = (half == 0).nonzero().flatten()
    order = free[torch.randperm(len(free), generator=generator(seed, "abinit halves"))]
    lacking = max(0, min(len(free), len(half) // 2 - int((half == 1).sum())))
    half[order[:lacking]] = 1
    half[order[lacking:]] = 2
    sizes = [int((half == h).sum()) for h in (1, 2)]
    if min(sizes) < fewest:
        raise InputError(
            f"{source}: half sets of {sizes[0]} and {sizes[1]} particles: at least {fewest} each "
            "are needed, and thousands to find a structure; check _rlnRandomSubset"
        )
    return half
