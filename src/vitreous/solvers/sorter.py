"""What every solver for mixed particles offers, however it came to its maps."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Sorter(Protocol):
    """A model of mixed particles: a latent place for every image, a map for every place."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to be trained."""
        ...

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        ...

    @property
    def box_size(self) -> int:
        """Edge of the maps in pixels."""
        ...

    def step(self) -> dict[str, float]:
        """Train a little; numbers worth a line of history."""
        ...

    def embed(self, rows: Tensor) -> Tensor:
        """Rows ``(m,)`` of particles to their latent means ``(m, d)``, float32 on the CPU."""
        ...

    def volume(self, latent: Tensor) -> Tensor:
        """The real map ``(n, n, n)`` at a place ``(d,)``, protein positive."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit by bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        ...
