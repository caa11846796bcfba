"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


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
