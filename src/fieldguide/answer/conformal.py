"""Sets of labels that hold the right one as often as asked, whatever the probabilities are worth.

Split conformal prediction (Vovk, Gammerman and Shafer 2005) with the score of the least ambiguous sets, one
minus the probability of the right label (Sadinle, Lei and Wasserman 2019). Of the known scores it gives the
smallest sets on average. Adaptive sets (Romano, Sesia and Candès 2020) without a draw at random are larger
wherever a guide is sure: nearly all probability is on one label, and so nearly all must be collected. A set
could be empty here; then the likeliest label is put into it, which can only raise coverage.

The promise: over new pictures *and* over the validation pictures that could have been drawn, a set holds the
right label with at least the probability asked, if both are exchangeable. It holds on average, not for every
label, and with the pictures at hand it may be a little more or less. With n validation pictures no coverage
above n / (n + 1) can be promised except by naming all labels, which is then what happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fieldguide.records import LabelScore

MOST_SCORES = 2000  # kept with a guide; of more pictures a random part
SLACK = 1e-6  # what rounding may take from a probability: a label at the bound belongs to the set


def conformal_scores(right: Sequence[float], seed: int = 0) -> list[float]:
    """One minus the calibrated probability of the right label, ascending.

    Args:
        right: that probability for each of n validation pictures, in [0, 1].
        seed: of the draw when there are more than 2,000: a random part is as exchangeable as the whole.
    """
    scores = 1 - np.asarray(right, dtype=float)
    if len(scores) > MOST_SCORES:
        scores = np.random.default_rng(seed).choice(scores, MOST_SCORES, replace=False)
    return [float(score) for score in np.sort(scores)]


def least_probability(scores: Sequence[float], coverage: float) -> float:
    """The probability from which on a label belongs to the set; 0 when all labels must.

    Args:
        scores: ascending, of n validation pictures.
        coverage: in (0, 1).

    Raises:
        ValueError: for another coverage.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage={coverage} must lie between 0 and 1")
    # Rounding must not ask for one picture more than exact arithmetic would: (9 + 1) · 0.9 is 9.
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return max(0.0, 1 - scores[rank - 1]) if rank <= len(scores) else 0.0


def labels_needed(least: float, count: int) -> int:
    """How many of `count` labels, likeliest first, hold all that reach a probability."""
    if least <= SLACK:
        return count
    return min(count, max(1, math.floor(1 / (least - SLACK))))


def prediction_set(scores: Sequence[LabelScore], least: float) -> tuple[LabelScore, ...]:
    """The labels that reach a probability, and the likeliest in any case.

    Args:
        scores: best first, at least `labels_needed` of them.
        least: from `least_probability`.
    """
    return tuple(
        one for place, one in enumerate(scores) if place == 0 or (one.probability or 0.0) >= least - SLACK
    )
