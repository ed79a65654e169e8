"""Whether stated probabilities can be believed: calibration error, Brier score, and how sure these are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fieldguide.report.intervals import Interval, bootstrap_interval

RESAMPLES = 1000  # drawn sets of pictures; fewer, but 100 at least, …
PICTURES_DRAWN = 20_000_000  # … of very long tables


@dataclass(frozen=True)
class Bin:
    """One bar of the reliability plot: answers whose probability lies in [low, high)."""

    low: float
    high: float
    count: int
    confidence: float  # mean stated probability
    accuracy: float  # share that was right


@dataclass(frozen=True)
class Calibration:
    """Whether the stated probabilities can be believed."""

    ece: float  # expected calibration error: mean |stated − found| over the bins, weighted by count
    brier: float  # mean (probability of the given answer − 1 if right else 0)²
    count: int  # answers that came with a probability
    bins: tuple[Bin, ...]
    ece_interval: (
        Interval  # bootstrap over pictures; like the estimate itself too high where pictures are few
    )
    ece_by_chance: float  # the error to expect on so many pictures if every probability were exactly true …
    ece_by_chance_high: float  # … which is exceeded in 5% of such sets of pictures
    brier_interval: Interval  # bootstrap over pictures


def calibrate_check(confidence: np.ndarray, right: np.ndarray, bins: int = 10, seed: int = 0) -> Calibration:
    """Expected calibration error over equal-width bins (Guo et al. 2017) and Brier score.

    The error is never negative and so, on few pictures, above 0 for perfect probabilities too. How far above
    is found by drawing which answers would be right if they were perfect.

    Args:
        confidence: (n,) stated probability of each given answer, in [0, 1].
        right: (n,) bool.
        seed: of the drawn pictures.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)

    def error(rows: np.ndarray, truly: np.ndarray) -> float:
        gaps = np.bincount(place[rows], confidence[rows] - truly, minlength=bins)
        return float(np.abs(gaps).sum() / len(rows))

    found = []
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        stated = float(confidence[inside].mean()) if count else 0.0
        accuracy = float(right[inside].mean()) if count else 0.0
        found.append(Bin(index / bins, (index + 1) / bins, count, stated, accuracy))
    every, size = np.arange(len(confidence)), len(confidence)
    resamples = max(100, min(RESAMPLES, PICTURES_DRAWN // size))
    random, squares = np.random.default_rng(seed), (confidence - right) ** 2
    by_chance = [error(every, random.random(size) < confidence) for _ in range(resamples)]
    return Calibration(
        ece=error(every, right),
        brier=float(squares.mean()),
        count=size,
        bins=tuple(found),
        ece_interval=bootstrap_interval(size, lambda rows: error(rows, right[rows]), resamples, seed),
        ece_by_chance=float(np.mean(by_chance)),
        ece_by_chance_high=float(np.quantile(by_chance, 0.95)),
        brier_interval=bootstrap_interval(size, lambda rows: float(squares[rows].mean()), resamples, seed),
    )
