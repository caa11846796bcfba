"""Strengths chosen from the data against the best there is, on problems whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deconvolution import Problem, blocks, imaging_blur, observe
from vitreous.optim.admm import admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import (
    cross_validated,
    discrepancy,
    estimate_noise_variance,
    strongest,
    vertex,
)
from vitreous.optim.least_squares import LeastSquares

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SIGMA = (10, 12, 14), 0.5
CONFIGS = {
    "tv": AdmmConfig("tv", iterations=60, tolerance=1e-3),
    "l2": AdmmConfig("l2", nonnegative=False, iterations=60, tolerance=1e-3),
}


def half(seed: int, sigma: float = SIGMA) -> Problem:
    return observe(imaging_blur(SHAPE), blocks(SHAPE), sigma, seed)


def error(volume: Tensor) -> float:
    truth = blocks(SHAPE)
    return float((volume - truth).norm() / truth.norm())


def best_error(problem: Problem, config: AdmmConfig) -> float:
    """The smallest error on a grid of strengths, six to a decade."""
    state, errors = None, []
    for k in range(18):
        strength = strongest(problem.equations, config) * 10 ** (-k / 6)
        result = admm(problem.equations, replace(config, strength=strength), start=state)
        state = result.state
        errors.append(error(result.volume))
    assert min(errors) < 0.8 * min(errors[0], errors[-1])
    return min(errors)


@pytest.mark.parametrize(("regulariser", "slack"), [("tv", 1.05), ("l2", 1.15)])
def test_cross_validation_is_close_to_the_best(regulariser: str, slack: float) -> None:
    problems, config = (half(1), half(2)), CONFIGS[regulariser]
    told = []
    choice = cross_validated(
        problems[0].equations, problems[1].equations, config, notify=lambda *pair: told.append(pair)
    )
    for problem, result in zip(problems, choice.results, strict=True):
        assert error(result.volume) < slack * best_error(problem, config)
    scores = [score for _, score in choice.tried]
    assert scores[-1] <= min(scores) * (1 + 1e-3)
    assert tuple(told) == choice.tried
    assert choice.tried[-1][0] == choice.strength


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("regulariser", "slack"), [("tv", 1.35), ("l2", 1.05)])
def test_the_discrepancy_principle_is_not_far_from_the_best(
    regulariser: str, slack: float, known: bool
) -> None:
    """It smooths too much where few degrees of freedom are left, as total variation leaves."""
    problem, config = half(1), CONFIGS[regulariser]
    variance = SIGMA**2 if known else None
    choice = discrepancy(problem.equations, config, problem.measurements, noise_variance=variance)
    (result,) = choice.results
    assert error(result.volume) < slack * best_error(problem, config)
    if known:
        residual = 2 * problem.equations.misfit(result.volume)
        assert residual == pytest.approx(problem.measurements * SIGMA**2, rel=2e-3)


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_noise_is_estimated_to_a_part_of_the_degrees_of_freedom(sigma: float) -> None:
    """The residual of noise alone has a deviation of sqrt(2 / M); taking M for M - N is far off."""
    problem = half(3, sigma)
    estimate = estimate_noise_variance(problem.equations, problem.measurements)
    assert estimate == pytest.approx(sigma**2, rel=4 * (2 / problem.measurements) ** 0.5)


def test_maps_of_noise_alone_are_flat() -> None:
    problem = observe(imaging_blur(SHAPE), 0 * blocks(SHAPE), 1.0)
    choice = discrepancy(problem.equations, CONFIGS["tv"], problem.measurements, noise_variance=1.1)
    assert choice.results[0].volume.std() < 0.01


@pytest.mark.parametrize("regulariser", ["tv", "wavelet"])
def test_the_strongest_leaves_the_prior_only(regulariser: str) -> None:
    problem = half(1)
    config = AdmmConfig(
        regulariser, nonnegative=False, wavelet_levels=1, iterations=400, tolerance=1e-7
    )
    top = strongest(problem.equations, config)
    flat = admm(problem.equations, replace(config, strength=1.01 * top))
    assert flat.history[-1]["penalty"] < 1e-4 * flat.history[-1]["objective"]
    featured = admm(problem.equations, replace(config, strength=0.1 * top))
    assert featured.history[-1]["penalty"] > 1e-3 * featured.history[-1]["objective"]


def test_the_vertex_of_a_parabola_between_rungs() -> None:
    assert vertex({k: (k - 2.3) ** 2 for k in range(5)}) == pytest.approx(2.3)
    assert vertex({-1: 1.0, 0: 1.0, 1: 1.0}) == -1.0  # flat: the first of the lowest


def test_a_guess_of_the_strength_saves_solutions() -> None:
    problems, config = (half(1).equations, half(2).equations), CONFIGS["tv"]
    free = cross_validated(*problems, config)
    for factor in (0.2, 1.0, 5.0):
        guided = cross_validated(*problems, config, around=factor * free.strength)
        assert guided.strength == pytest.approx(free.strength, rel=0.3)
        assert len(guided.tried) < len(free.tried)
    start = free.results[0].volume, free.results[1].volume
    warm = cross_validated(*problems, config, start=start, around=free.strength)
    assert warm.strength == pytest.approx(free.strength, rel=0.3)


def test_wrong_arguments_are_named() -> None:
    problem = half(1)
    with pytest.raises(ValueError, match="the regulariser is 'none'"):
        cross_validated(problem.equations, problem.equations, AdmmConfig("none"))
    with pytest.raises(ValueError, match=r"noise variance 0\.01; is that too small"):
        discrepancy(
            problem.equations, CONFIGS["l2"], problem.measurements, noise_variance=0.01, decades=2
        )
    few = LeastSquares(problem.equations.operator, problem.equations.right_hand_side, 1.0)
    with pytest.raises(ValueError, match="100 measurements are too few to tell noise from 1680"):
        estimate_noise_variance(few, 100)
    assert torch.equal(few.right_hand_side, problem.equations.right_hand_side)


@pytest.mark.parametrize("guess", [None, 1.0])
def test_without_a_regulariser_there_is_nothing_to_choose(guess: float | None) -> None:
    problems = half(1).equations, half(2).equations
    with pytest.raises(ValueError, match="the regulariser is 'none'"):
        cross_validated(*problems, AdmmConfig("none"), around=guess)
