"""Copies of images, and other images that belong together."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vitreous.data.stacks import ArraySource, StackSource, WindowSource


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


def copies(source: ArraySource | StackSource | WindowSource, rows: NDArray[np.int64]) -> Tensor:
    """Return labels, long ``(n,)``, equal for copies: of one image name, or of equal pixels.

    Two lines of every image of ``rows`` are read, and the rest of those that agree in them.
    """
    names = source.identities(rows)
    labels = joined_labels(names, source.fingerprints(rows))
    numbers: list[Hashable] = list(names)
    for row in (torch.bincount(labels)[labels] > 1).nonzero().flatten().tolist():
        image = source.read(rows[row : row + 1])
        if (image != image.flat[0]).any():  # constant ones are bad, not copies
            numbers[row] = hashlib.sha256(image.data).digest()
    return joined_labels(names, numbers)


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
