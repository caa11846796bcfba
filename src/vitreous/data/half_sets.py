"""Assignment of particles to half sets; what belongs together stays in one of them."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.random import generator


def joined_labels(*keys: Sequence[Hashable]) -> Tensor:
    """Return a label for each image, long ``(n,)``: equal where any of the keys connects images.

    Labels are numbered by first appearance. Each of ``keys`` has one key for each image.

    >>> joined_labels("aabc", [1, 2, 3, 3]).tolist()
    [0, 0, 1, 1]
    """
    number: dict[Hashable, int] = {}
    columns = [[number.setdefault((i, key), len(number)) for key in k] for i, k in enumerate(keys)]
    count = len(columns[0])
    links = coo_array(
        (
            np.ones(len(columns) * count, dtype=np.int8),
            (np.tile(np.arange(count), len(columns)), np.concatenate(columns) + count),
        ),
        shape=(count + len(number), count + len(number)),
    )
    found = connected_components(links, directed=False)[1][:count]
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return torch.from_numpy(np.argsort(np.argsort(first))[inverse.reshape(-1)])


def split_labels(half_set: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Return the labels ``(k,)`` of which images are in both half sets.

    >>> split_labels(torch.tensor([1, 2, 1, 0]), torch.tensor([0, 0, 1, 1])).tolist()
    [0]
    """
    first, second = (np.unique(labels[half_set == half].numpy()) for half in (1, 2))
    return np.intersect1d(first, second)


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


def warn_of_copies(source: object, half_set: Tensor, copies: Tensor) -> None:
    """Warn of images that are copies of others, given their labels ``copies (n,)``.

    ``half_set (n,)`` is the one that the table states, 0 where it states none.
    """
    count, kinds = len(copies), int(copies.max()) + 1 if len(copies) else 0
    if kinds == count:
        return
    split = len(split_labels(half_set, copies))
    remedy = "Unless they are meant (a table expanded by symmetry), keep one of each with"
    if split:
        fault = (
            f"_rlnRandomSubset puts copies of {split} images into both half sets, and the FSC "
            "takes them for agreement: its resolution is too good. Remove the column, or"
        )
        remedy = "keep one of each with"
    else:
        fault = "copies of an image stay in one half set."
    warnings.warn(
        f"{source}: {count - kinds} of {count} images are copies of others (equal image name or "
        f"equal pixels); {fault} {remedy} `vitreous select` and `unique`",
        stacklevel=3,
    )
