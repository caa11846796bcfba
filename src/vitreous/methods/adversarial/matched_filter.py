"""Matched filter and windows of the images that a critic is given."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import nyquist_disc, radius_grid, shell_index
from vitreous.core.images import ImageSource, normalise_images
from vitreous.core.resample import dihedral_images, rotate_images
from vitreous.physics.noise import BackgroundPatches
from vitreous.physics.simulator import Simulator

WINDOW_BYTES = 2**28
LEAST_SIGNAL = 0.01  # of the noise, in a shell without any


def background_share(images: ImageSource, device: torch.device) -> float:
    """Return the share of the images' variance that is noise, from the corners of the box.

    Up to 2000 images are used, band-limited to the Nyquist circle.
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
    r"""Return the radial part of the matched filter of images.

    With N the noise power in a shell and S the signal power before the CTF, in units of N, an image
    is to be multiplied by :math:`c\, N^{-1/2} (S / (1 + S))^{1/2}`, c its own CTF: the noise is
    white then, and each frequency is weighted by its share of signal. This is the factor without c,
    scaled to a maximum of 1. The noise power is that of the simulator's noise, scaled to its share
    of the images' variance; the signal power is the rest of the images'.

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
        power[2] += simulator.ctf(row).square().sum(0)
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
    """Return images limited to a band ``(n, n // 2 + 1)``, with mean 0 and deviation 1."""
    spectra = torch.fft.rfft2(images) * band
    return normalise_images(torch.fft.irfft2(spectra, s=images.shape[-2:]))


def seen_by_critic(
    images: Tensor, factor: Tensor, *, angle_rad: Tensor | None = None, turn: int = 0
) -> Tensor:
    """Return images as a critic is given them: filtered, rotated, mirrored, normalised.

    Args:
        images: ``(b, n, n)``, real or simulated.
        factor: half-spectrum multiplier ``(n, n // 2 + 1)`` or ``(b, n, n // 2 + 1)``. It ends at
            the Nyquist circle: central slices do, real images do not, and cropping removes their
            Nyquist row, so that a critic would tell them apart by these alone.
        angle_rad: rotate each image in its plane, ``(b,)``, and set the corners to 0; None: do not.
        turn: of :func:`~vitreous.core.resample.dihedral_images`, 0 for none.

    >>> seen_by_critic(torch.eye(8)[None], nyquist_disc(8)).std(correction=0).item()
    1.0
    """
    n = images.shape[-1]
    if angle_rad is None:
        images = torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(n, n))
    else:
        images = rotate_images(images, angle_rad, factor)
    images = dihedral_images(images, turn)
    if angle_rad is not None:
        images = images * (radius_grid(n, 2, device=images.device) <= n / 2 - 1)
    return normalise_images(images)


def _sample_rows(images: ImageSource) -> tuple[Tensor, ...]:
    """Return about 2000 rows, evenly spaced, in batches."""
    return torch.split(torch.arange(len(images))[:: max(1, len(images) // 2000)], 256)


def _resampled_windows(noise: BackgroundPatches, full: int, n: int) -> BackgroundPatches:
    """Return windows of the images' box cut from the patches, then Fourier-cropped to ``n``.

    The order is that of particles, which are cut from micrographs first: cropping wraps around at
    the edges, and a critic would see the difference. All windows of a patch are used, or as many at
    random as fit into :data:`WINDOW_BYTES`.
    """
    patches = noise.patches
    reach = patches.shape[-1] - full + 1
    fitting = WINDOW_BYTES // (len(patches) * n * n * 4)
    count = max(1, min(reach**2, fitting))
    generator = torch.Generator().manual_seed(n)
    chosen = torch.stack([torch.randperm(reach**2, generator=generator)[:count] for _ in patches])
    windows = torch.empty(len(patches), count, n, n, device=patches.device)
    for patch, corners, out in zip(patches, chosen.tolist(), windows, strict=True):
        places = (divmod(corner, reach) for corner in corners)
        cut = torch.stack([patch[y : y + full, x : x + full] for y, x in places])
        out.copy_(fourier_resize(cut, n, 2))
    windows /= windows.std(correction=0)
    return dataclasses.replace(
        noise,
        patches=windows.flatten(0, 1),
        micrograph_id=noise.micrograph_id.repeat_interleave(count),
    )


def at_box(simulator: Simulator, n: int) -> Simulator:
    """Return a simulator of the same field of view at another box, its CTFs tabulated."""
    full = simulator.box_size
    if n != full:
        noise = simulator.noise
        if isinstance(noise, BackgroundPatches):
            noise = _resampled_windows(noise, full, n)
        pixel = simulator.pixel_size_angstrom * full / n
        simulator = dataclasses.replace(
            simulator, box_size=n, pixel_size_angstrom=pixel, noise=noise, ctf_table=None
        )
    return simulator.with_ctf_table()
