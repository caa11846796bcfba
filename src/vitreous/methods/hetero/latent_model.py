"""Protocol of models that give every image a latent, and every latent a map."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Steps(Protocol):
    """A solver that goes step by step, and can go on from where it was."""

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        ...

    @property
    def progress(self) -> float:
        """Share of the steps that is done, 0 to 1."""
        ...

    def step(self) -> dict[str, float]:
        """One step of training; numbers worth a history line."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on bitwise."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a solver with the same images and settings."""
        ...


class LatentModel(Steps, Protocol):
    """Latent variable model of mixed particles, trained step by step.

    Images are those of the :class:`~vitreous.core.images.ImageSource` that it was made with.
    """

    @property
    def box_size(self) -> int:
        """Edge of the maps in pixels."""
        ...

    def embed(self, rows: Tensor) -> Tensor:
        """Return latent means ``(m, d)`` float32, on the CPU, of the images ``rows (m,)``."""
        ...

    def volume(self, latent: Tensor) -> Tensor:
        """Return the map ``(n, n, n)``, real, protein positive, at a latent ``(d,)``."""
        ...
