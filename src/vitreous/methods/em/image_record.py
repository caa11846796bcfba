"""Records of tensors with a row for each image or micrograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from vitreous.core.params import Batched


class ImageRecord(Batched):
    """Base of frozen dataclasses of tensors ``(b, ...)``, or of records, or None."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of several batches, joined."""
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        return cls(**{name: _joined(values) for name, values in columns.items()})

    def updated(self, rows: Tensor, other: Self) -> Self:
        """Return a copy in which the images ``rows`` have the values of another record."""
        new = vars(other)
        return type(self)(
            **{name: old.index_copy(0, rows, new[name].to(old)) for name, old in vars(self).items()}
        )


class PoseRecord(ImageRecord):
    """Base of records of poses, or of candidates of each image, best first."""

    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor

    def best_first(self) -> Self:
        """Return the candidates of each image sorted by their likelihood."""
        ratio = self.log_likelihood_ratio
        rows = torch.arange(len(ratio), device=ratio.device)[:, None]
        return self[rows, ratio.sort(dim=1, descending=True, stable=True).indices]

    def with_better(self, other: Self, rows: Tensor | None = None) -> Self:
        """Return poses with those of the other, of ``rows`` or of all, that are more likely."""
        ratio = self.log_likelihood_ratio
        rows = torch.arange(len(ratio), device=ratio.device) if rows is None else rows
        better = other.log_likelihood_ratio > ratio[rows]
        return self.updated(rows[better], other[better])


def _joined(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return torch.cat(known) if isinstance(known[0], Tensor) else type(known[0]).cat(known)
