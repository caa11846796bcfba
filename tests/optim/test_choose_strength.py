"""Strengths chosen from the data against the best there is, on problems whose truth is known."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deconvolution import Problem, blocks, imaging_blur, observe
from vitreous.optim.admm import admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import (
    StrengthChoice,
    StrengthRange,
    StrengthSearch,
    vertex,
)
from vitreous.optim.loop import Stats, run
from vitreous.optim.priors import WEIGHTED, WeightedPrior

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, SIGMA = (10, 12, 14), 0.5
CONFIGS = {
    "tv": AdmmConfig(iterations=60, tolerance=1e-3),
    "l2": AdmmConfig(nonnegative=False, iterations=60, tolerance=1e-3),
}


def half(seed: int, sigma: float = SIGMA) -> Problem:
    return observe(imaging_blur(SHAPE), blocks(SHAPE), sigma, seed)


def error(volume: Tensor) -> float:
    truth = blocks(SHAPE)
    return float((volume - truth).norm() / truth.norm())


def best_error(problem: Problem, prior: WeightedPrior, config: AdmmConfig) -> float:
    """The smallest error on a grid of strengths, six to a decade."""
    state, errors = None, []
    for k in range(18):
        strength = prior.strongest(problem.equations) * 10 ** (-k / 6)
        result = admm(problem.equations, replace(prior, strength=strength), config, start=state)
        state = result.state
        errors.append(error(result.volume))
    assert min(errors) < 0.8 * min(errors[0], errors[-1])
    return min(errors)


@pytest.mark.parametrize(
    ("regulariser", "slack"), [pytest.param("tv", 1.05, marks=pytest.mark.slow), ("l2", 1.15)]
)
def test_cross_validation_is_close_to_the_best(regulariser: str, slack: float) -> None:
    problems, config, prior = (half(1), half(2)), CONFIGS[regulariser], WEIGHTED[regulariser](0.0)
    halves = problems[0].equations, problems[1].equations
    rows: list[Stats] = []
    choice = run(StrengthSearch(halves, prior, config), [lambda step, stats: rows.append(stats)])
    for problem, volume in zip(problems, choice.volumes, strict=True):
        assert error(volume) < slack * best_error(problem, prior, config)
    scores = [score for _, score in choice.tried]
    assert scores[-1] <= min(scores) * (1 + 1e-3)
    assert tuple((row["strength"], row["score"]) for row in rows) == choice.tried
    assert choice.tried[-1][0] == choice.strength


@pytest.mark.parametrize("regulariser", ["tv", "wavelet"])
def test_the_strongest_leaves_the_prior_only(regulariser: str) -> None:
    problem = half(1)
    config = AdmmConfig(nonnegative=False, iterations=400, tolerance=1e-7)
    prior = WEIGHTED[regulariser](0.0, **({"levels": 1} if regulariser == "wavelet" else {}))
    top = prior.strongest(problem.equations)
    flat = admm(problem.equations, replace(prior, strength=1.01 * top), config)
    assert flat.history[-1]["penalty"] < 1e-4 * flat.history[-1]["objective"]
    featured = admm(problem.equations, replace(prior, strength=0.1 * top), config)
    assert featured.history[-1]["penalty"] > 1e-3 * featured.history[-1]["objective"]


def test_the_vertex_of_a_parabola_between_rungs() -> None:
    assert vertex({k: (k - 2.3) ** 2 for k in range(5)}) == pytest.approx(2.3)
    assert vertex({-1: 1.0, 0: 1.0, 1: 1.0}) == -1.0  # flat: the first of the lowest


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_a_guess_of_the_strength_saves_solutions(factor: float) -> None:
    halves = half(1).equations, half(2).equations

    def search(guess: float | None, start: tuple[Tensor, Tensor] | None = None) -> StrengthChoice:
        prior, among = WEIGHTED["tv"](0.0), StrengthRange(guess)
        return run(StrengthSearch(halves, prior, CONFIGS["tv"], start=start, among=among))

    free = search(None)
    guided = search(factor * free.strength)
    assert guided.strength == pytest.approx(free.strength, rel=0.3)
    assert len(guided.tried) < len(free.tried)
    warm = search(free.strength, free.volumes)
    assert warm.strength == pytest.approx(free.strength, rel=0.3)


@pytest.mark.parametrize("guess", [None, 0.3])
def test_a_search_goes_on_bit_for_bit(guess: float | None) -> None:
    halves = half(1).equations, half(2).equations

    def search() -> StrengthSearch:
        config = replace(CONFIGS["tv"], iterations=8)
        return StrengthSearch(halves, WEIGHTED["tv"](0.0), config, among=StrengthRange(guess))

    whole, states = search(), []
    with pytest.raises(ValueError, match="is not done"):
        whole.result()
    while not whole.done:
        states.append(deepcopy(whole.state_dict()))
        whole.step()
    assert whole.progress == 1.0
    for state in (states[0], states[len(states) // 2], whole.state_dict()):
        again = search()
        again.load_state_dict(state)
        found = run(again)
        assert found.tried == whole.result().tried
        assert torch.equal(found.volumes[1], whole.result().volumes[1])
