"""Threshold between the scores of particles and those of noise.

Scores of all peaks are a mixture of two normal distributions. Its fit starts from the scores above
those of micrographs with random phases: noise that has the same power spectrum. Where the upper
part is clearly apart from the lower (Ashman's D of 3 or more) the threshold is where both are
equally likely. Else nothing but noise may be there, and the threshold is the highest of noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STARTING_QUANTILE = 0.98  # of the scores of noise
_APART = 3.0  # Ashman's D
_FEWEST = 0.01  # share of the upper part
_STEPS = 200

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreThreshold:
    """Threshold, the upper distribution (particles), and whether it is apart from the lower one."""

    threshold: float
    mean: float
    deviation: float
    separation: float  # Ashman's D
    clear: bool


def score_threshold(scores: Scores, noise_scores: Scores) -> ScoreThreshold:
    """Return the threshold of the peaks' scores ``(n,)``, given those of noise ``(m,)``.

    Neither may be empty. Source of D: K. M. Ashman, C. M. Bird, S. E. Zepf, Astronomical Journal
    108 (1994) 2348.

    >>> rng = np.random.default_rng(1)
    >>> noise, particles = rng.normal(0.1, 0.05, 900), rng.normal(0.5, 0.07, 100)
    >>> limit = score_threshold(np.concatenate([noise, particles]), noise)
    >>> limit.clear, 0.2 < limit.threshold < 0.35
    (True, True)
    >>> score_threshold(noise, noise[:400]).clear
    False
    """
    upper = scores > np.quantile(noise_scores, _STARTING_QUANTILE)
    highest = float(noise_scores.max())
    if not 2 <= upper.sum() <= len(scores) - 2:
        return ScoreThreshold(highest, highest, 0.0, 0.0, False)
    share = upper.astype(float)  # probability that a peak is a particle
    for _ in range(_STEPS):
        weight = float(share.mean())
        low, high = _moments(scores, 1 - share), _moments(scores, share)
        odds = _density(scores, *high) * weight / (_density(scores, *low) * (1 - weight))
        new = odds / (1 + odds)
        if np.abs(new - share).max() < 1e-6:
            break
        share = new
    separation = math.sqrt(2) * (high[0] - low[0]) / math.hypot(high[1], low[1])
    clear = separation >= _APART and weight >= _FEWEST
    grid = np.linspace(low[0], high[0], 1000)
    likely = _density(grid, *high) * weight > _density(grid, *low) * (1 - weight)
    crossing = float(grid[likely.argmax()]) if likely.any() else high[0]
    return ScoreThreshold(crossing if clear else highest, high[0], high[1], separation, clear)


def _moments(values: Scores, weights: Scores) -> tuple[float, float]:
    mean = float(np.average(values, weights=weights))
    return mean, math.sqrt(float(np.average((values - mean) ** 2, weights=weights)) + 1e-6)


def _density(values: Scores, mean: float, deviation: float) -> Scores:
    return np.asarray(np.exp(-(((values - mean) / deviation) ** 2) / 2) / deviation + 1e-300)
