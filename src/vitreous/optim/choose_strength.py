r"""The strength :math:`\lambda` of the regulariser, chosen from the data.

Both rules need the normal equations only: the discrepancy principle,
:math:`\|H x_\lambda - b\|^2 = M \sigma^2` for M measurements with noise of variance
:math:`\sigma^2`, and cross-validation between half sets, which takes the strength whose map of one
half fits the data of the other half best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.linop.gradient import Gradient
from vitreous.linop.wavelet import Wavelet
from vitreous.optim.admm import AdmmResult, AdmmState, admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.admm_linear_step import invert_circulant
from vitreous.optim.conjugate_gradient import conjugate_gradient, dot, largest_eigenvalue
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Callback
from vitreous.optim.prox import lengths

_STEP = math.log(10) / 2  # of the coarse search, in ln(strength)
_RIDGE = 1e-3  # of the mean eigenvalue, in the estimate of the noise
_NO_REGULARISER = "there is no strength to choose: the regulariser is 'none'"

Told = Callable[[float, float], None]


@dataclass(frozen=True)
class StrengthChoice:
    """A strength and how it was found.

    Args:
        strength: lambda.
        results: the solutions with it: one, or those of half 1 and half 2.
        tried: strengths and their scores, in the order in which they were tried: the squared
            residual, or the misfit of both halves with each other's data.
    """

    strength: float
    results: tuple[AdmmResult, ...]
    tried: tuple[tuple[float, float], ...]


class _Search:
    """Solves for one strength after another, each from where the last one ended."""

    def __init__(
        self,
        problems: tuple[LeastSquares, ...],
        config: AdmmConfig,
        mask: Tensor | None,
        score: Callable[[tuple[AdmmResult, ...]], float],
        notify: Told | None,
        start: tuple[AdmmState | Tensor | None, ...],
        callbacks: tuple[Callback, ...] = (),
    ) -> None:
        self._problems = problems
        self._config = config
        self._mask = mask
        self._score = score
        self._notify = notify
        self._states = start
        self._callbacks = callbacks
        self._tried: list[tuple[float, float]] = []

    def __call__(self, log_strength: float) -> float:
        """The score of a strength."""
        return self._try(log_strength)[0]

    def choice(self, log_strength: float) -> StrengthChoice:
        """The solutions with a strength."""
        _, results = self._try(log_strength)
        return StrengthChoice(math.exp(log_strength), results, tuple(self._tried))

    def _try(self, log_strength: float) -> tuple[float, tuple[AdmmResult, ...]]:
        strength = math.exp(log_strength)
        config = replace(self._config, strength=strength)
        results = tuple(
            admm(problem, config, start=state, mask=self._mask, callbacks=self._callbacks)
            for problem, state in zip(self._problems, self._states, strict=True)
        )
        self._states = tuple(result.state for result in results)
        score = self._score(results)
        self._tried.append((strength, score))
        if self._notify is not None:
            self._notify(strength, score)
        return score, results


def cross_validated(
    half1: LeastSquares,
    half2: LeastSquares,
    config: AdmmConfig,
    *,
    judges: tuple[LeastSquares, LeastSquares] | None = None,
    mask: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    around: float | None = None,
    decades: float = 6.0,
    notify: Told | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> StrengthChoice:
    r"""The strength at which the map of each half fits the other half's data best.

    Minimises :math:`\frac12 \|H_2 x_1 - b_2\|^2 + \frac12 \|H_1 x_2 - b_1\|^2`, where
    :math:`x_i` solves the problem of half i, over a ladder of half decades and then by the parabola
    through the lowest rung and its neighbours. Without a guess the ladder leads from
    :func:`strongest` down until the score has risen twice, with one from there to both sides. It is
    the strength for one half: a quadratic regulariser's is the same for all data, that of norms is
    larger there by up to :math:`\sqrt 2`.

    Args:
        half1, half2: of independent halves of the data.
        config: prior and solver; its strength is not used.
        judges: the data of half 1 and half 2 to fit, where they are not those to solve for.
        mask: see :func:`~vitreous.optim.admm.admm`.
        start: volumes of both halves to start from; zeros by default.
        around: a guess, such as the strength found on a coarser lattice.
        decades: how far below :func:`strongest`, or from the guess, to look.
        notify: told each strength and its score.

    Raises:
        ValueError: a config without a regulariser.
    """
    judge1, judge2 = judges or (half1, half2)

    def score(results: tuple[AdmmResult, ...]) -> float:
        of_half1, of_half2 = results
        return judge2.misfit(of_half1.volume) + judge1.misfit(of_half2.volume)

    search = _Search((half1, half2), config, mask, score, notify, start or (None, None), callbacks)
    walk = _climb_down
    if around is None:
        around, walk = max(strongest(half1, config), strongest(half2, config)), _descend
    elif config.regulariser == "none":
        raise ValueError(_NO_REGULARISER)
    origin = math.log(around)
    most = math.floor(decades * math.log(10) / _STEP)
    scores = walk(lambda rung: search(origin + rung * _STEP), most)
    return search.choice(origin + vertex(scores) * _STEP)


def _descend(score: Callable[[int], float], most: int) -> dict[int, float]:
    """Scores of the rungs 0, -1 ... until they have risen twice in a row."""
    scores: dict[int, float] = {}
    lowest, rises = math.inf, 0
    for rung in range(0, -most - 1, -1):
        scores[rung] = score(rung)
        rises = 0 if scores[rung] < lowest else rises + 1
        lowest = min(lowest, scores[rung])
        if rises == 2:
            break
    return scores


def _climb_down(score: Callable[[int], float], most: int) -> dict[int, float]:
    """Scores of rungs from 0 to where they are lowest, with both neighbours of that."""
    scores = {rung: score(rung) for rung in (0, 1)}
    while True:
        best = min(scores, key=scores.__getitem__)
        missing = [rung for rung in (best - 1, best + 1) if rung not in scores]
        if not missing or abs(best) >= most:
            return scores
        scores[missing[0]] = score(missing[0])


def vertex(scores: Mapping[int, float]) -> float:
    """Where the parabola through the lowest of equidistant scores and its neighbours is lowest.

    The place of the lowest where that has no two neighbours.

    >>> vertex({0: 4.0, 1: 1.0, 2: 0.0, 3: 1.0}), vertex({0: 4.0, 1: 5.0})
    (2.0, 0.0)
    """
    best = min(scores, key=scores.__getitem__)
    below, above = scores.get(best - 1), scores.get(best + 1)
    if below is None or above is None:
        return float(best)
    bend = below - 2 * scores[best] + above
    return best + (0.5 * (below - above) / bend if bend > 0 else 0.0)


def discrepancy(
    equations: LeastSquares,
    config: AdmmConfig,
    measurements: int,
    *,
    noise_variance: float | None = None,
    mask: Tensor | None = None,
    decades: float = 6.0,
    notify: Told | None = None,
) -> StrengthChoice:
    r"""The strength at which the residual is what the noise alone would leave.

    Solves :math:`\|H x_\lambda - b\|^2 = M \sigma^2`, whose left side grows with the strength:
    from :func:`strongest` down in half decades, then by bisection to within 5 %.

    With many more measurements than voxels the noise must be known to a small part of their ratio,
    which estimates from images' corners are not; the estimate from the same equations is.

    Args:
        equations: the data.
        config: prior and solver; its strength is not used.
        measurements: M, all pixels of all images.
        noise_variance: :math:`\sigma^2` in each measurement; None: :func:`estimate_noise_variance`.
        mask: see :func:`~vitreous.optim.admm.admm`.
        decades: how far below :func:`strongest` to look.
        notify: told each strength and its squared residual.

    Raises:
        ValueError: a config without a regulariser, or residuals that stay above the noise.

    Source: Morozov, Soviet Math. Dokl. 7 (1966) 414.
    """
    if noise_variance is None:
        noise_variance = estimate_noise_variance(equations, measurements)
    target = measurements * noise_variance
    search = _Search(
        (equations,), config, mask, lambda r: 2 * equations.misfit(r[0].volume), notify, (None,)
    )
    top = math.log(strongest(equations, config))
    if search(top) <= target:
        return search.choice(top)
    place, bottom = top - _STEP, top - decades * math.log(10)
    while (value := search(place)) > target:
        place -= _STEP
        if place < bottom:
            raise ValueError(
                f"the squared residual {value:.6g} stays above {measurements} measurements times "
                f"the noise variance {noise_variance:.6g}; is that too small?"
            )
    low, high = place, place + _STEP
    while high - low > math.log(1.05):
        middle = (low + high) / 2
        low, high = (low, middle) if search(middle) > target else (middle, high)
    return search.choice((low + high) / 2)


def strongest(equations: LeastSquares, config: AdmmConfig) -> float:
    r"""A strength from which on nothing but the prior is left of the map.

    The largest wavelet coefficient of :math:`H^T b`, the longest vector of the gradient field whose
    divergence is :math:`H^T b`, or the largest eigenvalue of :math:`H^T H`, which halves all.

    Raises:
        ValueError: no regulariser.

    >>> from vitreous.linop.operator import Identity
    >>> equations = LeastSquares(Identity((2, 2, 2)), torch.ones(2, 2, 2), 1.0)
    >>> round(strongest(equations, AdmmConfig("l2")), 4)
    1.0
    """
    rhs = equations.right_hand_side
    shape = tuple(rhs.shape)
    if config.regulariser == "l2":
        return largest_eigenvalue(equations.operator, rhs)
    if config.regulariser == "wavelet":
        wavelet = Wavelet(shape, config.wavelet, config.wavelet_levels)
        return _positive(wavelet(rhs).abs() * wavelet.details(rhs))
    if config.regulariser == "tv":
        gradient = Gradient(shape)
        spectrum = gradient.normal_spectrum(rhs)
        spectrum[0, 0, 0] = 1.0
        field = gradient(invert_circulant(spectrum, rhs - rhs.mean()))
        return _positive(lengths(field))
    raise ValueError(_NO_REGULARISER)


def _positive(values: Tensor) -> float:
    return max(float(values.max()), torch.finfo(values.dtype).tiny)


@torch.no_grad()
def estimate_noise_variance(equations: LeastSquares, measurements: int) -> float:
    r"""Noise variance in each measurement, from what a nearly unregularised map leaves.

    With :math:`x = (H^T H + \epsilon)^{-1} H^T b` and
    :math:`S = (H^T H + \epsilon)^{-1} H^T H`,

    .. math::

        \hat\sigma^2 = \frac{\|H x - b\|^2}{M - 2\,\mathrm{tr}\,S + \mathrm{tr}\,S^2},

    the traces from one volume of random signs. Noise is white; what no volume explains (wrong
    poses, wrong CTFs) counts as noise.

    Args:
        equations: the data.
        measurements: M, all pixels of all images; more than there are voxels.

    Raises:
        ValueError: fewer measurements than they have degrees of freedom.

    Source: Hutchinson, Commun. Stat. Simul. 18 (1989) 1059, for the traces.
    """
    epsilon = _RIDGE * equations.mean_eigenvalue()

    def solve(b: Tensor) -> Tensor:
        return conjugate_gradient(
            lambda v: equations.operator(v) + epsilon * v, b, iterations=200, tolerance=1e-3
        ).x

    generator = torch.Generator().manual_seed(1)
    signs = (
        torch.randint(0, 2, equations.right_hand_side.shape, generator=generator).to(
            equations.right_hand_side
        )
        * 2
        - 1
    )
    smooth = solve(equations.operator(signs))
    freedom = measurements - 2 * dot(signs, smooth) + dot(smooth, smooth)
    if not freedom > 0:
        raise ValueError(
            f"{measurements} measurements are too few to tell noise from "
            f"{equations.right_hand_side.numel()} voxels; give the noise variance"
        )
    return 2 * equations.misfit(solve(equations.right_hand_side)) / freedom
