"""What stands beside the label: refused or not, and a set instead of the best few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fieldguide.answer.judge import Judge
from fieldguide.records import LabelScore
from fieldguide.settings import AnswerSettings

SCORES = [LabelScore("cat", 0.6), LabelScore("dog", 0.3), LabelScore("eel", 0.1)]


def judge(settings: AnswerSettings, **calibration: Any) -> Judge:
    return Judge.of(Path("x"), {"files": {}, "calibration": calibration}, settings, 3)


def test_an_older_guide_tells_nothing() -> None:
    made = judge(AnswerSettings())
    answer = made.answer("a.png", SCORES, None)
    assert (made.novelty, answer.in_guide, answer.familiarity, answer.coverage) == (None, None, None, None)
    assert (answer.label, answer.probability, answer.scores) == ("cat", 0.6, tuple(SCORES))
    assert made.labels_read(2) == 2


@pytest.mark.parametrize(
    ("keep", "familiarity", "inside"),
    [(0.95, 0.05, False), (0.95, 0.0501, True), (0.95, 0.01, False), (0.8, 0.15, False), (0.99, 0.02, True)],
)
def test_the_least_familiar_pictures_are_refused_and_keep_their_label(
    keep: float, familiarity: float, inside: bool
) -> None:
    answer = judge(AnswerSettings(keep=keep)).answer("a.png", SCORES, familiarity)
    assert (answer.in_guide, answer.familiarity, answer.label) == (inside, familiarity, "cat")


def test_a_set_replaces_the_best_few() -> None:
    made = judge(AnswerSettings(coverage=0.9), conformal_scores=[0.1] * 10 + [0.75] * 10)
    assert made.least == pytest.approx(0.25)
    assert made.labels_read(1) == 3
    answer = made.answer("a.png", SCORES, None)
    assert [score.label for score in answer.scores] == ["cat", "dog"]
    assert answer.coverage == 0.9


def test_a_set_without_validation_pictures_holds_all_labels() -> None:
    made = judge(AnswerSettings(coverage=0.9), conformal_scores=[])
    assert made.labels_read(1) == 3
    assert made.answer("a.png", SCORES, None).scores == tuple(SCORES)
