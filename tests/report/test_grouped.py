"""Groups answered as one beside their pictures one by one: counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldguide.answer.pooling import grouping
from fieldguide.records import LabelScore
from fieldguide.report.evaluation import Prediction
from fieldguide.report.grouped import grouped


def prediction(image: str, label: str, cat: float, error: str = "") -> Prediction:
    scores = tuple(
        sorted((LabelScore("cat", cat), LabelScore("dog", 1 - cat)), key=lambda s: -(s.probability or 0))
    )
    named = "" if error else scores[0].label
    return Prediction(
        id=image, image=image, path=Path(image), sha256=image, label=label, predicted=named,
        probability=scores[0].probability if named else 0.0, scores=() if error else scores, error=error,
        text="", source="",
    )  # fmt: skip


def test_groups_and_their_pictures_are_counted_by_hand() -> None:
    found = grouped(
        [
            prediction("a_1", "cat", 0.9), prediction("a_2", "cat", 0.4), prediction("a_3", "cat", 0.45),
            prediction("b_1", "dog", 0.9), prediction("b_2", "dog", 0.3),  # wrong: the sure picture wins
            prediction("c_1", "dog", 0.2), prediction("c_2", "dog", 0.0, "truncated"),  # right by one picture
            prediction("d_1", "dog", 0.2), prediction("d_2", "cat", 0.2),  # two labels: left out
            prediction("e_1", "dog", 0.2), prediction("lonely", "dog", 0.2),
        ],
        grouping(r"^(\w)_"),
    )  # fmt: skip
    assert found is not None
    assert (found.groups, found.pictures, found.right, found.mixed, found.alone) == (3, 7, 2, 1, 2)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.single == pytest.approx((1 + 1 + 1) / 7)
    assert found.gain == pytest.approx(((1 - 1 / 3) + (0 - 1 / 2) + (1 - 1 / 2)) / 3)
    assert found.interval.low < found.accuracy < found.interval.high
    assert found.single_interval.low <= found.single <= found.single_interval.high


def test_without_groups_there_is_nothing_to_compare() -> None:
    assert (
        grouped([prediction("a_1", "cat", 0.9), prediction("b_1", "cat", 0.9)], grouping(r"^(\w)_")) is None
    )
