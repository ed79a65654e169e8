"""Rare labels beside common ones, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldguide.records import LabelScore
from fieldguide.report.evaluation import Prediction
from fieldguide.report.rarity import by_rarity, counts_of


def prediction(number: int, label: str, predicted: str) -> Prediction:
    scores = (LabelScore(predicted, 1.0),)
    return Prediction(
        str(number), f"{number}.jpg", Path(f"{number}.jpg"), "", label, predicted, 1.0, scores, "", "", ""
    )


def test_recall_is_counted_by_training_pictures() -> None:
    pairs = [("owl", "cat"), ("owl", "owl"), ("cat", "cat"), ("cat", "cat"), ("dog", "cat"), ("never", "cat")]
    shown = [prediction(i, label, predicted) for i, (label, predicted) in enumerate(pairs)]
    rare, common = by_rarity(shown, {"owl": 10, "cat": 500, "dog": 101, "unseen": 3})
    assert (rare.name, rare.labels, rare.pictures, rare.recall) == ("1 to 10", 1, 2, 0.5)
    assert (common.name, common.labels, common.pictures) == ("101 or more", 2, 3)
    assert common.recall == pytest.approx(2 / 3)
    assert rare.interval.low < 0.5 < rare.interval.high


def test_labels_alike_in_number_need_no_table() -> None:
    shown = [prediction(1, "cat", "cat"), prediction(2, "dog", "cat")]
    assert by_rarity(shown, {"cat": 40, "dog": 60}) == ()
    assert by_rarity(shown, {}) == ()


def test_only_training_pictures_are_counted() -> None:
    rows = [
        {"label": "cat", "split": "train"},
        {"label": "cat", "split": "val"},
        {"label": "", "split": "train"},
    ]
    assert counts_of(rows) == {"cat": 1}
