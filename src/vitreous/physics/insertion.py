r"""Insertion of CTF-weighted image spectra into a Fourier grid: the sums of direct reconstruction.

By the slice theorem, image i, moved back by its shift, samples the volume's spectrum on the plane
:math:`R_i^T (k_x, k_y, 0)`, multiplied by its CTF :math:`c_i`. The sums over all particles are

.. math::

    B = \sum_i w_i\, T_i^*\, [c_i\, \bar s_i\, \hat y_i], \qquad
    W = \sum_i w_i\, T_i^*\, [c_i^2],

where :math:`T_i^*` spreads each frequency linearly over the eight nearest points of a grid twice as
fine as that of the images, and :math:`s_i` is the phase ramp of the shift. B / W is the
least-squares spectrum, except for the mixing of neighbouring points.

Unlike reading slices, spreading needs no wider kernel: the volume fills half of the field of the
fine grid, so that its aliases fall outside and are cut away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.symmetry import cosets, point_group
from vitreous.physics.ctf import ctf_half, damping, phase_coefficients
from vitreous.physics.kernels import insertion_cpu, insertion_torch
from vitreous.physics.kernels.insertion_points import SPREAD, half_disc
from vitreous.physics.shift import axis_phases

__all__ = ["SPREAD", "Accumulator", "Gridding", "half_disc", "weighted_slices"]

_NO_CTF = (0.0, 0.0, 0.0, 0.0, -0.25)  # -sin(-pi / 2) = 1


def weighted_slices(
    images: Tensor,
    shift_angstrom: Tensor | None,
    optics: Optics | None,
    pixel_size_angstrom: float,
    *,
    box_size: int | None = None,
    weight: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    r"""Return the terms of each image :math:`(w c \bar s \hat y,\; w c^2)` on half a Nyquist disc.

    float32 ``(b, points, 3)``: real part, imaginary part, weight.

    Args:
        images: real ``(b, n, n)``.
        shift_angstrom: ``(b, 2)``, displacement (x, y) of the particle in the image, which is
            undone; None for none.
        optics: CTF of each image, ``(b,)``; None for images without CTF.
        pixel_size_angstrom: pixel size of the images, Å.
        box_size: box of the map, at most n; below n frequencies beyond its Nyquist are left out.
            Grey values stay those at box n.
        weight: ``(b,)``, such as the inverse noise variance of each image; 1 by default.

    >>> weighted_slices(torch.zeros(2, 8, 8), None, None, 1.0)[..., 2].unique().tolist()
    [0.5, 1.0]
    """
    b, full, device = len(images), images.shape[-1], images.device
    n = box_size or full
    shift = torch.zeros(b, 2, device=device) if shift_angstrom is None else shift_angstrom
    # the image origin n // 2 is one more shift
    origin = (full // 2) * pixel_size_angstrom
    phase_x, phase_y = axis_phases(full, shift + origin, pixel_size_angstrom)
    phases = phase_x * (n / full) ** 3, phase_y
    factor = torch.ones(b, device=device) if weight is None else weight
    images = images.to(torch.float32)
    fourth_order = optics is not None and optics.even_turns is not None  # not in the CPU kernel
    if device.type != "cpu" or fourth_order:
        ctf = torch.ones(b, full, full // 2 + 1, device=device)
        if optics is not None:
            ctf = ctf_half(full, pixel_size_angstrom, optics)
        values = insertion_torch.weight(torch.fft.rfft2(images), ctf, phases, factor, n)
    else:
        phase = torch.tensor(_NO_CTF, dtype=torch.float64).repeat(b, 1)
        b_factor = torch.zeros(b)
        if optics is not None:
            phase, b_factor = phase_coefficients(optics), optics.b_factor_angstrom2
        step = 1 / (full * pixel_size_angstrom)
        values = insertion_cpu.weight(
            images.contiguous(), (phase, b_factor, step), phases, factor, n, threads
        )
        points = half_disc(n)
        squared = torch.from_numpy(step**2 * (points.kx**2.0 + points.ky**2.0)).float()
        damped = None if optics is None else damping(squared, optics)
        if damped is not None:
            values *= torch.stack([damped, damped, damped.square()], -1)
    values[:, 0] *= 0.5  # zero frequency is its own opposite
    return values


@dataclass(frozen=True)
class Gridding:
    """Complete, symmetrised sums over one set of particles.

    Args:
        numerator: B, complex64 ``(n, 2n - 1, 2n - 1)``: kx from 0 on, ky and kz from 1 - n on, in
            steps of 1 / :data:`SPREAD` cycles per box.
        weight: W, float32, likewise.
        box_size: n.
    """

    numerator: Tensor
    weight: Tensor
    box_size: int

    def __add__(self, other: Gridding) -> Gridding:
        """Return the sums over both sets of particles."""
        if self.box_size != other.box_size:
            raise ValueError(f"boxes differ: {self.box_size} and {other.box_size}")
        return Gridding(self.numerator + other.numerator, self.weight + other.weight, self.box_size)


class Accumulator:
    """Accumulator of the sums of several sets of particles, batch by batch.

    Symmetry (a point group in RELION's axes) is exact: every image is inserted once for each coset
    of those rotations of the group that map the grid onto itself, and the grid is summed over these
    at the end. ``box_size`` is that of the images; ``sets`` is 2 for half sets.

    >>> sums = Accumulator(8, sets=1)
    >>> sums.insert(weighted_slices(torch.ones(1, 8, 8), None, None, 1.0), torch.eye(3)[None])
    >>> sums.gridding(0).numerator[0, 7, 7].real.item()
    64.0
    """

    def __init__(
        self,
        box_size: int,
        *,
        sets: int = 2,
        symmetry: str = "C1",
        device: torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        self.box_size = box_size
        self._device = device or torch.device("cpu")
        self._copies, self._exact = cosets(point_group(symmetry))
        cpu = self._device.type == "cpu"
        threads = threads or torch.get_num_threads()
        self._edges = insertion_cpu.slab_edges(box_size, -(-threads // sets) if cpu else 1)
        self._loop = insertion_cpu.insert if cpu else insertion_torch.insert
        edge = SPREAD * box_size + 1
        thick = [last - first + 1 for first, last in pairwise(self._edges)]
        zeros = partial(torch.zeros, device=self._device)
        self._slabs = [[zeros(planes, edge, edge, 3) for planes in thick] for _ in range(sets)]

    def insert(self, values: Tensor, rotations: Tensor, sets: Tensor | None = None) -> None:
        """Add images, from :func:`weighted_slices`, under rotations ``(b, 3, 3)``.

        ``sets`` is long ``(b,)``, the set of each image, -1 for none; None: set 0 for all.

        Raises:
            ValueError: rotations that are not ``(b, 3, 3)`` for the images.
        """
        if tuple(rotations.shape) != (len(values), 3, 3):
            raise ValueError(
                f"rotations must be {(len(values), 3, 3)}, got {tuple(rotations.shape)}"
            )
        copies = rotations[:, None]
        if len(self._copies) > 1:
            copies = rotations.double()[:, None] @ self._copies.to(rotations.device)
        if sets is None:
            sets = torch.zeros(len(values), dtype=torch.long, device=values.device)
        self._loop(self._slabs, self._edges, values, copies, sets)

    def gridding(self, number: int) -> Gridding:
        """Return the sums of one set of the images inserted so far."""
        n = self.box_size
        edge = SPREAD * n + 1
        grid = torch.zeros(n + 1, edge, edge, 3, device=self._device)
        for first, slab in zip(self._edges, self._slabs[number], strict=False):
            grid[first : first + len(slab)] += slab
        # points with kx < 0 were inserted at their opposites; the plane kx = 0 holds both
        opposite = grid[0].flip(0, 1)
        grid[0] += torch.stack([opposite[..., 0], -opposite[..., 1], opposite[..., 2]], -1)
        grid = _sum_over(self._exact, grid)[:n, 1:-1, 1:-1]
        numerator = torch.view_as_complex(grid[..., :2].contiguous())
        return Gridding(numerator, grid[..., 2].contiguous(), n)


def _sum_over(rotations: Tensor, grid: Tensor) -> Tensor:
    """Sum a half grid ``(n + 1, 2n + 1, 2n + 1, 3)`` over signed permutations of its axes."""
    if len(rotations) == 1:
        return grid
    n = len(grid) - 1
    out = torch.zeros_like(grid)
    for part, sign in enumerate((1, -1, 1)):  # opposite frequencies are conjugates
        values = grid[..., part]
        whole = torch.cat([sign * values[1:].flip(0, 1, 2), values])
        for rotation in rotations.round().long().cpu():
            target = rotation.abs().argmax(1)  # axis of the sum for each axis of the grid
            flipped = whole.flip([i for i in range(3) if rotation[i, target[i]] < 0])
            out[..., part] += flipped.permute(*target.argsort().tolist())[n:]
    return out
