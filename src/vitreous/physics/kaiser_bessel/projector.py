r"""The imaging matrix H of model-based reconstruction: lattice coefficients to images.

Image p of the volume :math:`\sum_k c_k\, \varphi((x - s k) / s)` is, equation (2.6), a sum of the
window's X-ray transforms about the projected lattice points, filtered by the microscope. Its
spectrum inside the Nyquist circle of the images is therefore a product,

.. math::

    \widehat{(H_p c)}(q) = C_p(q)\, S_p(q)\; s^3 \hat\varphi(s q)\; \hat c(R_p^T q), \qquad
    \hat c(q) = \sum_k c_k\, e^{-2 \pi i\, s k \cdot q},

and :math:`\hat c(R^T q)` is a central slice of the spectrum of a volume that holds the coefficients
in every s-th voxel and zeros between them: the projector reads it. Images are periodic: what
projects beyond an edge comes back in at the opposite one.

Source: L. Donati, PhD thesis, EPFL 2020, sections 2.2.2 and 4.1.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitreous.core.grid import frequency_grid
from vitreous.linop.operator import FourierFilter, LinearOperator, on_each
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.projector import back_project, oversampled_spectrum, project_spectrum


def room_around(edge: int, factor: float = 1.5) -> int:
    """Return the even edge of the projector's box for a lattice of ``edge`` pixels.

    Coefficients fill their cube to its corners, where the projector's aliasing is largest. A box
    half as large again lowers it from 1e-2 to 5e-4 of the images, for white coefficients.

    >>> room_around(64)
    96
    """
    return 2 * math.ceil(factor * edge / 2)


def every(box: int, size: int, scale: int) -> slice:
    """Return the voxels of a box, along one axis, that a lattice in its middle holds.

    >>> every(8, 3, 2)
    slice(2, 7, 2)
    """
    first = box // 2 - scale * (size // 2)
    return slice(first, first + scale * (size - 1) + 1, scale)


def window_transfer(
    n: int,
    window: KaiserBessel,
    scale: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Return :math:`s^3 \hat\varphi(s q)` on the Hermitian half of images, s the spacing in px.

    >>> round(window_transfer(8, KaiserBessel(), 2)[0, 0].item() / 8, 4)
    2.3821
    """
    kx, ky = frequency_grid(n, dtype=torch.float64)
    transfer = scale**3 * window.transform(scale * (kx**2 + ky**2).sqrt())
    return transfer.to(device=device, dtype=dtype)


class WindowProjector(LinearOperator):
    """Projector from lattice coefficients to images, with its exact adjoint.

    ``CTF @ Shift @ WindowProjector`` fuses into one multiplication per image, the half-spectrum
    ``multiplier``. Leading dimensions of coefficients ``(N, N, N)``, N = ceil(n / s), or of images
    are a batch, one volume each. ``scale`` is s, the lattice's spacing in pixels, a whole number.

    Raises:
        ValueError: a scale below 1.

    >>> H = WindowProjector(torch.eye(3)[None], 9, KaiserBessel(), 2)
    >>> H.domain_shape, H(torch.zeros(5, 5, 5)).shape
    ((5, 5, 5), torch.Size([1, 9, 9]))
    """

    def __init__(
        self,
        rotations: Tensor,
        n: int,
        window: KaiserBessel,
        scale: int = 1,
        multiplier: Tensor | None = None,
    ) -> None:
        if scale < 1:
            raise ValueError(f"scale must be a whole number from 1, got {scale}")
        self.rotations = rotations
        self.n = n
        self.window = window
        self.scale = scale
        self.multiplier = multiplier
        size = lattice_size(n, scale)
        self._box = room_around(scale * size)
        self._every = every(self._box, size, scale)
        self.domain_shape = (size, size, size)
        self.range_shape = (len(rotations), n, n)

    def _factor(self, like: Tensor) -> Tensor:
        transfer = window_transfer(
            self.n, self.window, self.scale, device=like.device, dtype=like.dtype
        )
        return transfer if self.multiplier is None else transfer * self.multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Image coefficients ``x (..., N, N, N)`` as ``(..., b, n, n)``, grey value times pixel."""
        chosen, factor = self._every, self._factor(x)

        def project(coefficients: Tensor) -> Tensor:
            lattice = x.new_zeros((self._box,) * 3)
            lattice[chosen, chosen, chosen] = coefficients
            spectrum = oversampled_spectrum(lattice)
            return project_spectrum(spectrum, self.rotations, self.n, factor, box=self._box)

        return on_each(project, x, self.domain_shape, "coefficients")

    def adjoint(self, y: Tensor) -> Tensor:
        """Return H^T y of images ``(..., b, n, n)``, the transpose of :meth:`forward`."""
        chosen, factor = self._every, self._factor(y)

        def lattice(images: Tensor) -> Tensor:
            volume = back_project(images, self.rotations, factor, box=self._box)
            return volume[chosen, chosen, chosen]

        return on_each(lattice, y, self.range_shape, "images")

    def _fuse_left(self, left: LinearOperator) -> LinearOperator | None:
        """Absorb a Fourier filter applied after the projection."""
        if not isinstance(left, FourierFilter):
            return None
        product = left.multiplier if self.multiplier is None else left.multiplier * self.multiplier
        return WindowProjector(self.rotations, self.n, self.window, self.scale, product)
