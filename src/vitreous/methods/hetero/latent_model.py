"""Protocol of models that give every image a latent, and every latent a map."""

from typing import Any, Protocol

from torch import Tensor

from vitreous.optim.loop import Solver


class LatentModel(Solver[Any], Protocol):
    """Latent variable model of mixed particles, trained step by step.

    Images are those of the :class:`~vitreous.core.images.ImageSource` that it was made with.
    """

    @property
    def box_size(self) -> int:
        """Edge of the maps in pixels."""

    def embed(self, rows: Tensor) -> Tensor:
        """Return latent means ``(m, d)`` float32, on the CPU, of the images ``rows (m,)``."""

    def volume(self, latent: Tensor) -> Tensor:
        """Return the map ``(n, n, n)``, real, protein positive, at a latent ``(d,)``."""
