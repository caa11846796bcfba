"""Reading of maps, resampling, and FSC tables."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.fourier import irfft_centered, resampling_kernel, rfft_centered
from vitreous.core.grid import frequency_grid
from vitreous.core.resample import is_same_map
from vitreous.io.atomic import atomic_write_text
from vitreous.io.mrc import read_header, read_mrc


def read_map(path: Path | str, pixel_size_angstrom: float | None = None) -> tuple[Tensor, float]:
    """Read a cubic, finite map from an MRC file, float32 ``(n, n, n)``, and its pixel size in Å.

    ``pixel_size_angstrom`` overrides that of the header.

    Raises:
        InputError: not a cube, NaN or infinite values, or no pixel size.

    >>> import tempfile
    >>> from vitreous.io.mrc import write_mrc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mrc(f"{folder}/map.mrc", np.zeros((4, 4, 4), np.float32), 2.5)
    ...     volume, pixel_size_angstrom = read_map(f"{folder}/map.mrc")
    >>> volume.shape, pixel_size_angstrom
    (torch.Size([4, 4, 4]), 2.5)
    """
    data, header = read_mrc(path)
    if len(set(data.shape)) != 1:
        shape = " x ".join(str(length) for length in data.shape)
        raise InputError(f"{path}: data: {shape} is no cubic map; give a volume")
    if np.iscomplexobj(data) or not np.isfinite(data).all():
        raise InputError(f"{path}: data: complex values, NaN or infinity; give a real, finite map")
    volume = torch.from_numpy(data.astype(np.float32))
    return volume, header.pixel_size_or(pixel_size_angstrom)


def read_mask(path: Path, half: Tensor, pixel_size_angstrom: float) -> Tensor:
    """Read a mask for maps like ``half (n, n, n)``; warn of one that seems to be of other maps.

    Raises:
        InputError: as :func:`read_map`, or another box, values beyond 0 to 1, or nothing in it.
    """
    stated = read_header(path).pixel_size_angstrom
    mask = read_map(path, pixel_size_angstrom)[0]
    if mask.shape != half.shape:
        raise InputError(f"{path}: box: {len(mask)} voxels, but the maps have {len(half)}")
    if not float(mask.max()) > 0:
        raise InputError(f"{path}: data: the mask is blank, no voxel is above 0; give another")
    if float(mask.min()) < -1e-3 or float(mask.max()) > 1 + 1e-3:
        raise InputError(f"{path}: data: a mask goes from 0 to 1; give a soft mask")
    if stated is not None and abs(stated / pixel_size_angstrom - 1) > 0.01:
        warnings.warn(
            f"{path}: pixel size: {stated:g} Å, but the maps have {pixel_size_angstrom:g} Å; check "
            "that it was made for them",
            stacklevel=2,
        )
    n, centre = len(mask), len(mask) // 4
    core = mask[centre : n - centre, centre : n - centre, centre : n - centre]
    if float(mask[0].mean() + mask[:, 0].mean() + mask[:, :, 0].mean()) / 3 > 2 * float(
        core.mean()
    ):
        warnings.warn(
            f"{path}: data: the mask is inside out: it covers the edges of the box rather than "
            "its centre; give 1 minus it",
            stacklevel=2,
        )
    return mask.clamp(0, 1)


def read_pair(
    first: Path, second: Path, pixel_size_angstrom: float | None, *, different: bool = False
) -> tuple[Tensor, Tensor, float]:
    """Read two maps on the same grid and their pixel size in Å.

    ``different`` refuses maps that are one map, up to a scale and an offset.

    Raises:
        InputError: as :func:`read_map`, or box or pixel size differ (by more than 1 %).
    """
    a, size_a = read_map(first, pixel_size_angstrom)
    b, size_b = read_map(second, pixel_size_angstrom)
    if a.shape != b.shape:
        raise InputError(f"{second}: box: {len(b)} voxels, but {first} has {len(a)}; resample one")
    if abs(size_a / size_b - 1.0) > 0.01:
        raise InputError(
            f"{second}: pixel size: {size_b:g} Å, but {first} has {size_a:g} Å; resample one, or "
            "give the true one, `pixel_size_angstrom`"
        )
    if different and is_same_map(a, b):
        raise InputError(
            f"{second}: data: the same map as {first}, so that their FSC means nothing; give the "
            "maps of two half sets"
        )
    return a, b, size_a


def resample_map(
    volume: Tensor, pixel_size_angstrom: float, box_size: int, new_pixel_size_angstrom: float
) -> Tensor:
    """Resample a map to another pixel size and box, with the same centre and grey values.

    Its Fourier series is evaluated below both Nyquists; outside its box the map is zero.

    >>> resample_map(torch.ones(8, 8, 8), 2.0, 4, 4.0).shape
    torch.Size([4, 4, 4])
    """
    ratio = new_pixel_size_angstrom / pixel_size_angstrom
    if abs(ratio - 1) < 1e-6:
        return recentre(volume, box_size, 3)
    kernel = resampling_kernel(volume.shape[-1], box_size, ratio).to(volume)
    for _ in range(3):  # of the last axis, which becomes the first
        volume = torch.tensordot(kernel, volume, dims=([1], [2]))
    return volume


def recentre(x: Tensor, size: int, ndim: int) -> Tensor:
    """Crop or zero-pad the last ``ndim`` axes so that index ``n // 2`` goes to ``size // 2``.

    >>> recentre(torch.arange(5.0), 3, 1).tolist(), recentre(torch.ones(2), 5, 1).tolist()
    ([1.0, 2.0, 3.0], [0.0, 1.0, 1.0, 0.0, 0.0])
    """
    n = x.shape[-1]
    before = size // 2 - n // 2
    after = size - n - before
    return torch.nn.functional.pad(x, [before, after] * ndim)


def low_pass(volume: Tensor, pixel_size_angstrom: float, resolution_angstrom: float) -> Tensor:
    """Keep frequencies up to ``1 / resolution``, with a raised-cosine edge 10 % wide.

    >>> v = torch.randn(8, 8, 8)
    >>> bool(low_pass(v, 1.0, 4.0).std() < v.std())
    True
    """
    n = volume.shape[-1]
    kx, ky = frequency_grid(n, pixel_size_angstrom)
    radius = (kx**2 + ky**2 + ky[:, :, None] ** 2).sqrt()
    t = ((radius * resolution_angstrom - 1.0) / 0.1).clamp(0, 1)
    window = 0.5 + 0.5 * torch.cos(torch.pi * t)
    return irfft_centered(rfft_centered(volume, 3) * window, (n, n, n))


def shell_frequencies(box_size: int, pixel_size_angstrom: float) -> Tensor:
    """Return the frequencies in 1/Å of the shells 0 to ``n // 2`` of an FSC curve.

    >>> shell_frequencies(4, 2.0).tolist()
    [0.0, 0.125, 0.25]
    """
    shells = torch.arange(box_size // 2 + 1, dtype=torch.float64)
    return shells / (box_size * pixel_size_angstrom)


def fsc_csv(curves: Mapping[str, Tensor], box_size: int, pixel_size_angstrom: float) -> str:
    """Return the text of ``fsc.csv``: shell, frequency, resolution, one column per curve.

    >>> print(fsc_csv({"fsc": torch.tensor([1.0, 0.5])}, 2, 3.0))
    shell,frequency_inv_angstrom,resolution_angstrom,fsc
    0,0.00000000,inf,1.000000
    1,0.16666667,6.0000,0.500000
    <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["shell", "frequency_inv_angstrom", "resolution_angstrom", *curves])
    for shell, frequency in enumerate(shell_frequencies(box_size, pixel_size_angstrom).tolist()):
        resolution = "inf" if shell == 0 else f"{1.0 / frequency:.4f}"
        values = [f"{float(curve[shell]):.6f}" for curve in curves.values()]
        writer.writerow([shell, f"{frequency:.8f}", resolution, *values])
    return text.getvalue()


def write_fsc_csv(
    path: Path, curves: Mapping[str, Tensor], box_size: int, pixel_size_angstrom: float
) -> None:
    """Write :func:`fsc_csv` atomically; ResourceError if the disk is full."""
    atomic_write_text(path, fsc_csv(curves, box_size, pixel_size_angstrom))
