"""The audit finds what answers hang on: models that have each fault, and one that has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldguide.errors import DataError
from fieldguide.records import Answer
from fieldguide.report.audit import REPHRASED, audit

LABELS = ("red", "green", "blue")


class Sees:
    """Names the strongest colour; with faults to be found."""

    def __init__(self, first: float = 0.0, hint: float = 0.0, question: str = "What colour?") -> None:
        self.first, self.hint, self.question = first, hint, question

    def asking(self, question: str) -> Sees:
        return Sees(self.first, self.hint, question)

    def classify(self, pictures: Sequence[Path | str], top_k: int = 0) -> list[Answer]:
        raise NotImplementedError

    def label_scores(self, images: Sequence[Image.Image], labels: Sequence[str]) -> np.ndarray:
        means = np.array([np.asarray(image, float).mean((0, 1)) / 25 for image in images])
        logits = means[:, [LABELS.index(label) for label in labels]]
        logits[:, 0] += self.first  # leans to what is listed first
        logits += [self.hint * (f"example: {label}." in self.question) for label in labels]
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.fixture
def pictures(make_picture: Callable[..., Path]) -> list[Path]:
    return [make_picture(f"{number}.png", number) for number in range(12)]


def test_a_model_that_only_sees_has_nothing_against_it(pictures: list[Path]) -> None:
    found = audit(Sees(), LABELS, pictures)
    assert found.pictures == 12
    assert [one.changed for one in (*found.order, *found.words)] == [0] * (2 + len(REPHRASED) + 3)
    assert all(one.difference == pytest.approx(0, abs=1e-12) for one in found.order)
    assert {one.what for one in found.blanks} == {"black", "grey", "white", "noise"}
    assert found.blanks[0].evenness == pytest.approx(1)


def test_a_leaning_to_what_is_listed_first_is_found(pictures: list[Path]) -> None:
    found = audit(Sees(first=3.0), LABELS, pictures)
    assert found.order[0].changed > 3
    assert found.order[0].interval.low > 0
    assert sum(one.changed for one in found.words) == 0
    assert found.blanks[0].label == "red"
    assert found.blanks[0].probability > 0.9


def test_a_leaning_to_the_example_is_found(pictures: list[Path]) -> None:
    found = audit(Sees(hint=3.0), LABELS, pictures)
    hinted = found.words[len(REPHRASED) :]
    assert sum(one.changed for one in hinted) > 5
    assert all(one.towards == one.changed for one in hinted)
    assert [one.changed for one in found.order] == [0, 0]


def test_a_model_without_a_question_is_asked_none(pictures: list[Path]) -> None:
    class Silent(Sees):
        asking = None  # type: ignore[assignment]

    assert audit(Silent(), LABELS, pictures).words == ()


def test_what_cannot_be_audited_is_said(pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two labels"):
        audit(Sees(), LABELS[:1], pictures)
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(DataError, match="none of the 1 pictures can be read"):
        audit(Sees(), LABELS, [tmp_path / "broken.png"])
    assert audit(Sees(), LABELS, [tmp_path / "broken.png", *pictures]).pictures == 12
