r"""The strength :math:`\lambda` of a prior, chosen from the data by cross-validation.

It is the strength whose map of one half set fits the data of the other half set best. The normal
equations of both half sets are all that this needs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vitreous.optim.admm import Admm, AdmmResult, AdmmState
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Callback, Stateful, Stats, run
from vitreous.optim.priors import WeightedPrior

_LOG_STEP = math.log(10) / 2  # of the ladder, in ln(strength)
_USUAL_TRIES = {True: 4, False: 9}  # strengths tried with and without a guess

HalfSets = tuple[LeastSquares, LeastSquares]


@dataclass(frozen=True)
class StrengthChoice:
    """A strength, and the search for it."""

    strength: float  # lambda
    volumes: tuple[Tensor, Tensor]  # solutions of half 1 and half 2 with it
    # strengths and their scores, the misfit of both halves with each other's data, in the order
    # in which they were tried
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class StrengthRange:
    """Strengths to look among."""

    # such as the strength found on a coarser lattice; None: begin with
    # :meth:`~vitreous.optim.priors.WeightedPrior.strongest`
    guess: float | None = None
    decades: float = 6.0  # how far from there to look


class StrengthSearch(Stateful):
    r"""Solver for the strength whose map of each half fits the data of the other half best.

    Minimises :math:`\frac12 \|H_2 x_1 - b_2\|^2 + \frac12 \|H_1 x_2 - b_1\|^2`, where
    :math:`x_i` solves the problem of half i, over a ladder of half decades and then by the parabola
    through the lowest rung and its neighbours. Without a guess the ladder leads from the strongest
    prior down until the score has risen twice, with one from there to both sides. It is the
    strength for one half: a quadratic prior's is the same for all data, that of norms is larger
    there by up to :math:`\sqrt 2`.

    One step tries one strength; each solution starts from that of the last strength.

    Args:
        halves: independent halves of the data.
        prior: kind of the prior; its strength is not used.
        config: how to solve.
        judges: the data of half 1 and half 2 to fit, where they are not those to solve for.
        mask: see :class:`~vitreous.optim.admm.Admm`.
        start: volumes of both halves to start from; zeros by default.
        among: where to look.
        callbacks: called with every iteration of every solution.

    >>> import torch
    >>> from vitreous.linop.operator import Identity
    >>> from vitreous.optim.priors import SquaredNorm
    >>> halves = [LeastSquares.of_data(Identity((1, 1, 1)), torch.ones(1, 1, 1)) for _ in (1, 2)]
    >>> search = StrengthSearch(tuple(halves), SquaredNorm(0.0), AdmmConfig())
    >>> round(search.step()["strength"], 3)
    1.0
    """

    STATE = ("_tried", "_scores")

    def __init__(
        self,
        halves: HalfSets,
        prior: WeightedPrior,
        config: AdmmConfig,
        *,
        judges: HalfSets | None = None,
        mask: Tensor | None = None,
        start: tuple[Tensor, Tensor] | None = None,
        among: StrengthRange | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self._halves, self._judges = halves, judges or halves
        self._prior, self._config, self._mask = prior, config, mask
        self._among = among = among or StrengthRange()
        self._callbacks = tuple(callbacks)
        self._start: tuple[Tensor | AdmmState | None, ...] = start or (None, None)
        guess = among.guess
        self._origin = math.log(
            max(prior.strongest(half) for half in halves) if guess is None else guess
        )
        self._scores: dict[int, float] = {}
        self._tried: list[tuple[float, float]] = []
        self._volumes: tuple[Tensor, Tensor] | None = None

    def step(self) -> Stats:
        """Try the next strength, at last the best one.

        Returns:
            "strength" and "score", the misfit of both halves with each other's data.
        """
        most = math.floor(self._among.decades * math.log(10) / _LOG_STEP)
        next_rung = _next_below if self._among.guess is None else _next_around
        rung = next_rung(self._scores, most)  # None once the lowest is between two higher ones
        log_strength = self._origin + (vertex(self._scores) if rung is None else rung) * _LOG_STEP
        prior = replace(self._prior, strength=math.exp(log_strength))
        first, second = (self._solve(half, prior) for half in (0, 1))
        score = self._judges[1].misfit(first.volume) + self._judges[0].misfit(second.volume)
        self._tried.append((prior.strength, score))
        if rung is None:
            self._volumes = first.volume, second.volume
        else:
            self._scores[rung] = score
            self._start = first.state, second.state
        return {"strength": prior.strength, "score": score}

    @property
    def done(self) -> bool:
        """Whether the best strength is found and its problems are solved."""
        return self._volumes is not None

    @property
    def progress(self) -> float:
        """Strengths tried, as a share of those that a search usually tries."""
        usual = _USUAL_TRIES[self._among.guess is not None]
        return 1.0 if self.done else min(len(self._tried) / usual, 0.99)

    def result(self) -> StrengthChoice:
        """Return the best strength and the volumes with it.

        Raises:
            ValueError: the search is not done.
        """
        if self._volumes is None:
            raise ValueError("the search for the strength is not done; call step until it is")
        return StrengthChoice(self._tried[-1][0], self._volumes, tuple(self._tried))

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on bit for bit."""
        states = [vars(one) if isinstance(one, AdmmState) else one for one in self._start]
        return super().state_dict() | {"start": states, "volumes": self._volumes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the :meth:`state_dict` of a search with the same data and settings."""
        super().load_state_dict(state)
        like = self._halves[0].right_hand_side
        volumes = state["volumes"]
        self._volumes = volumes and (volumes[0].to(like), volumes[1].to(like))
        self._start = tuple(_start_from(one, like) for one in state["start"])

    def _solve(self, half: int, prior: WeightedPrior) -> AdmmResult:
        problem, start = self._halves[half], self._start[half]
        return run(
            Admm(problem, prior, self._config, start=start, mask=self._mask), self._callbacks
        )


def _start_from(saved: Any, like: Tensor) -> Tensor | AdmmState | None:
    """Return a start as it was saved, on the device of ``like``."""
    if not isinstance(saved, dict):
        return None if saved is None else saved.to(like)
    y_u, y_v = (None if y is None else y.to(like) for y in saved["multipliers"])
    return AdmmState(saved["x"].to(like), (y_u, y_v), tuple(saved["rho"]))


def _next_below(scores: Mapping[int, float], most: int) -> int | None:
    """Return the next of the rungs 0, -1 ... until scores have risen twice in a row.

    >>> _next_below({0: 3.0, -1: 2.0}, 9), _next_below({0: 1.0, -1: 2.0, -2: 1.5}, 9)
    (-2, None)
    """
    lowest, rises = math.inf, 0
    for score in scores.values():
        rises = 0 if score < lowest else rises + 1
        lowest = min(lowest, score)
    return None if rises == 2 or len(scores) > most else -len(scores)


def _next_around(scores: Mapping[int, float], most: int) -> int | None:
    """Return the next rung, from 0 to where scores are lowest and to both neighbours of that.

    >>> _next_around({0: 1.0, 1: 2.0}, 9), _next_around({0: 1.0, 1: 2.0, -1: 3.0}, 9)
    (-1, None)
    """
    if len(scores) < 2:
        return len(scores)
    best = min(scores, key=scores.__getitem__)
    missing = [rung for rung in (best - 1, best + 1) if rung not in scores]
    return None if not missing or abs(best) >= most else missing[0]


def vertex(scores: Mapping[int, float]) -> float:
    """Return the lowest point of the parabola through the lowest score and its neighbours.

    The scores are equidistant. Where the lowest has no two neighbours, it is the result.

    >>> vertex({0: 4.0, 1: 1.0, 2: 0.0, 3: 1.0}), vertex({0: 4.0, 1: 5.0})
    (2.0, 0.0)
    """
    best = min(scores, key=scores.__getitem__)
    below, above = scores.get(best - 1), scores.get(best + 1)
    if below is None or above is None:
        return float(best)
    bend = below - 2 * scores[best] + above
    return best + (0.5 * (below - above) / bend if bend > 0 else 0.0)
