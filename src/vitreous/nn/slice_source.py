"""What every generator of mixed particles offers, in two dimensions or three."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class SliceSource(Protocol):
    """A network that gives image spectra for latent vectors; also a ``torch.nn.Module``."""

    latent: int
    box_size: int

    def enter(self, box_size: int) -> None:
        """Go on with another box, of the same field of view; parameters may be new ones."""
        ...

    def slices(
        self, latent: Tensor, rotations: Tensor | None, *, radius: float | None = None
    ) -> Tensor:
        """Spectra ``(b, n, n // 2 + 1)`` for ``(b, d)``; 2D ones need no rotations ``(b, 3, 3)``.

        Laid out as by :func:`~vitreous.physics.projector.central_slices`, zero from ``radius`` on
        (cycles per box; None: Nyquist).
        """
        ...

    def volume(self, latent: Tensor, *, radius: float | None = None) -> Tensor:
        """The map of one latent vector ``(d,)``: ``(n, n, n)``, in 2D ``(n, n)``."""
        ...

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups for an optimiser whose step is ``rate``."""
        ...
