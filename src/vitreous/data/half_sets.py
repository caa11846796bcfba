"""Assignment of particles to half sets; what belongs together stays in one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.random import generator


def assign_half_sets(
    half_set: Tensor,
    seed: int,
    *,
    labels: Tensor | None = None,
    fewest: int = 2,
    source: object = "particles",
) -> Tensor:
    """Assign every particle to half set 1 or 2, at random where ``half_set (n,)`` is 0.

    Images of equal ``labels``, long ``(n,)`` from 0 on, stay together: those without half set
    follow those that have one. Without labels every image stands alone.

    Raises:
        InputError: fewer than ``fewest`` particles in a half set; the text names the ``source``.

    >>> assign_half_sets(torch.tensor([2, 0, 0, 2]), seed=1).tolist()
    [2, 1, 1, 2]
    >>> assign_half_sets(torch.zeros(4).long(), seed=1, labels=torch.tensor([0, 0, 1, 1])).tolist()
    [2, 2, 1, 1]
    """
    half = half_set.clone()
    labels = torch.arange(len(half)) if labels is None else labels
    count = torch.bincount(labels)
    of_label = torch.zeros(len(count), dtype=half.dtype)
    of_label[labels.flip(0)[half.flip(0) > 0]] = half.flip(0)[half.flip(0) > 0]  # the first one's
    half = torch.where(half > 0, half, of_label[labels])
    free = (of_label == 0).nonzero().flatten()
    order = free[torch.randperm(len(free), generator=generator(seed, "abinit halves"))]
    lacking = max(0, len(half) // 2 - int((half == 1).sum()))
    size = count[order]
    first = (size.cumsum(0) - size / 2) <= lacking
    of_label[order] = torch.where(first, 1, 2).to(half.dtype)
    half = torch.where(half > 0, half, of_label[labels])
    sizes = [int((half == h).sum()) for h in (1, 2)]
    if min(sizes) < fewest:
        raise InputError(
            f"{source}: half sets of {sizes[0]} and {sizes[1]} particles: at least {fewest} each "
            "are needed, and thousands to find a structure; check _rlnRandomSubset"
        )
    return half
