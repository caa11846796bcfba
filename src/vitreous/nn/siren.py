r"""Implicit generator of volumes: a network from frequency and latent vector to coefficient.

A network with sine activations (SIREN) maps a frequency to the volume's complex coefficient; the
latent vector scales and shifts every layer (pi-GAN, Chan et al., CVPR 2021; thesis, sections 6.5
and 8.1). A slice needs its own points only.

The coefficients are smooth, and Hermitian by construction. With phases :math:`p = W c(k)`, where
:math:`c(-k) = -c(k)`, the layers take the even features :math:`\cos p`, so that the last layer's
:math:`h(k)` is even, and

.. math:: F(k) = A(|k|) \bigl[a \cdot h(k) - i\, \sin p \cdot B h(k)\bigr] = \overline{F(-k)} .

A row w of W is a position in the volume, and is initialised as one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from vitreous.core.fourier import irfft_centered
from vitreous.nn.layers import initialise
from vitreous.nn.slice_source import SliceSource

_CHUNK = 2**15  # points of a volume evaluated together


@lru_cache(maxsize=32)
def _points(n: int, ndim: int, radius: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (x, y, z) cycles per box below a radius and n / 2, and half-spectrum indices."""
    full = torch.fft.fftfreq(n, 1.0 / n)
    half = torch.fft.rfftfreq(n, 1.0 / n)
    axes = torch.meshgrid(*([full] * (ndim - 1)), half, indexing="ij")
    frequency = torch.stack(axes[::-1], -1).reshape(-1, ndim)
    inside = frequency.square().sum(-1) < min(radius, n / 2) ** 2
    return frequency[inside].to(device), inside.nonzero()[:, 0].to(device)


class SliceGenerator(SliceSource):
    """Generator of central slices of volumes given by an implicit network (SIREN).

    ``layers`` hidden sine layers of ``width`` neurons are each scaled and shifted by the latent
    vector.

    Args:
        box_size: N, the largest edge of the images in pixels; :meth:`set_box_size` sets smaller
            ones of the same field of view.
        grid: edge of the grid of trainable displacements of the frequencies, odd; 0: none.
        particle_radius: radius in box sizes of the ball of initial positions of the first layer.

    Raises:
        ValueError: an even grid, no layers.

    >>> source = SliceGenerator(16, 4, 8, 2, generator=torch.Generator().manual_seed(0))
    >>> source.slices(torch.zeros(5, 4), torch.eye(3).expand(5, 3, 3)).shape
    torch.Size([5, 16, 9])
    >>> source.volume(torch.zeros(4)).shape
    torch.Size([16, 16, 16])
    """

    def __init__(
        self,
        box_size: int,
        latent: int,
        width: int = 64,
        layers: int = 3,
        *,
        grid: int = 9,
        particle_radius: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        if grid % 2 == 0 and grid != 0:
            raise ValueError(f"grid must be odd, so that it has a middle, or 0, got {grid}")
        self.largest = self.box_size = box_size
        self.latent, self.width = latent, width
        position = torch.randn(width, 3, generator=generator)
        radius = torch.rand(width, 1, generator=generator) ** (1 / 3)
        position = position / position.norm(dim=1, keepdim=True) * radius * particle_radius
        self.place = nn.Parameter(position * box_size / 2)  # radians per unit of k / Nyquist / 2 pi
        self.displacement = nn.Parameter(torch.zeros(1, 3, grid, grid, grid)) if grid else None
        last = nn.Linear(width, 2 * layers * width)
        hidden = [nn.Linear(width, width) for _ in range(layers)]
        first = nn.Linear(latent, width), nn.LeakyReLU(0.1)
        self.mapping = nn.Sequential(*first, nn.Linear(width, width), nn.LeakyReLU(0.1), last)
        self.hidden = nn.ModuleList(hidden)
        self.real = nn.Linear(width, 1, bias=False)
        self.imaginary = nn.Linear(width, width, bias=False)
        shell = torch.arange(box_size // 2 + 1, dtype=torch.float32)
        decay = -torch.log1p((shell / 3).square())
        total = (2 * math.pi * shell * torch.exp(2 * decay)).sum()
        self.log_amplitude = nn.Parameter(decay - 0.5 * total.log())
        self._initialise(last, hidden, generator)

    def _initialise(
        self, last: nn.Linear, hidden: list[nn.Linear], generator: torch.Generator | None
    ) -> None:
        """Draw He's weights for the mapping, uniform to sqrt(6 / width) for the sine layers."""
        if generator is not None:
            initialise(self.mapping, generator)
        with torch.no_grad():
            last.weight.mul_(0.25)  # small initial differences between volumes
            bound = math.sqrt(6 / self.width)
            for layer in hidden:
                uniform = torch.rand(layer.weight.shape, generator=generator)
                layer.weight.copy_((2 * uniform - 1) * bound)
                layer.bias.zero_()
            for layer in (self.real, self.imaginary):
                normal = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(normal / self.width)

    def _modulation(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and shifts of the layers, each ``(b, layers, 1, width)``."""
        flat = self.mapping(latent).view(len(latent), 2, len(self.hidden), 1, self.width)
        return 1 + flat[:, 0], flat[:, 1]

    def _coordinates(self, unit: Tensor) -> Tensor:
        """Displace frequencies ``(b, p, 3)`` in units of Nyquist by the trained odd field."""
        if self.displacement is None:
            return unit
        odd = self.displacement - self.displacement.flip(2, 3, 4)
        moved = nn.functional.grid_sample(
            odd, unit.reshape(1, 1, 1, -1, 3), align_corners=True, padding_mode="border"
        )
        return unit + moved.reshape(3, *unit.shape[:2]).permute(1, 2, 0)

    def coefficients(self, frequency: Tensor, latent: Tensor) -> Tensor:
        """Return Fourier coefficients ``(b, p, 2)``, real and imaginary part, of volumes.

        ``frequency`` is ``(b, p, 3)``, (x, y, z), in cycles per box; ``latent`` is ``(b, d)``. The
        Fourier series does not depend on the box.
        """
        scale, shift = self._modulation(latent)
        unit = frequency * (2 / self.largest)
        phase = self._coordinates(unit) @ (2 * math.pi * self.place.T)
        h, odd = torch.cos(phase), torch.sin(phase)
        for i, layer in enumerate(self.hidden):
            h = torch.sin(scale[:, i] * layer(h) + shift[:, i])
        real = self.real(h)[..., 0]
        imaginary = -(odd * self.imaginary(h)).sum(-1)
        return torch.stack([real, imaginary], -1) * self._amplitude(frequency)[..., None]

    def _amplitude(self, frequency: Tensor) -> Tensor:
        """Return the radial factor ``(b, p)``, interpolated in its logarithm between shells."""
        radius = frequency.square().sum(-1).clamp_min(1e-12).sqrt()
        radius = radius.clamp(max=self.largest // 2 - 1e-3)
        below = radius.detach().floor().long()
        part = radius - below
        log = self.log_amplitude
        # 1.5 gives images of the initial weights unit variance
        return (
            1.5 * math.sqrt(self.width) * torch.exp(log[below] * (1 - part) + log[below + 1] * part)
        )

    def slices(
        self, latent: Tensor, rotations: Tensor | None, *, radius: float | None = None
    ) -> Tensor:
        """Return central slices; see :meth:`vitreous.nn.slice_source.SliceSource.slices`.

        Raises:
            ValueError: no rotations.
        """
        if rotations is None:
            raise ValueError("slices of a volume need rotations (b, 3, 3), got None")
        n = self.box_size
        radius = n / 2 if radius is None else radius
        plane, index = _points(n, 2, radius, latent.device)
        frequency = plane.to(rotations.dtype) @ rotations[:, :2]  # R^T (kx, ky, 0)
        values = self.coefficients(frequency, latent) * n**2
        return _fill(values, index, n, 2)

    @torch.no_grad()
    def volume(self, latent: Tensor, *, radius: float | None = None) -> Tensor:
        """Return the volume ``(n, n, n)`` of a latent vector ``(d,)``, zero beyond ``radius``."""
        n = self.box_size
        radius = n / 2 if radius is None else radius
        points, index = _points(n, 3, radius, latent.device)
        points = points.to(latent.dtype)
        pieces = [self.coefficients(k[None], latent[None])[0] for k in torch.split(points, _CHUNK)]
        spectrum = _fill(torch.cat(pieces)[None] * n**2, index, n, 3)[0]
        return irfft_centered(spectrum, (n, n, n))


def _fill(values: Tensor, index: Tensor, n: int, ndim: int) -> Tensor:
    """Put coefficients ``(b, p, 2)`` at flat indices of half spectra that are zero elsewhere."""
    flat = values.new_zeros(len(values), n ** (ndim - 1) * (n // 2 + 1), 2)
    flat = flat.index_copy(1, index, values)
    shape = (len(values), *([n] * (ndim - 1)), n // 2 + 1)
    return torch.view_as_complex(flat).view(shape)
