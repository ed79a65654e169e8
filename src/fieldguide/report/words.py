"""The report of a guide that answers in words: how surprised the right ones leave it, beside its base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.report.freetext import FreeScores, score_answers, tokens_of
from fieldguide.report.metrics import Interval

RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """One example's question, the answer it has in the data, and the guide's."""

    example: str
    question: str
    reference: str
    answer: str


@dataclass(frozen=True)
class WordsEvaluation:
    """Figures over the rows of one split."""

    title: str
    split: str
    rows: int
    tokens: int  # supervised
    loss: float  # nats a token
    loss_interval: Interval  # 95%, rows drawn anew
    base_loss: float  # of the untouched base model, on the same rows
    gain_interval: Interval  # 95%, of base loss − loss, on the same draws
    samples: tuple[Sample, ...]
    overlap: tuple[str, ...]  # rows whose picture the guide has seen
    guide_info: Mapping[str, Any]
    steps: tuple[dict[str, Any], ...] = ()  # the log of the training
    quality: FreeScores | None = None  # of the samples' answers; None: none has a reference

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def base_perplexity(self) -> float:
        return math.exp(min(self.base_loss, 700.0))


def losses_with_intervals(
    ours: np.ndarray, base: np.ndarray, tokens: np.ndarray, seed: int = 0
) -> tuple[float, Interval, float, Interval]:
    """(loss, its 95% interval, base loss, 95% interval of the gain), by the bootstrap over rows.

    Args:
        ours, base: (rows,) summed losses in nats.
        tokens: (rows,) supervised tokens.
    """
    draws = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    counts = tokens[draws].sum(1)
    mine, theirs = ours[draws].sum(1) / counts, base[draws].sum(1) / counts
    low, high = np.quantile(mine, [0.025, 0.975])
    worse, better = np.quantile(theirs - mine, [0.025, 0.975])
    total = tokens.sum()
    return (
        float(ours.sum() / total),
        Interval(float(low), float(high)),
        float(base.sum() / total),
        Interval(float(worse), float(better)),
    )


def quality_of(samples: Sequence[Sample]) -> FreeScores | None:
    """How near the answers of some samples come to those in the data."""
    told = [sample for sample in samples if tokens_of(sample.reference)]
    if not told:
        return None
    return score_answers([sample.reference for sample in told], [sample.answer for sample in told])


def verdict_in_words(found: WordsEvaluation) -> str:
    """One sentence: is it better than the base it was made from?"""
    gain = found.base_loss - found.loss
    if found.gain_interval.low > 0:
        return f"better than its base model by {gain:.3f} nats a token"
    if found.gain_interval.high < 0:
        return f"WORSE than its base model by {-gain:.3f} nats a token"
    return f"not clearly better than its base model (gain {gain:.3f} nats a token, which may well be chance)"


def named(overlap: Sequence[Any]) -> tuple[str, ...]:
    """The rows of an overlap, for the record."""
    return tuple(f"{one.image} ({one.how} of {one.seen})" for one in overlap)
