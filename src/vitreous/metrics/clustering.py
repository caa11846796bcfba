"""Agreement of two labellings of the same particles: NMI and adjusted Rand index."""

from __future__ import annotations

from torch import Tensor


def _labels(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"labels must be (n,), got {tuple(a.shape)} and {tuple(b.shape)}")
    return a.cpu().long(), b.cpu().long()


def normalised_mutual_information(truth: Tensor, labels: Tensor) -> float:
    """Return the mutual information of two labellings over the mean of their entropies, 0 to 1.

    Labels are long ``(n,)``, in any numbering; noise (-1) counts as one more cluster.

    Raises:
        ValueError: lengths differ, or there are no labels.

    >>> import torch
    >>> normalised_mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    a, b = _labels(truth, labels)
    return float(normalized_mutual_info_score(a.numpy(), b.numpy()))


def adjusted_rand(truth: Tensor, labels: Tensor) -> float:
    """Return the adjusted Rand index, the share of equally treated pairs: 1 if equal, 0 by chance.

    Raises:
        ValueError: lengths differ, or there are no labels.

    >>> import torch
    >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    a, b = _labels(truth, labels)
    return float(adjusted_rand_score(a.numpy(), b.numpy()))
