r"""The normal equations of model-based reconstruction: H^T H as one convolution, and H^T b.

For images that are periodic, or so large that nothing leaves them, the entry of H^T H between two
coefficients depends on their lag alone, theorem 1 (equation (4.12)). In the terms of
:mod:`vitreous.physics.kaiser_bessel.projector`, over the frequencies q of the images,

.. math::

    r_d = \frac{1}{n^2} \sum_p \sum_{|q| < 1/2} C_p^2(q)\, |s^3 \hat\varphi(s q)|^2
    \cos(2 \pi\, s d \cdot R_p^T q), \qquad
    (H^T H c)_k = \sum_l r_{k - l}\, c_l,

from which shifts drop out. The kernel is a back-projection of
:math:`C^2 |\hat\varphi|^2` onto a box of all lags, and theorem 2's H^T b one of
:math:`C \bar S \hat\varphi\, \hat b` onto the lattice: one pass over the images makes both, and
iterations afterwards cost the same for any number of images.

Source: L. Donati, PhD thesis, EPFL 2020, section 4.1, theorems 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional

from vitreous.core.params import Optics
from vitreous.core.resample import mean_over_rotations
from vitreous.core.symmetry import cosets, point_group
from vitreous.linop.operator import LinearOperator
from vitreous.physics.insertion import weighted_slices
from vitreous.physics.kaiser_bessel.projector import every, room_around, window_transfer
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.kernels.insertion_points import half_disc
from vitreous.physics.projector import SliceSum

# Few pairs of coefficients have the longest lags: less room is needed than around the lattice.
_LAG_ROOM = 1.25
_THREADS_FROM = 200  # edge of the padded cube from which threads are worth their start


def _convolve_scipy(x: Tensor, spectrum: Tensor) -> Tensor:
    """See :func:`_convolve`; several lines at once, so four times faster than torch's along z."""
    n, size = x.shape[-1], spectrum.shape[0]
    workers = torch.get_num_threads() if size >= _THREADS_FROM else 1
    y = scipy.fft.rfft(x.detach().numpy(), n=size, workers=workers)
    for axis in (-2, -3):
        y = scipy.fft.fft(y, n=size, axis=axis, workers=workers, overwrite_x=True)
    y *= spectrum.numpy()
    y = scipy.fft.ifft(y, axis=-3, workers=workers, overwrite_x=True)[..., :n, :, :]
    y = scipy.fft.ifft(y, axis=-2, workers=workers)[..., :n, :]
    return torch.from_numpy(scipy.fft.irfft(y, n=size, workers=workers)[..., :n])


def _convolve(x: Tensor, spectrum: Tensor) -> Tensor:
    """Zero-pad a cube, multiply its spectrum and crop; rows of zeros are not transformed."""
    n, size = x.shape[-1], spectrum.shape[0]
    y = torch.fft.rfft(x, n=size)
    y = torch.fft.fft(torch.fft.fft(y, n=size, dim=-2), n=size, dim=-3) * spectrum
    y = torch.fft.ifft(torch.fft.ifft(y, dim=-3)[..., :n, :, :], dim=-2)[..., :n, :]
    return torch.fft.irfft(y, n=size)[..., :n].to(x.dtype)


class _Convolution(torch.autograd.Function):
    """Convolution by a spectrum; it is self-adjoint, hence its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spectrum: Tensor) -> Tensor:
        ctx.save_for_backward(spectrum)
        convolve = _convolve_scipy if x.device.type == "cpu" else _convolve
        return convolve(x, spectrum).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (spectrum,) = ctx.saved_tensors
        return _Convolution.apply(gradients[0], spectrum), None  # type: ignore[no-untyped-call]  # torch's own


class ConvolutionOperator(LinearOperator):
    r"""Convolution of a cube of coefficients with a symmetric kernel, :math:`\sum_l r_{k-l} c_l`.

    Zero-padded to at least twice the edge, so nothing wraps. Self-adjoint, of the precision of its
    argument; leading dimensions are a batch.

    Args:
        kernel: real ``(2N - 1, 2N - 1, 2N - 1)``, lag 0 in the middle; what is not symmetric under
            :math:`d \to -d` is rounding, and averaged away.

    Raises:
        ValueError: a kernel that is not cubic with an odd edge.

    Attributes:
        diagonal: of the matrix, the kernel at lag 0.
        spectrum: eigenvalues of the circular convolution on the padded cube: its real
            half-spectrum in FFT order.

    >>> kernel = torch.zeros(3, 3, 3); kernel[1, 1, 1] = 2.0
    >>> ConvolutionOperator(kernel)(torch.ones(2, 2, 2)).unique().tolist()
    [2.0]
    """

    def __init__(self, kernel: Tensor) -> None:
        edge = kernel.shape[-1]
        if kernel.ndim != 3 or len(set(kernel.shape)) != 1 or edge % 2 == 0:
            raise ValueError(f"kernel must be a cube of odd edge, got {tuple(kernel.shape)}")
        n = (edge + 1) // 2
        self.domain_shape = self.range_shape = (n, n, n)
        self.diagonal = float(kernel[n - 1, n - 1, n - 1])
        size = scipy.fft.next_fast_len(edge, real=True)
        lags = kernel.new_zeros((size,) * 3)
        lags[:edge, :edge, :edge] = (kernel + kernel.flip(0, 1, 2)) / 2
        centred = lags.roll((1 - n,) * 3, (0, 1, 2))
        self.spectrum = torch.fft.rfftn(centred).real.contiguous()

    @classmethod
    def of_spectrum(cls, spectrum: Tensor, n: int, diagonal: float) -> ConvolutionOperator:
        """Return the operator with this spectrum, edge of its domain and diagonal."""
        operator = cls.__new__(cls)
        operator.domain_shape = operator.range_shape = (n, n, n)
        operator.diagonal = diagonal
        operator.spectrum = spectrum
        return operator

    def __add__(self, other: ConvolutionOperator) -> ConvolutionOperator:
        """Return the convolution with the sum of both kernels, over the same coefficients."""
        if self.domain_shape != other.domain_shape:
            raise ValueError(f"cubes differ: {self.domain_shape} and {other.domain_shape}")
        spectrum = self.spectrum + other.spectrum
        n, diagonal = self.domain_shape[0], self.diagonal + other.diagonal
        return ConvolutionOperator.of_spectrum(spectrum, n, diagonal)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x (..., N, N, N)``, cropped to the same cube."""
        if tuple(x.shape[-3:]) != self.domain_shape:
            raise ValueError(f"coefficients must end in {self.domain_shape}, got {tuple(x.shape)}")
        return _Convolution.apply(x, self.spectrum)  # type: ignore[no-untyped-call]  # torch's own

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same as :meth:`forward`."""
        return self.forward(y)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of the cube on which the convolution is circular."""
        return (self.spectrum.shape[0],) * 3

    def pad(self, x: Tensor) -> Tensor:
        """Return the coefficients at the low corner of the padded cube, zeros elsewhere."""
        growth = self.padded_shape[0] - self.domain_shape[0]
        return functional.pad(x, (0, growth) * 3)

    def crop(self, w: Tensor) -> Tensor:
        """Return the adjoint of :meth:`pad`."""
        n = self.domain_shape[0]
        return w[..., :n, :n, :n]


@dataclass(frozen=True)
class NormalEquations:
    r"""Normal equations of a set of images: :math:`A = H^T H` and :math:`h = H^T b`.

    Args:
        operator: A, over coefficients ``(N, N, N)``.
        right_hand_side: h, ``(N, N, N)``.
        images: how many were summed.
        sum_of_squares: :math:`\|b\|^2`, weighted as the images were.
    """

    operator: ConvolutionOperator
    right_hand_side: Tensor
    images: int
    sum_of_squares: float

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Return the normal equations of both sets of images together."""
        return NormalEquations(
            self.operator + other.operator,
            self.right_hand_side + other.right_hand_side,
            self.images + other.images,
            self.sum_of_squares + other.sum_of_squares,
        )

    def objective(self, coefficients: Tensor) -> Tensor:
        r"""Return the data term of (2.10), :math:`\frac12 \|H c - b\|^2` of coefficients c."""
        quadratic = (coefficients * self.operator(coefficients)).sum() / 2
        return quadratic - (coefficients * self.right_hand_side).sum() + self.sum_of_squares / 2

    def gradient(self, coefficients: Tensor) -> Tensor:
        """Return A c - h."""
        return self.operator(coefficients) - self.right_hand_side


class NormalAccumulator:
    """Accumulator of normal equations, batch by batch.

    Symmetry (a point group in RELION's axes) is imposed by averaging over the images' symmetric
    copies, one for each rotation of the group. ``n`` is the edge of the images and ``scale`` the
    lattice's spacing s, a whole number, both in pixels.

    >>> sums = NormalAccumulator(8, KaiserBessel(), 2)
    >>> sums.insert(torch.ones(1, 8, 8), torch.eye(3)[None], None, None, 1.0)
    >>> sums.equations().right_hand_side.shape
    torch.Size([4, 4, 4])
    """

    def __init__(
        self,
        n: int,
        window: KaiserBessel,
        scale: int = 1,
        *,
        symmetry: str = "C1",
        device: torch.device | None = None,
    ) -> None:
        self.n = n
        self.scale = scale
        self._size = lattice_size(n, scale)
        self._copies, self._exact = cosets(point_group(symmetry))
        self._matched = SliceSum(n, room_around(scale * self._size), device=device)
        self._lags = SliceSum(
            n, room_around(scale * (2 * self._size - 1), _LAG_ROOM), device=device
        )
        points = half_disc(n)
        self._target = torch.as_tensor(points.ky % n * (n // 2 + 1) + points.kx, device=device)
        transfer = window_transfer(n, window, scale, device=device).flatten()[self._target]
        # one of each pair of opposite frequencies is held
        self._factors = 2 / n**2 * transfer, 2 / n**2 * transfer**2
        self._images = 0
        self._sum_of_squares = 0.0

    def insert(
        self,
        images: Tensor,
        rotations: Tensor,
        shift_angstrom: Tensor | None,
        optics: Optics | None,
        pixel_size_angstrom: float,
        *,
        weight: Tensor | None = None,
    ) -> None:
        """Add images ``(b, n, n)``, protein positive, under rotations ``(b, 3, 3)``.

        Rotations go from volume to particle coordinates. For the other arguments see
        :func:`~vitreous.physics.insertion.weighted_slices`.

        Raises:
            ValueError: images of another size, rotations that are not ``(b, 3, 3)``.
        """
        if tuple(images.shape[1:]) != (self.n, self.n):
            raise ValueError(f"images must be (b, {self.n}, {self.n}), got {tuple(images.shape)}")
        values = weighted_slices(images, shift_angstrom, optics, pixel_size_angstrom, weight=weight)
        to_matched, to_lags = self._factors
        matched = torch.view_as_complex(values[..., :2].contiguous()) * to_matched
        squared = (values[..., 2] * to_lags).to(matched.dtype)
        for sums, part in ((self._matched, matched), (self._lags, squared)):
            slices = part.new_zeros((len(part), self.n * (self.n // 2 + 1)))
            slices[:, self._target] = part
            for turn in self._copies.to(rotations):
                sums.insert(slices.view(-1, self.n, self.n // 2 + 1), rotations @ turn)
        squares = images.double().square().sum((-2, -1))
        self._sum_of_squares += float((squares if weight is None else squares * weight).sum())
        self._images += len(images)

    def equations(self) -> NormalEquations:
        """Return the normal equations of all images so far."""
        size, scale = self._size, self.scale
        right_hand_side = self._on_lattice(self._matched, every(self._matched.box, size, scale))
        kernel = self._on_lattice(self._lags, every(self._lags.box, 2 * size - 1, scale))
        return NormalEquations(
            ConvolutionOperator(kernel), right_hand_side, self._images, self._sum_of_squares
        )

    def _on_lattice(self, sums: SliceSum, chosen: slice) -> Tensor:
        """Return the mean over the group, at the chosen voxels of each axis."""
        volume = mean_over_rotations(sums.volume() / len(self._copies), self._exact)
        return volume[chosen, chosen, chosen].contiguous()
