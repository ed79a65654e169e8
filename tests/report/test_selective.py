"""The part of the report about which answers to trust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fieldguide.records import LabelScore
from fieldguide.report.selective import (
    MOST_LABELS,
    accuracy_curve,
    measured_coverages,
    refused_pictures,
    selective,
    set_score,
)


@dataclass(frozen=True)
class Seen:
    label: str
    predicted: str
    probability: float
    in_guide: bool | None = None

    @property
    def right(self) -> bool:
        return self.label == self.predicted

    @property
    def scores(self) -> tuple[LabelScore, ...]:
        other = "dog" if self.predicted == "cat" else "cat"
        return (LabelScore(self.predicted, self.probability), LabelScore(other, 1 - self.probability))


def test_the_curve_by_hand() -> None:
    curve = accuracy_curve(np.array([0.6, 0.9, 0.8, 0.7]), np.array([False, True, True, False]))
    assert curve == [(0.25, 1.0), (0.5, 1.0), (0.75, pytest.approx(2 / 3)), (1.0, 0.5)]


def test_equally_sure_answers_are_kept_together() -> None:
    right = np.array([True, False, False, True])
    for order in ([0, 1, 2, 3], [2, 1, 3, 0]):
        assert accuracy_curve(np.array([0.9] * 4), right[order]) == [(1.0, 0.5)]


def test_who_was_refused_and_what_it_cost() -> None:
    pictures = [
        Seen("cat", "cat", 0.9, True),
        Seen("dog", "dog", 0.8, True),
        Seen("cat", "dog", 0.6, True),
        Seen("dog", "dog", 0.9, False),
        Seen("dog", "cat", 0.5, False),
        Seen("newt", "cat", 0.5, False),
        Seen("newt", "dog", 0.5, True),
    ]
    found = refused_pictures(pictures, {"cat", "dog"})
    assert found is not None
    assert (found.count, found.refused, found.refused_right, found.share) == (5, 2, 1, 0.4)
    assert (found.kept_accuracy, found.unknown, found.unknown_refused) == (pytest.approx(2 / 3), 2, 1)
    assert found.interval.low < 0.4 < found.interval.high
    assert refused_pictures([Seen("cat", "cat", 0.9)], {"cat"}) is None


def test_sets_are_measured_against_what_was_asked() -> None:
    pictures = [Seen("cat", "cat", 0.9), Seen("dog", "cat", 0.6), Seen("dog", "cat", 0.95)]
    found = set_score(pictures, 0.9, [0.6] * 20)  # labels from 0.4 on
    assert found is not None
    assert (found.covered, found.count, found.mean_size) == (2, 3, pytest.approx(4 / 3))
    assert not found.all_labels
    everything = set_score(pictures, 0.9, [0.6] * 3)
    assert everything is not None
    assert (everything.all_labels, everything.coverage, everything.mean_size) == (True, 1.0, 2.0)


def test_only_known_labels_count_for_sets_and_older_guides_have_none() -> None:
    pictures = [Seen("cat", "cat", 0.9), Seen("newt", "cat", 0.9), Seen("dog", "", 0.0)]
    found = selective(pictures, ["cat", "dog"], [0.2] * 30)
    assert {one.count for one in found.sets} == {1}
    assert found.curve == ((0.5, 1.0), (1.0, 0.5)) or found.curve == ((1.0, 0.5),)
    assert selective(pictures, ["cat", "dog"], None).sets == ()
    assert found.refused is None


def test_coverages_that_need_too_many_labels_are_not_measured() -> None:
    assert measured_coverages(None, 5) == {}
    assert set(measured_coverages([0.1] * 30, 5)) == {0.8, 0.9, 0.95}
    assert measured_coverages([], 5) == {0.8: 5, 0.9: 5, 0.95: 5}
    assert measured_coverages([], MOST_LABELS + 1) == {}
