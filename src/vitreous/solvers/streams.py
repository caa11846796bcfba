"""Random streams of solvers."""

from __future__ import annotations

import torch


def cpu_twin(generator: torch.Generator) -> torch.Generator:
    """A CPU generator seeded from another one, which it advances."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
