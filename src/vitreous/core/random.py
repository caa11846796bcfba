"""Random streams of solvers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

import numpy as np
import torch


def cpu_twin(generator: torch.Generator) -> torch.Generator:
    """A CPU generator seeded from another one, which it advances."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def stream_of(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator of its own for every tuple of whole numbers from 0 on.

    Neighbouring numbers and large ones are as good as any: torch's generators use 32 bits of a
    seed, and all of the numbers go into these.

    >>> cpu = torch.device("cpu")
    >>> seeds = [stream_of(cpu, *n).initial_seed() for n in ((1, 2), (1, 2), (1, 2**40 + 2))]
    >>> seeds[0] == seeds[1] != seeds[2] < 2**32
    True
    """
    (seed,) = np.random.SeedSequence(numbers).generate_state(1)
    return torch.Generator(device).manual_seed(int(seed))


def stream_seed(seed: int, source: str) -> int:
    """A 63-bit seed for one source of randomness, from the run's one ``--seed``.

    Streams of different names are independent; adding a source leaves the others as they were.

    >>> stream_seed(1, "poses") == stream_seed(1, "poses") != stream_seed(1, "noise")
    True
    """
    digest = hashlib.sha256(f"vitreous:{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, source: str) -> torch.Generator:
    """A CPU generator for one source of randomness; see :func:`stream_seed`."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, source))
