"""What tests of commands read again of the files that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitreous.io.mrc import read_mrc
from vitreous.io.star import read_star


def volume(path: Path) -> torch.Tensor:
    """A map, float32."""
    return torch.from_numpy(read_mrc(path)[0].copy()).float()


def columns(path: Path) -> dict[str, Any]:
    """The columns of a particle table."""
    return dict(read_star(path).blocks["particles"].columns)
