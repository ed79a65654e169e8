"""Several pictures answered as one: order and copies play no part, nothing is dropped unsaid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.answer.pooling import Member, grouping, pool, pool_all
from fieldguide.errors import DataError, SettingsError
from fieldguide.records import LabelScore


def member(image: str, content: str = "", **probabilities: float | None) -> Member:
    scores = sorted(probabilities.items(), key=lambda one: -(one[1] or 0))
    return Member(image, tuple(LabelScore(label, p) for label, p in scores), content=content)


def test_the_weight_lies_between_one_picture_and_independent_ones() -> None:
    two = [member("1", cat=0.8, dog=0.2), member("2", cat=0.8, dog=0.2)]
    assert pool("g", two, dependence=1.0).probability == pytest.approx(0.8)
    assert pool("g", two, dependence=0.0).probability == pytest.approx(0.64 / 0.68)
    between = pool("g", two).probability
    assert between is not None
    assert 0.8 < between < 0.64 / 0.68


def test_one_picture_alone_is_its_own_answer() -> None:
    alone = pool("g", [member("1", cat=0.7, dog=0.2, ox=0.1)])
    assert [(s.label, round(s.probability or 0, 9)) for s in alone.scores] == [
        ("cat", 0.7),
        ("dog", 0.2),
        ("ox", 0.1),
    ]


def test_labels_that_are_not_listed_share_what_is_missing() -> None:
    partly = Member("1", (LabelScore("cat", 0.6),))
    found = pool("g", [partly, member("2", cat=0.5, dog=0.25, ox=0.25)], dependence=1.0)
    assert {s.label: round(s.probability or 0, 6) for s in found.scores} == pytest.approx(
        {"cat": 0.5505, "dog": 0.22475, "ox": 0.22475}, abs=1e-4
    )


def test_the_same_bytes_count_once() -> None:
    one, copy, other = (
        member("1", "x", cat=0.9, dog=0.1),
        member("2", "x", cat=0.9, dog=0.1),
        member("3", "y", cat=0.4, dog=0.6),
    )
    found = pool("g", [copy, one, other])
    assert (found.pictures, found.repeated) == (2, 1)
    assert found.scores == pool("g", [one, other]).scores


def test_what_has_no_answer_is_counted() -> None:
    found = pool("g", [member("1", cat=0.9, dog=0.1), Member("2", (), "truncated")])
    assert (found.label, found.pictures, found.unanswered) == ("cat", 1, 1)
    empty = pool("g", [Member("2", (), "truncated")])
    assert (empty.label, empty.probability, empty.unanswered) == ("", None, 1)


def test_without_probabilities_pictures_vote() -> None:
    found = pool("g", [member("1", dog=None), member("2", cat=None), member("3", cat=None)])
    assert (found.label, found.probability, found.voted) == ("cat", None, True)
    assert (
        pool("g", [member("1", dog=None), member("2", cat=None)]).label == "cat"
    )  # a tie: the first by name


def test_a_group_is_refused_when_most_of_its_pictures_are() -> None:
    def told(*inside: bool | None) -> bool | None:
        return pool(
            "g", [Member(str(i), (LabelScore("a", 1.0),), in_guide=x) for i, x in enumerate(inside)]
        ).in_guide

    assert told(True, False, False) is False
    assert told(True, False) is True
    assert told(None, None) is None


ROWS = st.lists(
    st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(
        lambda row: [value / sum(row) for value in row]
    ),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.randoms(use_true_random=False), st.floats(0, 1))
def test_probabilities_sum_to_one_and_order_plays_no_part(
    rows: list[list[float]], dice: object, weight: float
) -> None:
    members = [member(str(i), a=p, b=q, c=r) for i, (p, q, r) in enumerate(rows)]
    found = pool("g", members, weight)
    assert sum(score.probability or 0 for score in found.scores) == pytest.approx(1)
    shuffled = list(members)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pool("g", shuffled, weight).scores == found.scores


@given(ROWS)
def test_the_weight_does_not_change_which_label_is_likeliest(rows: list[list[float]]) -> None:
    members = [member(str(i), a=p, b=q, c=r) for i, (p, q, r) in enumerate(rows)]
    sure = [pool("g", members, weight) for weight in (0.0, 0.5, 1.0)]
    gap = (sure[1].scores[0].probability or 0) - (sure[1].scores[1].probability or 0)
    if gap > 1e-9:
        assert len({one.label for one in sure}) == 1
    tops = [one.probability or 0 for one in sure]
    assert all(np.diff(tops) <= 1e-9)


def test_ways_to_group(tmp_path: Path) -> None:
    assert grouping("parent")("a/reef 7/1.jpg") == "a/reef 7"
    assert grouping("parent")("b/reef 7/1.jpg") != "a/reef 7"
    assert grouping(r"^(\d+)_")("x/12_3.jpg") == "12"
    assert grouping(r"^(\d+)_")("x/y.jpg") == ""
    (tmp_path / "g.csv").write_text("image,group\nx/1.jpg,A\n2.jpg,魚\n", encoding="utf-8")
    of = grouping(str(tmp_path / "g.csv"))
    assert (of("elsewhere/1.jpg"), of("2.jpg"), of("3.jpg")) == ("A", "魚", "")
    found = pool_all([member("1.jpg", cat=1.0), member("3.jpg", cat=1.0), member("x/1.jpg", dog=1.0)], of)
    assert [(one.group, one.pictures) for one in found] == [("A", 2), ("3.jpg", 1)]


@pytest.mark.parametrize("how", ["(", "abc", "(a)(b)"])
def test_a_pattern_needs_one_group(how: str) -> None:
    with pytest.raises(SettingsError, match="--group-by"):
        grouping(how)


@pytest.mark.parametrize("text", ["image\n1.jpg\n", "", "image,group\n1.jpg,A\nx/1.jpg,B\n"])
def test_a_bad_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"g\.csv"):
        grouping(str(tmp_path / "g.csv"))
