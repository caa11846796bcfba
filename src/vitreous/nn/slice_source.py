"""Base class of the generators of the VAE-GAN."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SliceSource(nn.Module, ABC):
    """Network from latent vectors to image spectra."""

    latent: int
    box_size: int

    def set_box_size(self, box_size: int) -> None:
        """Change the box at the same field of view, which may replace parameters."""
        self.box_size = box_size

    @abstractmethod
    def slices(
        self, latent: Tensor, rotations: Tensor | None, *, radius: float | None = None
    ) -> Tensor:
        """Return spectra ``(b, n, n // 2 + 1)`` for latent vectors ``(b, d)``.

        Laid out as by :func:`~vitreous.physics.projector.central_slices`, zero from ``radius`` on
        (cycles per box; None: Nyquist). Generators of 2D images need no rotations ``(b, 3, 3)``.
        """

    @abstractmethod
    def volume(self, latent: Tensor, *, radius: float | None = None) -> Tensor:
        """Return the map of one latent vector ``(d,)``: ``(n, n, n)``, in 2D ``(n, n)``."""
