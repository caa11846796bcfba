r"""Weighted back-projection and SIRT of tilt series.

Weighted back-projection, :math:`\sum_\theta \Delta\theta\, H_\theta^T (r * b_\theta)` with the ramp
filter r, and SIRT, :math:`c \leftarrow c + C A^T R (b - A c)`, R and C the inverse sums of the rows
and columns of A = S H.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.methods.tomography.total_variation import SIMULATION_WINDOW, WINDOW, Scan
from vitreous.optim.conjugate_gradient import dot
from vitreous.optim.loop import Stateful, Stats
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.tomography.scan import ScanMask

_FILL_PX = 0.6  # width of the filling where all is scanned; grows with the distance of scanned ones


def fill_unscanned(scan: Scan) -> Tensor:
    r"""Fill unscanned pixels with local means of scanned ones.

    Normalised convolution :math:`(g * S b) / (g * S)` with a Gaussian as wide as 0.6 mean distances
    between scanned pixels; scanned pixels stay.

    Source: Knutsson and Westin, CVPR (1993) 515.

    >>> scanned = torch.tensor([[[True, False, True]]])
    >>> fill_unscanned(Scan(torch.tensor([[[1.0, 0.0, 3.0]]]), torch.zeros(1), scanned)).tolist()
    [[[1.0, 2.0, 3.0]]]
    """
    if bool(scan.scanned.all()):
        return scan.images
    sigma = _FILL_PX / math.sqrt(max(float(scan.shares[scan.shares > 0].mean()), 1e-6))
    mask = scan.scanned.to(scan.images)
    filled, weight = _blur(scan.images, sigma), _blur(mask, sigma)
    means = scan.images.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
    local = (filled + 1e-6 * means[:, None, None]) / (weight + 1e-6)
    return torch.where(scan.scanned, scan.images, local)


def _blur(images: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(4 * sigma)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images)
    columns = F.conv2d(images[:, None], kernel.reshape(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(columns, kernel.reshape(1, 1, 1, -1), padding=(0, reach))[:, 0]


def tilt_weights(tilts_degrees: Tensor) -> Tensor:
    """Return the angle in radians that each tilt covers: half the way to either neighbour.

    >>> [round(math.degrees(w), 3) for w in tilt_weights(torch.tensor([0.0, 30.0, 10.0])).tolist()]
    [10.0, 20.0, 15.0]
    """
    if len(tilts_degrees) == 1:
        return torch.full((1,), math.pi, dtype=torch.float64)
    order = torch.argsort(tilts_degrees)
    steps = torch.deg2rad(tilts_degrees[order].double()).diff()
    ends = torch.cat([steps[:1], steps, steps[-1:]])
    weights = torch.empty(len(order), dtype=torch.float64)
    weights[order] = (ends[1:] + ends[:-1]) / 2
    return weights


def weighted_back_projection(
    scan: Scan, depth: int, *, window: KaiserBessel = SIMULATION_WINDOW
) -> Tensor:
    """Return the map ``(z, y, x)`` by filtered back-projection, in the volume's grey values.

    Unscanned pixels are filled first, see :func:`fill_unscanned`. Images are taken as zero beyond
    their edges. The map is ``depth`` voxels thick; ``window`` interpolates the images.
    """
    scan = scan.compact()
    images = fill_unscanned(scan)
    width = images.shape[-1]
    ramp = torch.fft.rfftfreq(2 * width, dtype=torch.float64).abs()
    ramp[0] = 1 / (8 * width)  # the mean of |f| over the first bin
    spectra = torch.fft.rfft(images, n=2 * width) * ramp.to(images)
    filtered = torch.fft.irfft(spectra, n=2 * width)[..., :width]
    weights = tilt_weights(scan.tilts_degrees).to(images)
    return scan.projector(depth, window).adjoint(weights[:, None, None] * filtered)


class Sirt(Stateful):
    """Solver of SIRT; one step is one iteration.

    ``expand_slices(solver.result(), window)`` is the map.

    Args:
        scan: measured pixels.
        depth: thickness of the volume in voxels.
        iterations: more fit the data better, and their noise.
        nonnegative: whether densities below 0 are set to 0 after each iteration.
        window: basis of the slices.

    Source: Gregor and Benson, IEEE Trans. Med. Imaging 27 (2008) 918, algorithm 1.
    """

    STATE = ("iteration", "x")

    def __init__(
        self,
        scan: Scan,
        depth: int,
        *,
        iterations: int = 50,
        nonnegative: bool = True,
        window: KaiserBessel = WINDOW,
    ) -> None:
        scan = scan.compact()
        self.iterations, self.nonnegative = iterations, nonnegative
        self._images = scan.images
        self._projector = scan.projector(depth, window)
        self._system = ScanMask(scan.scanned) @ self._projector
        self.iteration = 0
        self.x = scan.images.new_zeros(self._projector.domain_shape)
        self._rows = _inverse(self._projector(torch.ones_like(self.x)))
        self._columns = _inverse(self._system.adjoint(torch.ones_like(scan.images)))
        self._norm = max(dot(scan.images, scan.images), 1e-300) ** 0.5

    def step(self) -> Stats:
        """Do one iteration; return "residual", |A c - b| / |b|, before its update."""
        residual = self._images - self._system(self.x)
        x = self.x + self._columns * self._projector.adjoint(self._rows * residual)
        self.x = x.clamp_min(0) if self.nonnegative else x
        self.iteration += 1
        return {"residual": dot(residual, residual) ** 0.5 / self._norm}

    @property
    def done(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration >= self.iterations

    @property
    def progress(self) -> float:
        """Share of the iterations that are done."""
        return min(self.iteration / self.iterations, 1.0)

    def result(self) -> Tensor:
        """Return the coefficients ``(z, y, x)``."""
        return self.x


def _inverse(sums: Tensor) -> Tensor:
    """Return 1 / sums, 0 where a row or column is empty."""
    tiny = 1e-6 * float(sums.max())
    return torch.where(sums > tiny, 1 / sums.clamp_min(max(tiny, 1e-30)), torch.zeros_like(sums))
