r"""Direct reconstruction from images with known poses: Fourier gridding, regularised as by Wiener.

With the sums B and W of :mod:`vitreous.physics.insertion`,

.. math::

    \hat V(k) = \frac{B(k)}{W(k) + \bar W_s / \mathrm{SSNR}_s},

where s is the shell of k, :math:`\bar W_s` the mean of W over it and :math:`\mathrm{SSNR}_s` the
signal-to-noise ratio of one half set, :math:`\mathrm{FSC}_s / (1 - \mathrm{FSC}_s)`: the signal's
power in units of the noise. Half maps are not regularised, so that they can be compared; there W
only has a floor.

Source: Scheres, J. Struct. Biol. 180 (2012) 519, equations (6) to (8).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vitreous.core.grid import soft_mask
from vitreous.core.images import ImagesInMemory, read_ahead
from vitreous.core.params import Optics
from vitreous.core.threads import single_torch_thread
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.insertion import SPREAD, Accumulator, Gridding, weighted_slices

HalfSums = tuple[Gridding, Gridding]
Progress = Callable[[int, int], object]

LEAST_WEIGHT = 1e-3  # of the mean over the shell
_AGREE = 0.143
EDGE_PX = 3.0  # of the sphere that the field of view always holds
_SPAN = 1 << 17  # images summed in single precision before sums are added


@torch.no_grad()
def accumulate(
    particles: PosedParticles,
    *,
    box_size: int | None = None,
    symmetry: str = "C1",
    weight: Tensor | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> HalfSums:
    """Sum both half sets in one pass over the images.

    Images are cropped to ``box_size`` in Fourier space and weighted by ``weight (b,)``.
    ``symmetry`` is a point group in RELION's axes; ``progress`` is called with images done and
    images in all.

    Raises:
        ValueError: lengths that do not agree, or a box larger than the images'.
    """
    device = device or torch.device("cpu")
    n = particles.checked_box(box_size)
    images, shift, optics = particles.images, particles.shift_angstrom, particles.optics
    sums: tuple[Gridding, Gridding] | None = None
    with single_torch_thread() as threads:
        for span in torch.split(torch.arange(len(images)), _SPAN):
            part = Accumulator(n, sets=2, symmetry=symmetry, device=device, threads=threads)
            for rows, read in read_ahead(images, span):
                values = weighted_slices(
                    read.to(device),
                    None if shift is None else shift[rows].to(device),
                    None if optics is None else optics[rows].to(device),
                    particles.pixel_size_angstrom,
                    box_size=n,
                    weight=None if weight is None else weight[rows].to(device),
                    threads=threads,
                )
                half = particles.half_set[rows].to(device)
                part.insert(values, particles.rotations[rows].to(device), half - 1)
                if progress is not None:
                    progress(int(rows[-1]) + 1, len(images))
            first, second = part.gridding(0), part.gridding(1)
            sums = (first, second) if sums is None else (sums[0] + first, sums[1] + second)
    assert sums is not None
    return sums


def reconstruct_halves(
    images: Tensor,
    rotations: Tensor,
    shift_angstrom: Tensor | None,
    optics: Optics | None,
    pixel_size_angstrom: float,
    half: Tensor,
    *,
    symmetry: str = "C1",
) -> tuple[Tensor, Tensor]:
    """Reconstruct two unfiltered half maps ``(n, n, n)`` of images ``(b, n, n)`` in memory.

    Arguments are as of :class:`PosedParticles` and :func:`accumulate`; the maps are on the device
    of the images.

    Raises:
        ValueError: lengths that do not agree.

    >>> half = torch.tensor([1, 2])
    >>> images, rotations = torch.ones(2, 8, 8), torch.eye(3).repeat(2, 1, 1)
    >>> maps = reconstruct_halves(images, rotations, None, None, 1.0, half)
    >>> [tuple(one.shape) for one in maps]
    [(8, 8, 8), (8, 8, 8)]
    """
    source = ImagesInMemory(images)
    particles = PosedParticles(source, rotations, shift_angstrom, optics, pixel_size_angstrom, half)
    sums = accumulate(particles, symmetry=symmetry, device=images.device)
    return half_map(sums[0]), half_map(sums[1])


def half_map(sums: Gridding) -> Tensor:
    """Return the unfiltered map ``(n, n, n)``: B / W, where W is at least 0.001 of its shell's."""
    mean, shell = shell_means(sums)
    floor = (LEAST_WEIGHT * mean).clamp_min(torch.finfo(torch.float32).tiny)
    return to_map(sums.numerator / torch.maximum(sums.weight, floor[shell]), sums.box_size)


def wiener_map(sums: Gridding, noise_to_signal: Tensor) -> Tensor:
    r"""Return the regularised map ``(n, n, n)`` of all particles, :math:`B / (W + \bar W_s\, q_s)`.

    q ``(n // 2 + 1,)`` is the noise's power in these sums over the signal's, see
    :func:`noise_to_signal`.
    """
    mean, shell = shell_means(sums)
    floor = torch.finfo(torch.float32).tiny
    regularisation = (mean * noise_to_signal.to(mean)).clamp_min(floor)
    weight = sums.weight + regularisation[shell]
    return to_map(
        sums.numerator / torch.maximum(weight, LEAST_WEIGHT * mean[shell] + floor), sums.box_size
    )


def particle_sphere(
    box_size: int, diameter_share: float, device: torch.device | None = None
) -> Tensor:
    """Return the soft mask ``(n, n, n)`` of a particle's sphere, at most the field of view.

    ``diameter_share`` is the sphere's diameter over the box's edge.
    """
    radius = min(box_size / 2 - EDGE_PX, box_size * diameter_share / 2)
    return soft_mask(box_size, 3, radius, EDGE_PX, device=device)


def agreeing_shells(fsc: Tensor) -> int:
    """Return the last shell before the FSC ``(n // 2 + 1,)`` falls below 0.143."""
    below = (fsc[1:] < _AGREE).nonzero().flatten()
    return int(below[0]) if len(below) else len(fsc) - 1


def noise_to_signal(fsc: Tensor) -> Tensor:
    r"""Return noise over signal in the sums of both half sets, from the FSC ``(n // 2 + 1,)``.

    :math:`q = (1 - \mathrm{FSC}) / (2\,\mathrm{FSC})`: half of that of one half set. The FSC counts
    as at least 0.001 and at most 0.999.

    >>> noise_to_signal(torch.tensor([1.0, 0.5, 0.25]))[1:].tolist()
    [0.5, 1.5]
    """
    kept = fsc.double().clamp(1e-3, 0.999)
    return (1 - kept) / (2 * kept)


def grid_radius(n: int, device: torch.device) -> Tensor:
    """Return the cycles per box of every grid point of a :class:`Gridding`."""
    axis = torch.arange(1 - n, n, device=device, dtype=torch.float32)
    squared = axis[n - 1 :, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    return squared.sqrt() / SPREAD


def shell_means(sums: Gridding) -> tuple[Tensor, Tensor]:
    """Return the mean of W over every shell, ``(n // 2 + 1,)``, and the shell of every point."""
    n = sums.box_size
    shell = grid_radius(n, sums.weight.device).round().long().clamp(max=n // 2)
    flat = shell.flatten()
    total = sums.weight.new_zeros(n // 2 + 1, dtype=torch.float64)
    total.index_add_(0, flat, sums.weight.double().flatten())
    return (total / torch.bincount(flat, minlength=n // 2 + 1)).float(), shell


def to_map(spectrum: Tensor, n: int) -> Tensor:
    """Transform a half grid within the Nyquist ball back, crop it, divide the kernel out.

    Zero outside the inscribed sphere, which leaves the field of view in some of the images.
    """
    size = SPREAD * n
    device = spectrum.device
    ball = grid_radius(n, device) < n / 2
    x = torch.where(ball, spectrum, torch.zeros_like(spectrum))
    for dim in (2, 1):  # transform and crop one axis after the other
        wide = x.new_zeros((*x.shape[:dim], size, *x.shape[dim + 1 :]))
        wide.narrow(dim, 0, n).copy_(x.narrow(dim, n - 1, n))
        wide.narrow(dim, size - n + 1, n - 1).copy_(x.narrow(dim, 0, n - 1))
        x = _central(torch.fft.ifft(wide, dim=dim), n, dim)
    volume = _central(torch.fft.irfft(x, n=size, dim=0), n, 0).permute(2, 1, 0)
    window = torch.sinc((torch.arange(n, device=device) - n // 2) / size).square()
    sphere = particle_sphere(n, 1.0, device)
    return (volume * sphere / (window[:, None, None] * window[:, None] * window)).contiguous()


def _central(x: Tensor, n: int, dim: int) -> Tensor:
    """Return the ``n`` elements around the origin, index 0, which goes to ``n // 2``."""
    before = x.narrow(dim, x.shape[dim] - n // 2, n // 2)
    return torch.cat([before, x.narrow(dim, 0, n - n // 2)], dim)
