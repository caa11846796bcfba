"""What ``vitreous hetero train``, ``hetero run`` and ``classify2d`` are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitreous.core.errors import UsageError
from vitreous.jobs.hetero.class_maps import Clustering
from vitreous.jobs.hetero.solvers import Method
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions
from vitreous.methods.em.config import InitialModelConfig

PASSES, ROUNDS = 4, 3


@dataclass(frozen=True)
class Request:
    """The options of the commands; see their help.

    Args:
        method: ``gan`` or ``align``; ``classes`` for ``classify2d``.
        config: TOML of solver settings.
        overrides: of them, by options.
        search: how a start is found where poses have to be.
        clustering: None for ``train``.
        points: maps along each cluster; class images of each for ``classify2d``.
        passes: sortings at most, with a search for poses between them; None: :data:`PASSES` where
            poses had to be found or ``rounds`` are given, else 1.
        rounds: of each search; None: :data:`ROUNDS`; 0: no search, so one pass.
        shift: how far particles are off centre, for ``gan``.
        shift_range_angstrom: how far they are looked for when classes are averaged.
    """

    files: ParticleFiles
    output: Path
    working: ProcessingOptions
    method: Method = "gan"
    config: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    search: InitialModelConfig = field(default_factory=InitialModelConfig)
    clustering: Clustering | None = None
    points: int = 5
    passes: int | None = None
    rounds: int | None = None
    shift: str = "none"
    shift_range_angstrom: float | None = None
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    @property
    def command(self) -> str:
        """Which of the three it is."""
        if self.method == "classes":
            return "classify2d"
        return "hetero train" if self.clustering is None else "hetero run"

    @property
    def rounds_of_search(self) -> int:
        """At most."""
        return ROUNDS if self.rounds is None else self.rounds

    def most_passes(self, *, poses_known: bool) -> int:
        """How many sortings there may be, the last one included.

        Args:
            poses_known: the table has them.
        """
        if self.method != "align" or self.rounds == 0:
            return 1
        if self.passes is not None:
            return self.passes
        return 1 if poses_known and self.rounds is None else PASSES

    def check(self) -> None:
        """Options that exclude each other.

        Raises:
            UsageError: passes or rounds without poses, or passes without rounds.
        """
        for name, value, least in (("passes", self.passes, 2), ("rounds", self.rounds, 1)):
            if self.method != "align" and value is not None and value >= least:
                raise UsageError(f"--{name}: needs poses; leave out --no-align")
        if self.rounds == 0 and (self.passes or 1) > 1:
            raise UsageError("--passes: needs --rounds of 1 or more between two sortings")
