"""Images of several optics groups on one grid, with what programs applied to them undone."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.fourier import resampling_kernel
from vitreous.core.params import Optics
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import StackSource
from vitreous.physics.aberrations import Distortion, undo_distortion
from vitreous.physics.ctf import ctf_half

SAME_PIXEL = 1.001  # ratio up to which pixel sizes count as one
_LEAST_CTF = 0.1  # that images are divided by
_LEAST_DAMPING = 0.01  # below it RELION writes zeros


@dataclass(frozen=True)
class Grid:
    """Box in pixels and pixel size in Å of images."""

    box_size: int
    pixel_size_angstrom: float

    def __str__(self) -> str:
        return f"{self.box_size} px at {self.pixel_size_angstrom:.5g} Å"


def common_grid(grids: list[Grid]) -> Grid:
    """Return the grid that all images can be brought to without inventing anything.

    Its pixel is the largest of all, its field of view the smallest.

    >>> common_grid([Grid(32, 4.0), Grid(24, 16 / 3)]).box_size
    24
    >>> common_grid([Grid(32, 4.0), Grid(32, 4.01)])
    Grid(box_size=32, pixel_size_angstrom=4.01)
    """
    sizes = [grid.pixel_size_angstrom for grid in grids]
    pixel = sizes[0] if max(sizes) <= SAME_PIXEL * min(sizes) else max(sizes)
    field = min(grid.box_size * grid.pixel_size_angstrom for grid in grids)
    box = math.floor(field / pixel + 0.5)
    if any(grid.box_size != box for grid in grids):
        box -= box % 2
    return Grid(box, pixel)


def resample(images: Tensor, pixel_size_angstrom: float, to: Grid) -> Tensor:
    """Evaluate images ``(b, n, n)`` by their Fourier series on another grid of the same centre.

    The field of view may shrink; a constant keeps its value.

    >>> resample(torch.ones(1, 9, 9), 2.0, Grid(5, 3.1)).std().item() < 1e-6
    True
    """
    n, box, ratio = images.shape[-1], to.box_size, to.pixel_size_angstrom / pixel_size_angstrom
    if max(ratio, 1 / ratio) <= SAME_PIXEL:
        first = n // 2 - box // 2
        return images[:, first : first + box, first : first + box]
    kernel = resampling_kernel(n, box, ratio).to(images)
    return kernel @ images @ kernel.mT


def undo_multiplication(
    images: Tensor, optics: Optics, pixel_size_angstrom: float, *, phases_only: bool
) -> Tensor:
    """Undo a multiplication of images ``(b, n, n)`` by their CTF, or by its sign.

    Signal and noise become those of images that were never multiplied, except where the CTF is
    below a tenth (an exposure: below a hundredth): there both stay weaker.

    >>> flat = Optics.uniform(1, defocus_angstrom=0.0, cs_mm=0.0, amplitude_contrast=0.5)
    >>> undo_multiplication(torch.ones(1, 8, 8), flat, 2.0, phases_only=False).mean().item()
    2.0
    """
    n, none = images.shape[-1], torch.zeros_like(optics.scale)
    bare = replace(optics, scale=none + 1, b_factor_angstrom2=none, exposure_e_per_angstrom2=none)
    oscillation = ctf_half(n, pixel_size_angstrom, bare)
    sign = torch.where(oscillation < 0, -1.0, 1.0)
    if phases_only:
        factor = sign
    else:
        damping = ctf_half(n, pixel_size_angstrom, optics) / torch.where(
            oscillation.abs() < 1e-6, 1e-6 * sign, oscillation
        )
        factor = sign / oscillation.abs().clamp_min(_LEAST_CTF) / damping.clamp_min(_LEAST_DAMPING)
    return torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(n, n))


@dataclass(frozen=True)
class Multiplied:
    """Which images ``(n,)`` were multiplied by their CTF, or by its sign, and the optics of all."""

    by_ctf: NDArray[np.bool_]
    by_sign: NDArray[np.bool_]
    optics: Optics


class Undistorted:
    """Distortions of images, undone as they are read; those of equal ones together."""

    def __init__(self, distortion: Distortion) -> None:
        groups = distortion.groups()
        self._distortions = [distortion[rows[0]] for rows in groups]
        self._group_of = np.empty(len(distortion.magnification), dtype=np.int64)
        for number, rows in enumerate(groups):
            self._group_of[rows.numpy()] = number

    def __call__(self, images: Tensor, rows: NDArray[np.int64], pixel_size: float) -> Tensor:
        """Return images ``(b, n, n)`` of these rows as plain optics would have given them."""
        out = torch.empty_like(images)
        for number in np.unique(self._group_of[rows]).tolist():
            place, one = np.flatnonzero(self._group_of[rows] == number), self._distortions[number]
            out[place] = undo_distortion(
                images[place], one.magnification, one.odd_phase, pixel_size
            )
        return out


class CommonGridSource(StackSource):
    """Images of a source of stacks on one grid.

    Args:
        stacks: the images as they are stored.
        pixel_sizes_angstrom: of each image, ``(n,)``.
        multiplied: multiplications to be undone; None for none.
        undistorted: distortions to be undone; None for none.

    Attributes:
        grid: of the images that are read.
        grids: of the images as they are stored, without repetition.
    """

    def __init__(
        self,
        stacks: StackSource,
        pixel_sizes_angstrom: NDArray[np.float64],
        multiplied: Multiplied | None = None,
        undistorted: Undistorted | None = None,
    ) -> None:
        super().__init__(stacks.headers, stacks._stack_of, stacks._index_in)
        both = np.stack([stacks.box_sizes, pixel_sizes_angstrom], axis=-1)
        stored, of_image = np.unique(both, axis=0, return_inverse=True)
        self.grids = tuple(Grid(int(box), float(size)) for box, size in stored)
        self._grid_of, self._multiplied = of_image.reshape(-1), multiplied
        self._undistorted = undistorted
        self.grid = common_grid([self.grids[i] for i in dict.fromkeys(self._grid_of.tolist())])
        self.box_size = self.grid.box_size

    @property
    def mixed(self) -> bool:
        """Whether images are stored on another grid."""
        to = self.grid
        return any(
            stored.box_size != to.box_size
            or not 1 / SAME_PIXEL
            <= stored.pixel_size_angstrom / to.pixel_size_angstrom
            <= SAME_PIXEL
            for stored in self.grids
        )

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read images ``(b, y, x)`` in the order asked for."""
        images = np.empty((len(indices), self.box_size, self.box_size), np.float32)
        for number in np.unique(self._grid_of[indices]).tolist():
            place = np.flatnonzero(self._grid_of[indices] == number)
            rows, pixel = indices[place], self.grids[number].pixel_size_angstrom
            stored = self._undone(torch.from_numpy(super().read(rows)), rows, pixel)
            images[place] = resample(stored, pixel, self.grid).numpy()
        return images

    def _undone(self, images: Tensor, rows: NDArray[np.int64], pixel: float) -> Tensor:
        if self._undistorted is not None:
            images = self._undistorted(images, rows, pixel)
        if self._multiplied is None:
            return images
        for chosen, phases in ((self._multiplied.by_ctf, False), (self._multiplied.by_sign, True)):
            place = np.flatnonzero(chosen[rows])
            if len(place):
                optics = self._multiplied.optics[torch.from_numpy(rows[place])]
                images[place] = undo_multiplication(
                    images[place], optics, pixel, phases_only=phases
                )
        return images


def on_common_grid(
    table: ParticleTable, stacks: StackSource, ctf: Optics | str, distortion: Distortion | None
) -> tuple[StackSource, float]:
    """Return images on one grid, multiplications and distortions undone, and their pixel size in Å.

    Raises:
        InputError: no pixel size, or multiplied images without CTF.
    """
    sizes = table.pixel_sizes_with(stacks.headers[0])
    by_ctf = table.flagged("rlnCtfDataAreCtfPremultiplied")
    by_sign = table.flagged("rlnCtfDataArePhaseFlipped") & ~by_ctf
    multiplied = None
    if by_ctf.any() or by_sign.any():
        if isinstance(ctf, str):
            raise InputError(ctf)
        multiplied = Multiplied(by_ctf, by_sign, ctf)
    undistorted = None if distortion is None else Undistorted(distortion)
    source = CommonGridSource(stacks, sizes, multiplied, undistorted)
    if source.mixed:
        listing = "; ".join(map(str, source.grids))
        warnings.warn(
            f"{table.path}: images of several grids ({listing}) are brought to {source.grid}, the "
            "coarsest; to leave a group out use `vitreous select` and `optics_group`",
            stacklevel=4,
        )
    needed = source.mixed or multiplied is not None or distortion is not None
    return source if needed else stacks, source.grid.pixel_size_angstrom
