"""95% intervals of what was measured on few pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95% of the normal distribution


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


def wilson_interval(correct: int, count: int) -> Interval:
    """95% interval of a share (Wilson 1927): sound for few pictures and for shares near 0 or 1."""
    if count == 0:
        return Interval(0.0, 1.0)
    share, z2 = correct / count, Z95 * Z95
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def bootstrap_interval(
    count: int, figure: Callable[[np.ndarray], float], resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile interval of a figure over pictures drawn with replacement.

    Args:
        count: pictures.
        figure: given (count,) numbers of drawn pictures, the figure on them.
    """
    random = np.random.default_rng(seed)
    values = [figure(random.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(low), float(high))
