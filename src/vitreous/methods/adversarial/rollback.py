"""Training that meets NaN: skip the step, return to finite weights, give up in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, optim

from vitreous.core.errors import DivergedError

SNAPSHOT_EVERY = 100
SKIPS_BEFORE_ROLLBACK, ROLLBACKS = 10, 3


class RollsBack:
    """Base of solvers that count skipped steps and return to a snapshot.

    Such a solver has an ``iteration``, returns all that changes from :meth:`tensors`, restores it
    in :meth:`_load_tensors`, and calls :meth:`_guard` once a step.
    """

    iteration: int
    skipped: int = 0
    rollbacks: int = 0
    remedy: str = "lower the learning rates or look for broken particles"
    _snapshot: Mapping[str, Tensor] = {}  # replaced, never filled

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that changes, by name."""
        raise NotImplementedError

    def _load_tensors(self, tensors: Mapping[str, Tensor], *, generators: bool) -> None:
        """Restore what :meth:`tensors` returned; the random streams only where asked."""
        raise NotImplementedError

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
        self._load_tensors(self._snapshot, generators=False)

    def _keep_snapshot(self) -> None:
        """Store the state that a rollback returns to."""
        self._snapshot = {k: v.clone() for k, v in self.tensors().items()}


def optimiser_tensors(optimisers: Mapping[str, optim.Optimizer]) -> dict[str, Tensor]:
    """Return the live moments and step counts of optimisers by name."""
    return {
        f"adam.{name}.{index}.{k}": v
        for name, optimiser in optimisers.items()
        for index, state in optimiser.state_dict()["state"].items()
        for k, v in state.items()
    }


def load_optimisers(
    optimisers: Mapping[str, optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`optimiser_tensors` returned; other names are left alone."""
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"adam.{name}."):
                _, _, index, moment = key.split(".")
                state.setdefault(int(index), {})[moment] = value.clone()
        packed = optimiser.state_dict()
        optimiser.load_state_dict({"state": state, "param_groups": packed["param_groups"]})
