"""How good a list of answers is: accuracy, per-class scores, confusions, calibration, and their intervals.

    metrics = compute_metrics(actual=["cat", "dog"], predicted=["cat", ""])

An empty prediction is "no answer". It counts as wrong, and so does an answer that is no known label;
both are listed on their own, and no row is ever dropped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldguide.errors import DataError
from fieldguide.files import natural_key
from fieldguide.report.intervals import Interval, wilson_interval
from fieldguide.report.reliability import Calibration, calibrate_check

NO_ANSWER = "(no answer)"  # confusion matrix columns that are no labels
OTHER_ANSWER = "(other answer)"


@dataclass(frozen=True)
class ClassScore:
    """How one label fared."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # pictures that truly are this
    predicted: int  # pictures that were called this


@dataclass(frozen=True)
class Average:
    """Precision, recall and F1 averaged over the labels that have pictures."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SourceScore:
    """Accuracy on the pictures of one source."""

    source: str
    count: int
    correct: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class McNemar:
    """Exact test of two classifiers on the same pictures."""

    only_first: int  # pictures that only the first got right
    only_second: int
    p: float  # probability of a split at least this uneven if both were equally good


@dataclass(frozen=True)
class Metrics:
    """All figures of one list of answers."""

    count: int
    correct: int
    accuracy: float
    accuracy_interval: Interval  # Wilson
    macro: Average
    weighted: Average
    macro_f1_interval: Interval  # bootstrap over pictures
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # rows: the labels of `classes`; columns: `confusion_columns`
    confusion_columns: tuple[str, ...]
    unanswered: int
    off_list: dict[str, int]  # answers that are no known label, and how often
    calibration: Calibration | None
    sources: tuple[SourceScore, ...]  # most pictures first; empty when there are fewer than two

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON."""
        return dataclasses.asdict(self)


def mcnemar(first_right: Sequence[bool] | np.ndarray, second_right: Sequence[bool] | np.ndarray) -> McNemar:
    """Exact McNemar test; both sequences speak of the same pictures in the same order."""
    from scipy.stats import binomtest

    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    p = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p)


def compute_metrics(
    actual: Sequence[str],
    predicted: Sequence[str],
    *,
    labels: Collection[str] = (),
    confidence: Sequence[float | None] | None = None,
    sources: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Compare answers with the truth.

    Args:
        actual: the true labels, none empty.
        predicted: the answers in the same order; "" = no answer.
        labels: labels that could be answered beyond those in `actual`; the averages are taken over
            the labels with pictures only.
        confidence: the probability of each given answer; None where there is none.
        sources: where each picture is from, for the breakdown.
        resamples: bootstrap samples for the macro-F1 interval.

    Raises:
        DataError: when there is nothing to score or the lengths differ.
    """
    if not len(actual):
        raise DataError("there are no pictures with a label to score")
    for name, column in (("predicted", predicted), ("confidence", confidence), ("sources", sources)):
        if column is not None and len(column) != len(actual):
            raise DataError(f"{len(actual)} true labels but {len(column)} entries in {name}")
    if not all(actual):
        raise DataError("an empty true label cannot be scored")
    known = tuple(sorted({*actual, *labels}, key=natural_key))
    off_list = Counter(answer for answer in predicted if answer and answer not in set(known))
    matrix = _confusion(actual, predicted, known)
    right = np.array([a == p for a, p in zip(actual, predicted, strict=True)])
    classes = _class_scores(matrix, known)
    used = [score for score in classes if score.support]
    weights = np.array([score.support for score in used], dtype=float)
    columns = list(known)
    for extra, name in ((len(known), OTHER_ANSWER), (len(known) + 1, NO_ANSWER)):
        if matrix[:, extra].any():
            columns.append(name)
    shown = [*range(len(known)), *(len(known) + i for i in (0, 1) if matrix[:, len(known) + i].any())]
    correct = int(right.sum())
    return Metrics(
        count=len(actual),
        correct=correct,
        accuracy=correct / len(actual),
        accuracy_interval=wilson_interval(correct, len(actual)),
        macro=_average(used, np.ones(len(used))),
        weighted=_average(used, weights),
        macro_f1_interval=_bootstrap_macro_f1(matrix, resamples, seed),
        classes=classes,
        confusion=tuple(tuple(int(value) for value in row) for row in matrix[:, shown]),
        confusion_columns=tuple(columns),
        unanswered=sum(not answer for answer in predicted),
        off_list=dict(off_list.most_common()),
        calibration=_calibration(confidence, predicted, right),
        sources=_by_source(sources, right),
    )


def _confusion(actual: Sequence[str], predicted: Sequence[str], known: tuple[str, ...]) -> np.ndarray:
    """(labels, labels + 2) counts; the last two columns are other answers and no answer."""
    place = {label: index for index, label in enumerate(known)}
    matrix = np.zeros((len(known), len(known) + 2), dtype=np.int64)
    rows = [place[label] for label in actual]
    columns = [place.get(answer, len(known)) if answer else len(known) + 1 for answer in predicted]
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def _f1(hits: np.ndarray, support: np.ndarray, called: np.ndarray) -> np.ndarray:
    both = support + called
    return np.divide(2.0 * hits, both, out=np.zeros(both.shape), where=both > 0)


def _class_scores(matrix: np.ndarray, known: tuple[str, ...]) -> tuple[ClassScore, ...]:
    hits = np.diagonal(matrix).astype(float)
    support, called = matrix.sum(axis=1), matrix[:, : len(known)].sum(axis=0)
    zeros = np.zeros(len(known))
    precision = np.divide(hits, called, out=zeros.copy(), where=called > 0)  # never called: 0
    recall = np.divide(hits, support, out=zeros.copy(), where=support > 0)
    f1 = _f1(hits, support, called)
    return tuple(
        ClassScore(
            label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]), int(called[i])
        )
        for i, label in enumerate(known)
    )


def _average(scores: list[ClassScore], weights: np.ndarray) -> Average:
    columns = np.array([(score.precision, score.recall, score.f1) for score in scores])
    precision, recall, f1 = np.average(columns, axis=0, weights=weights)
    return Average(float(precision), float(recall), float(f1))


def _bootstrap_macro_f1(matrix: np.ndarray, resamples: int, seed: int) -> Interval:
    """Percentile interval. Drawing pictures with replacement = drawing the filled cells multinomially."""
    from scipy.sparse import csr_array

    size = matrix.shape[0]
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    cells, ones = np.arange(len(rows)), np.ones(len(rows))
    to_support = csr_array((ones, (cells, rows)), shape=(len(rows), size))
    inside = columns < size
    to_called = csr_array((ones[inside], (cells[inside], columns[inside])), shape=(len(rows), size))
    hit = rows == columns
    to_hits = csr_array((ones[hit], (cells[hit], rows[hit])), shape=(len(rows), size))
    random, values = np.random.default_rng(seed), []
    block = max(1, 4_000_000 // max(len(rows), size))  # bounds the memory of many labels
    for start in range(0, resamples, block):
        draws = random.multinomial(counts.sum(), counts / counts.sum(), size=min(block, resamples - start))
        support, called, hits = draws @ to_support, draws @ to_called, draws @ to_hits
        f1, present = _f1(hits, support, called), support > 0
        values.append((f1 * present).sum(axis=1) / present.sum(axis=1))
    low, high = np.quantile(np.concatenate(values), (0.025, 0.975))
    return Interval(float(low), float(high))


def _calibration(
    confidence: Sequence[float | None] | None, predicted: Sequence[str], right: np.ndarray
) -> Calibration | None:
    if confidence is None:
        return None
    stated = [i for i, value in enumerate(confidence) if value is not None and predicted[i]]
    if not stated:
        return None
    values = np.array([confidence[i] for i in stated], dtype=float)
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError("a probability lies outside 0 to 1")
    return calibrate_check(values, right[stated])


def _by_source(sources: Sequence[str] | None, right: np.ndarray) -> tuple[SourceScore, ...]:
    if sources is None or len(set(sources)) < 2:
        return ()
    counts, hits = Counter(sources), Counter(s for s, ok in zip(sources, right, strict=True) if ok)
    return tuple(
        SourceScore(source, count, hits[source], hits[source] / count, wilson_interval(hits[source], count))
        for source, count in counts.most_common()
    )
