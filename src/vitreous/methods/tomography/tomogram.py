"""Reconstruction of a tilt series: strengths, two half maps, and the map of all measurements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.random import generator
from vitreous.methods.tomography.back_projection import Sirt, weighted_back_projection
from vitreous.methods.tomography.inpainting import (
    choose_inpainting_strength,
    inpaint,
    two_step_search,
)
from vitreous.methods.tomography.total_variation import (
    WINDOW,
    Scan,
    strength_search,
    total_variation_solver,
)
from vitreous.optim.admm import Admm
from vitreous.optim.admm_config import STRICT
from vitreous.optim.choose_strength import StrengthSearch
from vitreous.optim.loop import Stateful, Stats
from vitreous.physics.tomography.projector import expand_slices

_SLICES = 32  # of the volume that strengths are chosen on


@validated(frozen=True, config=STRICT)
class TomogramConfig:
    """Method and settings.

    Args:
        method: "tv" (total variation), "two-step" (total variation of images inpainted first),
            "sirt" or "wbp" (weighted back-projection).
        strength: lambda of total variation; None: by cross-validation.
        inpainting: mu of inpainting; None: by cross-validation.
        iterations: most iterations of each map.
        seed: of the halves of the measurements.
    """

    method: Literal["tv", "two-step", "sirt", "wbp"] = "tv"
    strength: float | None = Field(default=None, ge=0)
    inpainting: float | None = Field(default=None, ge=0)
    iterations: int = Field(default=60, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class TomogramMaps:
    """Maps of a finished run."""

    # of either half of the measurements and of all, ``(z, y, x)``
    half1: Tensor
    half2: Tensor
    average: Tensor
    strengths: dict[str, float]  # "strength" and "inpainting", where the method has them


class Tomogram(Stateful):
    """Solver for the maps of both halves of a tilt series and of all measurements.

    One step tries one strength of the cross-validation, or does one iteration of a map.

    Args:
        scan: measured pixels.
        depth: thickness of the volume in voxels.
        config: method and settings.
        report_progress: called with the share that is done, often within long steps.

    Attributes:
        label: of the last step: its stage, or the number of the iteration and the half of a map.

    >>> images = torch.rand(5, 4, 8, generator=torch.Generator().manual_seed(0))
    >>> scan = Scan(images, torch.linspace(-60, 60, 5), torch.ones(5, 4, 8, dtype=torch.bool))
    >>> solver = Tomogram(scan, 4, TomogramConfig("sirt", iterations=2))
    >>> while not solver.done:
    ...     _ = solver.step()
    >>> tuple(solver.result().average.shape)
    (4, 4, 8)
    """

    STATE = ("_part", "_iteration", "_strengths", "_draw")

    def __init__(
        self,
        scan: Scan,
        depth: int,
        config: TomogramConfig,
        *,
        report_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.config = config
        self._scan, self._depth = scan.compact(), depth
        self._report_progress = report_progress
        first, second = self._scan.halves(generator(config.seed, "tomo halves"))
        self._parts = (first, second, self._scan)
        self._draw = generator(config.seed, "tomo validation")
        regularised = config.method in ("tv", "two-step")
        self._searches = int(regularised and config.strength is None)
        self._part = 0  # a search for the strength, then three maps
        self._iteration = 0  # of a map
        self._strengths: dict[str, float] = {}
        self._maps: list[Tensor] = []
        self._solver: StrengthSearch | Admm | Sirt | None = None
        self.label: dict[str, Any] = {}  # one object, so that a history may hold on to it

    @property
    def done(self) -> bool:
        """Whether all three maps are solved."""
        return len(self._maps) == 3

    @property
    def progress(self) -> float:
        """Share of searches and maps that are done."""
        part = 0.0 if self._solver is None else self._solver.progress
        return (self._part + part) / (self._searches + 3)

    def step(self) -> Stats:
        """Try a strength ("strength", "score"), or do an iteration of a map (as its solver's)."""
        half = self._part - self._searches + 1
        half_label = {"half": half} if half < 3 else {}
        if self.config.method == "wbp":
            self._maps.append(weighted_back_projection(self._parts[self._part], self._depth))
            self._part += 1
            self.label.clear()
            self.label |= half_label
            return {}
        if self._solver is None:
            self._solver = self._begin()
        stats = self._solver.step()
        self.label.clear()
        if self._part < self._searches:
            self.label["stage"] = "strength"
        else:
            self.label |= {"step": self._iteration, **half_label}
            self._iteration += 1
        if self._solver.done:
            self._end(self._solver)
        return stats

    def result(self) -> TomogramMaps:
        """Return the maps.

        Raises:
            ValueError: the run is not done.
        """
        if not self.done:
            raise ValueError("the maps are not solved yet; call step until the solver is done")
        first, second, third = self._maps
        return TomogramMaps(first, second, third, dict(self._strengths))

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on bit for bit."""
        solver = None if self._solver is None else self._solver.state_dict()
        return super().state_dict() | {"maps": list(self._maps), "solver": solver}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the :meth:`state_dict` of a run with the same measurements and settings."""
        super().load_state_dict(state)
        self._maps = [one.to(self._scan.images) for one in state["maps"]]
        self._solver = None
        if state["solver"] is not None:
            self._solver = self._begin()
            self._solver.load_state_dict(state["solver"])

    def _begin(self) -> StrengthSearch | Admm | Sirt:
        """Make the solver of the next part."""
        config, few_slices = self.config, self._scan.busiest(_SLICES)
        if config.method == "two-step" and "inpainting" not in self._strengths:
            given = config.inpainting
            self._strengths["inpainting"] = (
                choose_inpainting_strength(few_slices, self._draw) if given is None else given
            )
        if self._part < self._searches:
            return self._search(few_slices)
        scan, iterations = self._parts[self._part - self._searches], config.iterations
        if config.method == "sirt":
            return Sirt(scan, self._depth, iterations=iterations)
        if config.strength is not None:
            self._strengths["strength"] = config.strength
        if config.method == "two-step":
            scan = inpaint(scan, self._strengths["inpainting"], lambda done: self._report())
        strength = self._strengths["strength"]
        return total_variation_solver(scan, self._depth, strength, iterations=iterations)

    def _search(self, scan: Scan) -> StrengthSearch:
        draw = torch.Generator()
        draw.set_state(self._draw.get_state())  # the halves are drawn again when a run goes on
        callbacks = (lambda step, stats: self._report(),)
        if self.config.method == "two-step":
            inpainting = self._strengths["inpainting"]
            return two_step_search(scan, self._depth, inpainting, draw, callbacks)
        return strength_search(scan.halves(draw), self._depth, callbacks=callbacks)

    def _end(self, solver: StrengthSearch | Admm | Sirt) -> None:
        """Keep the result of a part, and go on to the next."""
        self._solver = None
        self._part, self._iteration = self._part + 1, 0
        if isinstance(solver, StrengthSearch):
            self._strengths["strength"] = solver.result().strength
        else:
            volume = solver.result().volume if isinstance(solver, Admm) else solver.result()
            self._maps.append(expand_slices(volume, WINDOW))

    def _report(self) -> None:
        self._report_progress(self.progress)
