"""Real images and imaging conditions at the box of a coarse-to-fine stage."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import nyquist_disc, radius_grid, shell_index
from vitreous.core.params import Optics
from vitreous.core.resample import mirror_images, turn_images
from vitreous.physics.noise import BackgroundPatches
from vitreous.physics.simulator import Simulator
from vitreous.solvers.losses import normalise_images

CACHE_BYTES = 2**31
WINDOW_BYTES = 2**28
BATCH_BYTES = 2**23
LEAST_SIGNAL = 0.01  # of the noise, in a shell without any


class ImageSource(Protocol):
    """Real particle images, read a batch at a time."""

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these rows."""
        ...


class ImagesInMemory:
    """An :class:`ImageSource` of images ``(b, n, n)`` that are there."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        return int(self._images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these rows."""
        return self._images[indices.to(self._images.device)]


class ChosenImages:
    """Images of chosen rows of others, repetitions allowed.

    >>> source = ImagesInMemory(torch.arange(3.0)[:, None, None].expand(3, 4, 4))
    >>> ChosenImages(source, torch.tensor([2, 0, 2])).read(torch.arange(3))[:, 0, 0].tolist()
    [2.0, 0.0, 2.0]
    """

    def __init__(self, images: ImageSource, rows: Tensor) -> None:
        self._images, self._rows = images, rows

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels."""
        return self._images.box_size

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` of these of the chosen rows."""
        wanted, back = torch.unique(self._rows[indices], return_inverse=True)
        return self._images.read(wanted)[back]


def read_ahead(
    images: ImageSource, rows: Tensor, *, at_most: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and images ``(b, n, n)``, a batch being read while the one before is worked on.

    Args:
        images: to be read.
        rows: of them, long.
        at_most: in a batch; there may be fewer, by their size.
    """
    fitting = max(1, BATCH_BYTES // (4 * images.box_size**2))
    pieces = torch.split(rows, min(fitting, at_most or fitting))
    with ThreadPoolExecutor(1, "vitreous-read") as reader:
        coming = reader.submit(images.read, pieces[0])
        for piece, following in itertools.zip_longest(pieces, pieces[1:]):
            read = coming.result()
            if following is not None:
                coming = reader.submit(images.read, following)
            yield piece, read


@torch.no_grad()
def shell_power(images: ImageSource, rows: Tensor) -> Tensor:
    """Mean of ``|rfft2|^2`` of images by shell, float64 ``(n // 2 + 1,)``.

    >>> from vitreous.solvers.images import ImagesInMemory
    >>> noise = torch.randn(50, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> power = shell_power(ImagesInMemory(noise), torch.arange(50))
    >>> bool((power[1:] / 16**2 - 1).abs().max() < 0.2)
    True
    """
    n = images.box_size
    shell = shell_index(n, 2)
    inside = shell <= n // 2
    total = torch.zeros(n // 2 + 1, dtype=torch.float64)
    for _, read in read_ahead(images, rows):
        power = torch.fft.rfft2(read.float().cpu()).abs().square().sum(0)
        total.index_add_(0, shell[inside], power[inside].double())
    return total / (torch.bincount(shell[inside]) * len(rows))


def check_rows(
    images: ImageSource,
    rotations: Tensor,
    shift: Tensor | None,
    optics: Optics | None,
    half: Tensor,
    n: int,
) -> None:
    """One row of everything for each image, and a box that the images hold.

    Raises:
        ValueError: otherwise.
    """
    total = len(images)
    lengths = {
        "rotations": len(rotations),
        "shift_angstrom": total if shift is None else len(shift),
        "optics": total if optics is None else len(optics),
        "half": len(half),
    }
    wrong = {name: length for name, length in lengths.items() if length != total}
    if wrong:
        raise ValueError(f"{total} images, but {wrong}; give one row for each image")
    if total == 0:
        raise ValueError("no images to reconstruct from")
    if not 2 <= n <= images.box_size:
        raise ValueError(f"box_size must be from 2 to the images' {images.box_size}, got {n}")


class ImageCache:
    """Particles Fourier-cropped to the stage's box, kept in memory while they fit."""

    def __init__(self, images: ImageSource, n: int, device: torch.device) -> None:
        self._images, self.box_size, self._device = images, n, device
        self._all: Tensor | None = None
        if len(images) * n * n * 4 <= CACHE_BYTES:
            pieces = torch.split(torch.arange(len(images)), 512)
            self._all = torch.cat([self._fetch(piece) for piece in pieces])

    def _fetch(self, indices: Tensor) -> Tensor:
        images = self._images.read(indices.cpu()).to(self._device, torch.float32)
        return fourier_resize(images, self.box_size, 2)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the device."""
        if self._all is None:
            return self._fetch(indices)
        return self._all[indices.to(self._device)]


def background_share(images: ImageSource, device: torch.device) -> float:
    """Share of the images' variance that is noise, from the pixels outside the particle.

    Of up to 2000 images, band-limited to the Nyquist circle; outside means the box's corners.
    """
    n = images.box_size
    band = nyquist_disc(n, device=device)
    outside = radius_grid(n, 2, device=device) > 0.5 * n
    variances = []
    for rows in _sample_rows(images):
        normal = _normal_in_band(images.read(rows).to(device, torch.float32), band)
        variances.append(normal[:, outside].var(dim=1))
    return min(0.98, max(1e-4, float(torch.cat(variances).mean())))


@torch.no_grad()
def matched_weight(
    images: ImageSource, simulator: Simulator, noise_share: float, generator: torch.Generator
) -> Tensor:
    r"""Radial part of the filter that brings out what images tell of the molecule.

    With N the noise's power in a shell, S the signal's before the CTF, in units of N, an image is
    to be multiplied by :math:`c\, N^{-1/2} (S / (1 + S))^{1/2}`, c its own CTF: the noise is made
    white, and each frequency counts by how much of it is signal. This is the factor without c,
    scaled to a maximum of 1. Noise power is that of the simulator's noise, brought to its share of
    the images' variance; the signal's is what the images have beyond that.

    Args:
        images: at the simulator's box, row i belonging to row i of ``simulator.optics``.
        simulator: whose CTFs and noise are the images' own.
        noise_share: share of noise in the images' variance, see :func:`background_share`.
        generator: for samples of the noise.

    Returns:
        ``(n, n // 2 + 1)`` in FFT order, zero from the Nyquist circle on.
    """
    n, device = images.box_size, simulator.micrograph_id.device
    band = nyquist_disc(n, device=device)
    shell = shell_index(n, 2, device=device).clamp(max=n // 2)
    power = torch.zeros(3, n, n // 2 + 1, device=device)  # of images, noise, CTF
    for rows in _sample_rows(images):
        real = images.read(rows).to(device, torch.float32)
        row = rows.to(device)
        noise = simulator.noise_like(row, generator=generator)
        for index, kind in enumerate((real, noise)):
            normal = _normal_in_band(kind, band)
            power[index] += torch.fft.rfft2(normal).abs().square().sum(0)
        power[2] += simulator.transfer(row).square().sum(0)
    sums = torch.zeros(4, n // 2 + 1, device=device)
    sums.index_add_(1, shell.flatten(), torch.cat([power * band, band[None]]).flatten(1))
    of_images, of_noise, of_transfer = sums[:3] / sums[3].clamp_min(1)
    of_noise = (noise_share * of_noise).clamp_min(1e-6 * of_noise.max())
    seen = (of_images / of_noise - 1).clamp_min(LEAST_SIGNAL)
    signal = seen / (of_transfer / of_transfer.max()).clamp_min(1e-3)
    weight = (signal / (1 + signal) / of_noise).sqrt()
    weight[0] = weight[1]  # images have no mean
    return (weight / weight[1:-1].max())[shell] * band


def _normal_in_band(images: Tensor, band: Tensor) -> Tensor:
    """Images limited to a band ``(n, n // 2 + 1)``, with mean 0 and deviation 1."""
    spectra = torch.fft.rfft2(images) * band
    return normalise_images(torch.fft.irfft2(spectra, s=images.shape[-2:]))


def seen_by_critic(
    images: Tensor, factor: Tensor, *, angle_rad: Tensor | None = None, turn: int = 0
) -> Tensor:
    """Images as critics see them: filtered, turned, mirrored, normalised.

    Args:
        images: ``(b, n, n)``, real or simulated.
        factor: half-spectrum multiplier ``(n, n // 2 + 1)`` or ``(b, n, n // 2 + 1)``. It ends at
            the Nyquist circle: central slices do, real images do not, and cropping takes their
            Nyquist row, so that a critic would tell them apart by these alone.
        angle_rad: turn each image in its plane, ``(b,)``, and leave out the corners; None: do not.
        turn: of :func:`~vitreous.core.resample.mirror_images`, 0 for none.

    >>> seen_by_critic(torch.eye(8)[None], nyquist_disc(8)).std(correction=0).item()
    1.0
    """
    n = images.shape[-1]
    if angle_rad is None:
        images = torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(n, n))
    else:
        images = turn_images(images, angle_rad, factor)
    images = mirror_images(images, turn)
    if angle_rad is not None:
        images = images * (radius_grid(n, 2, device=images.device) <= n / 2 - 1)
    return normalise_images(images)


def _sample_rows(images: ImageSource) -> tuple[Tensor, ...]:
    """About 2000 rows, evenly spaced, in pieces."""
    return torch.split(torch.arange(len(images))[:: max(1, len(images) // 2000)], 256)


def _resampled_windows(noise: BackgroundPatches, full: int, n: int) -> BackgroundPatches:
    """Windows of the images' box cut from the patches, then Fourier-cropped to ``n``.

    In this order, since particles are cut from micrographs first and cropped then: cropping wraps
    around at the edges, and a critic would see the difference. All windows of a patch, or as many
    at random as fit into :data:`WINDOW_BYTES`.
    """
    patches = noise.patches
    reach = patches.shape[-1] - full + 1
    fitting = WINDOW_BYTES // (len(patches) * n * n * 4)
    count = max(1, min(reach**2, fitting))
    generator = torch.Generator().manual_seed(n)
    chosen = torch.stack([torch.randperm(reach**2, generator=generator)[:count] for _ in patches])
    windows = torch.empty(len(patches), count, n, n, device=patches.device)
    for patch, corners, out in zip(patches, chosen.tolist(), windows, strict=True):
        cut = torch.stack(
            [
                patch[y : y + full, x : x + full]
                for y, x in (divmod(corner, reach) for corner in corners)
            ]
        )
        out.copy_(fourier_resize(cut, n, 2))
    windows /= windows.std(correction=0)
    return dataclasses.replace(
        noise,
        patches=windows.flatten(0, 1),
        micrograph_id=noise.micrograph_id.repeat_interleave(count),
    )


def at_box(simulator: Simulator, n: int) -> Simulator:
    """The same field of view at another box, its CTFs tabulated; pixel and patches follow."""
    full = simulator.box_size
    if n != full:
        noise = simulator.noise
        if isinstance(noise, BackgroundPatches):
            noise = _resampled_windows(noise, full, n)
        pixel = simulator.pixel_size_angstrom * full / n
        simulator = dataclasses.replace(
            simulator, box_size=n, pixel_size_angstrom=pixel, noise=noise, transfers=None
        )
    return simulator.tabulated()
