"""Independent random streams from one seed, and noise with the spectrum of an image."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def cpu_generator(generator: torch.Generator) -> torch.Generator:
    """Return a CPU generator seeded from another generator, which advances."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def numbered_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return an independent generator for each tuple of non-negative integers.

    All numbers are hashed into the 32 bits of a seed that torch's generators use.

    >>> cpu = torch.device("cpu")
    >>> numbers = (1, 2), (1, 2), (1, 2**40 + 2)
    >>> seeds = [numbered_generator(cpu, *n).initial_seed() for n in numbers]
    >>> seeds[0] == seeds[1] != seeds[2] < 2**32
    True
    """
    (seed,) = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator(device).manual_seed(int(seed))


def stream_seed(seed: int, source: str) -> int:
    """Return a 63-bit seed for one named source of randomness, from the seed of the run.

    Streams of different names are independent; adding a source does not change the others.

    >>> stream_seed(1, "poses") == stream_seed(1, "poses") != stream_seed(1, "noise")
    True
    """
    digest = hashlib.sha256(f"vitreous:{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, source: str) -> torch.Generator:
    """Return a CPU generator for one source of randomness; see :func:`stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, source))


def with_random_phases(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise with the power spectrum of each image ``(..., ny, nx)``.

    >>> image = torch.randn(1, 8, 8)
    >>> noise = with_random_phases(image, torch.Generator().manual_seed(1))
    >>> bool(torch.allclose(torch.fft.rfft2(noise).abs(), torch.fft.rfft2(image).abs(), atol=1e-4))
    True
    """
    white = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    noise = torch.fft.rfft2(white).to(images.device)
    spectrum = torch.fft.rfft2(images).abs() * noise / noise.abs().clamp_min(1e-20)
    return torch.fft.irfft2(spectrum, s=images.shape[-2:])
