"""Training of adversarial networks: its stages, its state, and what it does when it meets NaN.

It skips the step, after some of these returns to finite weights, and gives up in the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn, optim

from vitreous.core.errors import DivergedError

SNAPSHOT_EVERY = 100
SKIPS_BEFORE_ROLLBACK, ROLLBACKS = 10, 3


class AdversarialTraining:
    """Base of solvers that train a critic, stage by stage.

    Such a solver sets up a stage in :meth:`_enter`, where it makes its ``optimisers``, and calls
    :meth:`_end_step` once a step.

    Args:
        iterations: of each stage.
        generators: random streams by name.
    """

    COUNTERS: tuple[str, ...] = ("stage", "iteration", "critic_updates", "skipped", "rollbacks")
    remedy: str = "lower the learning rates or look for broken particles"
    optimisers: dict[str, optim.Optimizer]

    def __init__(
        self, iterations: Sequence[int], generators: Mapping[str, torch.Generator]
    ) -> None:
        self.generators = dict(generators)
        self._ends = tuple(accumulate(iterations))
        self.stage = self.iteration = self.critic_updates = self.skipped = self.rollbacks = 0

    @property
    def done(self) -> bool:
        """Whether every stage has had its iterations."""
        return self.iteration >= self._ends[-1]

    @property
    def progress(self) -> float:
        """Share of the iterations that is done, 0 to 1."""
        return min(1.0, self.iteration / self._ends[-1])

    def _enter(self, stage: int) -> None:
        """Set up box, data, networks and optimisers of a stage."""
        raise NotImplementedError

    def _modules(self) -> dict[str, nn.Module]:
        """Return the networks, whose names go before those of their tensors."""
        raise NotImplementedError

    def _other_tensors(self) -> dict[str, Tensor]:
        """Return what changes besides networks and optimisers; they are the live tensors."""
        return {}

    def _load_other_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`_other_tensors` returned."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that changes, by name: weights, moments, scales and random streams.

        The weights and moments are the live ones: clone what must outlast the next step.
        """
        out = self._other_tensors()
        for name, module in self._modules().items():
            out |= {f"{name}.{k}".lstrip("."): v for k, v in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                out |= {f"adam.{name}.{index}.{k}": v for k, v in moments.items()}
        return out | {f"random.{k}": g.get_state() for k, g in self.generators.items()}

    def counters(self) -> dict[str, int]:
        """Return the counters that :meth:`state_dict` stores beside :meth:`tensors`."""
        return {name: getattr(self, name) for name in self.COUNTERS}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step needs."""
        tensors = {k: v.detach().clone() for k, v in self.tensors().items()}
        return {"tensors": tensors, "counters": self.counters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`; a later rollback returns to it, not further back."""
        self._enter(int(state["counters"]["stage"]))
        for name in self.COUNTERS:
            setattr(self, name, int(state["counters"][name]))
        self._load_tensors(state["tensors"])
        for name, generator in self.generators.items():
            generator.set_state(state["tensors"][f"random.{name}"].cpu())
        self._keep_snapshot()

    @torch.no_grad()
    def _load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`tensors` returned but for the random streams."""
        self._load_other_tensors(tensors)
        for name, module in self._modules().items():
            own = {k: tensors[f"{name}.{k}".lstrip(".")] for k in module.state_dict()}
            module.load_state_dict(own)
        for name, optimiser in self.optimisers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"adam.{name}."):
                    _, _, index, moment = key.split(".")
                    moments.setdefault(int(index), {})[moment] = value.clone()
            optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})

    def _end_step(self, stats: Mapping[str, float]) -> None:
        """Look for NaN, count the step, and enter the next stage where one has ended."""
        self._guard(stats)
        self.iteration += 1
        if self.iteration >= self._ends[self.stage] and not self.done:
            self._advance()

    def _advance(self) -> None:
        """Enter the next stage."""
        self._enter(self.stage + 1)

    def _guard(self, stats: Mapping[str, float]) -> None:
        """Count steps skipped for NaN; roll back after ten in a row, give up after three times.

        Raises:
            DivergedError: then.
        """
        if all(math.isfinite(value) for value in stats.values()):
            self.skipped = 0
            if self.iteration % SNAPSHOT_EVERY == 0:
                self._keep_snapshot()
            return
        self.skipped += 1
        if self.skipped < SKIPS_BEFORE_ROLLBACK:
            return
        if self.rollbacks >= ROLLBACKS:
            raise DivergedError(f"the optimisation met NaN again and again; {self.remedy}")
        self.skipped = 0
        self.rollbacks += 1
        self._load_tensors(self._snapshot)

    def _keep_snapshot(self) -> None:
        """Store the state that a rollback returns to."""
        self._snapshot: Mapping[str, Tensor] = {k: v.clone() for k, v in self.tensors().items()}
