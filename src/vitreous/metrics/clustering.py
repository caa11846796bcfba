"""Two ways to sort the same particles, compared: NMI, adjusted Rand index, table of counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def _labels(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"labels must be (n,), got {tuple(a.shape)} and {tuple(b.shape)}")
    return a.cpu().long(), b.cpu().long()


def normalised_mutual_information(truth: Tensor, found: Tensor) -> float:
    """Mutual information of two labellings over the mean of their entropies, 0 to 1.

    Args:
        truth, found: long ``(n,)``; the numbers themselves mean nothing. Noise (-1) counts as a
            cluster of its own.

    Raises:
        ValueError: lengths differ, or there are no labels.

    >>> normalised_mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    a, b = _labels(truth, found)
    return float(normalized_mutual_info_score(a.numpy(), b.numpy()))


def adjusted_rand(truth: Tensor, found: Tensor) -> float:
    """Share of pairs that both labellings treat alike, 1 for equal ones and 0 by chance.

    Args:
        truth, found: as :func:`normalised_mutual_information`.

    Raises:
        ValueError: lengths differ, or there are no labels.

    >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    a, b = _labels(truth, found)
    return float(adjusted_rand_score(a.numpy(), b.numpy()))


def contingency(truth: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many particles have each pair of labels.

    Args:
        truth, found: long ``(n,)``.

    Returns:
        counts ``(t, f)``, and the labels of its rows and columns, rising.

    Raises:
        ValueError: lengths differ, or there are no labels.

    >>> contingency(torch.tensor([0, 0, 1]), torch.tensor([-1, 0, 0]))[0].tolist()
    [[1, 1], [0, 1]]
    """
    a, b = _labels(truth, found)
    rows, row = np.unique(a.numpy(), return_inverse=True)
    columns, column = np.unique(b.numpy(), return_inverse=True)
    flat = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    counts = torch.from_numpy(flat.reshape(len(rows), len(columns)))
    return counts, torch.from_numpy(rows), torch.from_numpy(columns)
