"""Records of tensors with a row for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor


class ImageRecord:
    """Base of frozen dataclasses of tensors ``(b, ...)``, or of records, or None."""

    def __getitem__(self, index: Any) -> Self:
        """Return the rows of some images."""
        fields = {name: None if one is None else one[index] for name, one in vars(self).items()}
        return type(self)(**fields)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of several batches, joined."""
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        return cls(**{name: _joined(values) for name, values in columns.items()})


def _joined(values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return torch.cat(known) if isinstance(known[0], Tensor) else type(known[0]).cat(known)
