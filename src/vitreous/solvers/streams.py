"""Random streams of solvers."""

from __future__ import annotations

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
