"""Significance of a mean of independent values."""

from __future__ import annotations

from torch import Tensor


def standard_errors(values: Tensor) -> float:
    """Return the mean of independent values ``(n,)`` in its standard errors; 0 of fewer than two.

    >>> import torch
    >>> standard_errors(torch.tensor([1.0, 3.0]))
    2.0
    """
    if len(values) < 2:
        return 0.0
    values = values.double()
    return float(values.mean() / (values.std() / len(values) ** 0.5).clamp_min(1e-30))
