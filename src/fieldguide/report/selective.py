"""What is gained by trusting only some answers: selective prediction, refused pictures, sets of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from fieldguide.answer.conformal import labels_needed, least_probability, prediction_set
from fieldguide.records import LabelScore
from fieldguide.report.intervals import Interval, bootstrap_interval, wilson_interval

COVERAGES = (0.8, 0.9, 0.95)
MOST_LABELS = 100  # a coverage whose sets could need more is not measured: reading them all takes too long
POINTS = 100  # of the curve


class Judged(Protocol):
    """What is needed of an evaluated picture (`Prediction`)."""

    @property
    def label(self) -> str: ...

    @property
    def predicted(self) -> str: ...

    @property
    def probability(self) -> float | None: ...

    @property
    def scores(self) -> tuple[LabelScore, ...]: ...

    @property
    def right(self) -> bool: ...

    @property
    def in_guide(self) -> bool | None: ...


@dataclass(frozen=True)
class SetScore:
    """How conformal sets of one asked coverage fared."""

    asked: float
    count: int  # pictures with an answer and a label the guide knows
    covered: int  # of them, those whose set holds the right label
    coverage: float
    interval: Interval  # Wilson
    mean_size: float  # labels in a set
    mean_size_interval: Interval  # bootstrap over pictures
    all_labels: bool  # too few validation pictures: every set holds all labels


@dataclass(frozen=True)
class Refused:
    """Pictures said to be not in the guide."""

    count: int  # pictures of labels the guide knows, for which it was told
    refused: int
    refused_right: int  # of them, those whose label would have been right
    share: float
    interval: Interval  # Wilson
    kept_accuracy: float  # of those that were not refused
    unknown: int  # pictures of labels the guide was never taught …
    unknown_refused: int  # … and how many of them were refused


@dataclass(frozen=True)
class Selective:
    """The figures of the report's part on trust."""

    curve: tuple[tuple[float, float], ...]  # (share of answers kept, accuracy on them), surest first
    area: float  # mean accuracy over the shares: under the curve
    refused: Refused | None  # None: the guide does not tell
    sets: tuple[SetScore, ...]  # empty: the guide keeps no validation scores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def selective(
    predictions: Sequence[Judged], labels: Sequence[str], conformal_scores: Sequence[float] | None
) -> Selective:
    """Figures of how far single answers can be believed.

    Args:
        predictions: with scores that hold every label a set could; those without a probability are left out.
        labels: those the guide knows.
        conformal_scores: of its validation pictures; None where it keeps none.
    """
    answered = [p for p in predictions if p.predicted and p.probability is not None]
    confidence = np.array([p.probability for p in answered], dtype=float)
    right = np.array([p.right for p in answered], dtype=bool)
    curve = accuracy_curve(confidence, right)
    known = [p for p in answered if p.label in set(labels)]
    asked = measured_coverages(conformal_scores, len(labels))
    sets = [set_score(known, coverage, conformal_scores or ()) for coverage in asked]
    return Selective(
        curve=_thinned(curve),
        area=float(np.mean([accuracy for _, accuracy in curve])) if curve else 0.0,
        refused=refused_pictures(answered, set(labels)),
        sets=tuple(one for one in sets if one is not None),
    )


def measured_coverages(conformal_scores: Sequence[float] | None, count: int) -> dict[float, int]:
    """Coverages that the report measures, and how many labels must be scored for each.

    Args:
        conformal_scores: None where a guide keeps none.
        count: labels of the guide.
    """
    if conformal_scores is None:
        return {}
    needed = {asked: labels_needed(least_probability(conformal_scores, asked), count) for asked in COVERAGES}
    return {asked: number for asked, number in needed.items() if number <= MOST_LABELS}


def accuracy_curve(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float]]:
    """Coverage–accuracy curve (El-Yaniv and Wiener 2010): (share kept, accuracy on them), the surest first.

    Equally sure answers are kept or left out together: their order would be luck.

    Args:
        confidence: (n,).
        right: (n,) bool.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], right[order].cumsum()
    ends = [i for i in range(len(sure)) if i + 1 == len(sure) or sure[i + 1] < sure[i]]
    return [((i + 1) / len(sure), float(hits[i] / (i + 1))) for i in ends]


def _thinned(curve: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    if len(curve) <= POINTS:
        return tuple(curve)
    chosen = np.unique(np.linspace(0, len(curve) - 1, POINTS).round().astype(int))
    return tuple(curve[i] for i in chosen)


def refused_pictures(answered: Sequence[Judged], labels: set[str]) -> Refused | None:
    """Counts of what was refused; None where no answer tells."""
    told = [p for p in answered if p.in_guide is not None]
    if not told:
        return None
    known, unknown = [p for p in told if p.label in labels], [p for p in told if p.label not in labels]
    refused, kept = [p for p in known if not p.in_guide], [p for p in known if p.in_guide]
    return Refused(
        count=len(known),
        refused=len(refused),
        refused_right=sum(p.right for p in refused),
        share=len(refused) / max(1, len(known)),
        interval=wilson_interval(len(refused), len(known)),
        kept_accuracy=sum(p.right for p in kept) / max(1, len(kept)),
        unknown=len(unknown),
        unknown_refused=sum(not p.in_guide for p in unknown),
    )


def set_score(known: Sequence[Judged], asked: float, scores: Sequence[float]) -> SetScore | None:
    """How the sets of one coverage fared; None without pictures."""
    if not known:
        return None
    least = least_probability(scores, asked)
    sets: list[tuple[LabelScore, ...]] = [prediction_set(p.scores, least) for p in known]
    hit = [any(one.label == p.label for one in members) for members, p in zip(sets, known, strict=True)]
    sizes = np.array([len(members) for members in sets], dtype=float)
    return SetScore(
        asked=asked,
        count=len(known),
        covered=sum(hit),
        coverage=sum(hit) / len(known),
        interval=wilson_interval(sum(hit), len(known)),
        mean_size=float(sizes.mean()),
        mean_size_interval=bootstrap_interval(len(known), lambda rows: float(sizes[rows].mean())),
        all_labels=least <= 0,
    )
