"""Two tables of results on the same pictures, side by side: `fieldguide score A.csv --beside B.parquet`.

Rows are joined by the picture's file name. What only one of them holds is counted and left out of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from fieldguide.errors import DataError
from fieldguide.report.intervals import Interval
from fieldguide.report.metrics import McNemar, Metrics, compute_metrics, mcnemar
from fieldguide.report.score import Results

RESAMPLES = 2000


@dataclass(frozen=True)
class Beside:
    """Two sets of answers to the same pictures."""

    names: tuple[str, str]
    first: Metrics
    second: Metrics
    accuracy_difference: float  # the second less the first
    accuracy_interval: Interval  # 95%, bootstrap over pictures
    macro_f1_difference: float
    macro_f1_interval: Interval  # on the same draws
    test: McNemar
    only_first: int  # pictures that the other table does not hold: left out
    only_second: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "difference": {
                "accuracy": self.accuracy_difference,
                "accuracy_interval": asdict(self.accuracy_interval),
                "macro_f1": self.macro_f1_difference,
                "macro_f1_interval": asdict(self.macro_f1_interval),
            },
            "mcnemar": asdict(self.test),
            "pictures": self.first.count,
            "left_out": {"only_in_first": self.only_first, "only_in_second": self.only_second},
        }

    def in_words(self) -> str:
        """The comparison in two lines."""
        low, high = self.accuracy_interval.low, self.accuracy_interval.high
        lines = [
            f"on {self.first.count} pictures that both hold: {self.names[0]} {self.first.accuracy:.1%}, "
            f"{self.names[1]} {self.second.accuracy:.1%}; difference {self.accuracy_difference:+.1%} "
            f"({low:+.1%} to {high:+.1%}), macro F1 {self.macro_f1_difference:+.3f} "
            f"({self.macro_f1_interval.low:+.3f} to {self.macro_f1_interval.high:+.3f})",
            f"only {self.names[0]} is right on {self.test.only_first}, only {self.names[1]} on "
            f"{self.test.only_second} (exact McNemar test, p = {self.test.p:.2g})",
        ]
        if self.only_first or self.only_second:
            lines.append(
                f"left out: {self.only_first} pictures only in {self.names[0]}, "
                f"{self.only_second} only in {self.names[1]}"
            )
        return "\n".join(lines)


def beside(first: Results, second: Results, seed: int = 0) -> Beside:
    """Join two tables by file name and compare the answers.

    Raises:
        DataError: when a table names no pictures or one twice, none is in both, or the true labels differ.
    """
    rows = (_by_picture(first), _by_picture(second))
    common = sorted(rows[0].keys() & rows[1].keys())
    if not common:
        one, other = (next(iter(row)) for row in rows)
        raise DataError(
            f"{first.path} and {second.path} have no picture in common ({one!r}, {other!r})",
            "rows are joined by the file name, without its folder",
        )
    _check_truth(first, second, rows, common)
    answers = [
        ([results.actual[row[name]] for name in common], [results.predicted[row[name]] for name in common])
        for results, row in zip((first, second), rows, strict=True)
    ]
    metrics = [compute_metrics(actual, predicted) for actual, predicted in answers]
    right = [np.array([a == p for a, p in zip(*pair, strict=True)]) for pair in answers]
    gain, f1_gain = _resampled(answers, right, seed)
    names = (first.path.name, second.path.name)
    return Beside(
        names if names[0] != names[1] else (str(first.path), str(second.path)),
        metrics[0],
        metrics[1],
        metrics[1].accuracy - metrics[0].accuracy,
        gain,
        metrics[1].macro.f1 - metrics[0].macro.f1,
        f1_gain,
        mcnemar(list(right[0]), list(right[1])),
        len(rows[0]) - len(common),
        len(rows[1]) - len(common),
    )


def _by_picture(results: Results) -> dict[str, int]:
    """File name → row."""
    if not any(results.images):
        raise DataError(
            f"{results.path}: no column names the pictures", "name it image, image_name, file or id"
        )
    found: dict[str, int] = {}
    for row, image in enumerate(results.images):
        name = PurePath(image.replace("\\", "/")).name
        if not name:
            raise DataError(
                f"{results.path}: row {row + 2} names no picture", "fill that cell, or delete the row"
            )
        if name in found:
            raise DataError(
                f"{results.path}: {name!r} stands in two rows ({found[name] + 2} and {row + 2})",
                "rows are joined by the file name, so each may occur once",
            )
        found[name] = row
    return found


def _check_truth(
    first: Results, second: Results, rows: Sequence[dict[str, int]], common: Sequence[str]
) -> None:
    differ = [
        name
        for name in common
        if first.actual[rows[0][name]].casefold() != second.actual[rows[1][name]].casefold()
    ]
    if differ:
        name = differ[0]
        raise DataError(
            f"{len(differ)} pictures have another true label in {first.path} than in {second.path}, such as "
            f"{name!r}: {first.actual[rows[0][name]]!r} and {second.actual[rows[1][name]]!r}",
            "the same file name must be the same picture, and have the same label",
        )


def _resampled(
    answers: Sequence[tuple[list[str], list[str]]], right: Sequence[np.ndarray], seed: int
) -> tuple[Interval, Interval]:
    """95% intervals of the gains in accuracy and macro F1, pictures drawn anew in both tables alike."""
    random, count = np.random.default_rng(seed), len(right[0])
    coded = [_coded(*pair) for pair in answers]
    gains, f1_gains = [], []
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        gains.append(right[1][drawn].mean() - right[0][drawn].mean())
        f1_gains.append(_macro_f1(*coded[1], drawn) - _macro_f1(*coded[0], drawn))
    return _middle(gains), _middle(f1_gains)


def _coded(actual: Sequence[str], predicted: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    labels = {label: number for number, label in enumerate(dict.fromkeys(actual))}
    return (
        np.array([labels[label] for label in actual]),
        np.array(
            [labels.get(label, len(labels)) for label in predicted]
        ),  # no true label of the table: wrong
        len(labels),
    )


def _macro_f1(actual: np.ndarray, predicted: np.ndarray, count: int, drawn: np.ndarray) -> float:
    """Over the labels that the draw has."""
    a, p = actual[drawn], predicted[drawn]
    support, called = np.bincount(a, minlength=count), np.bincount(p, minlength=count + 1)[:count]
    hits = np.bincount(a[a == p], minlength=count)
    there = support > 0
    return float((2 * hits[there] / (support[there] + called[there])).mean())


def _middle(values: Sequence[float]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))
