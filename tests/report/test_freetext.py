"""Answers in words held against references: by hand, in several scripts, and by what must always hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.errors import DataError
from fieldguide.report.freetext import holds, score_answers, token_f1, tokens_of
from fieldguide.report.score import read_answers


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The cat.", "cat"),
        ("A  Red-tailed HAWK!", "red tailed hawk"),
        ("Ｆｕｌｌ　width", "full width"),
        ("猫。", "猫"),
        ("قطة!", "قطة"),
        ("café", "CAFE\u0301"),
        ("it's", "its"),
        ("A", "a"),
    ],
)
def test_case_punctuation_articles_and_widths_do_not_count(one: str, other: str) -> None:
    assert tokens_of(one) == tokens_of(other) != ()


def test_accents_and_vowel_signs_do_count() -> None:
    assert tokens_of("pêche") != tokens_of("péché")
    assert tokens_of("कि") != tokens_of("की")


def test_figures_by_hand() -> None:
    found = score_answers(
        ["two red spots", "a long tail", "它有四条腿", "wings"],
        ["Two red spots.", "It has a long tail", "它有腿", ""],
    )
    assert (found.rows, found.empty) == (4, 1)
    assert (found.exact, found.contained) == (0.25, 0.5)
    assert found.token_f1 == pytest.approx((1 + 2 * 2 / (2 + 4) + 2 * 3 / (5 + 3) + 0) / 4)
    assert found.token_f1_interval.low <= found.token_f1 <= found.token_f1_interval.high


def test_a_catfish_holds_no_cat() -> None:
    assert not holds(tokens_of("catfish"), tokens_of("cat"))
    assert holds(tokens_of("a big cat, asleep"), tokens_of("big cat"))
    assert not holds(tokens_of("a cat, big"), tokens_of("big cat"))


@pytest.mark.parametrize(("references", "answers"), [([], []), (["a"], []), (["?!"], ["a"]), ([""], [""])])
def test_nothing_to_compare_is_an_error(references: list[str], answers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"references and|says nothing"):
        score_answers(references, answers)


WORDS = st.lists(st.sampled_from(["red", "tail", "the", "spots", "猫", "wing"]), min_size=1, max_size=8)


@given(WORDS, WORDS)
def test_f1_is_symmetric_bounded_and_one_only_for_the_same_words(one: list[str], other: list[str]) -> None:
    value = token_f1(one, other)
    assert 0 <= value <= 1
    assert value == token_f1(other, one)
    assert (value == 1) == (sorted(one) == sorted(other))


@given(st.text(max_size=60).filter(tokens_of))
def test_every_answer_equals_itself(text: str) -> None:
    found = score_answers([text], [text])
    assert (found.exact, found.contained, found.token_f1) == (1, 1, 1)


def test_a_table_of_answers_is_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,reference,answer\nq,red,Red!\nq,,x\nq,blue\n", encoding="utf-8")
    assert read_answers(tmp_path / "a.csv") == (["red", "blue"], ["Red!", ""], [3])
    lines = ['{"reference": "red", "answer": "a red one"}', "", '{"reference": "blue", "answer": null}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_answers(tmp_path / "a.jsonl") == (["red", "blue"], ["a red one", ""], [])
    (tmp_path / "b.jsonl").write_text('{"reference": "red"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: not a JSON object"):
        read_answers(tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text("question,answer\nq,red\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column found that holds the reference answers"):
        read_answers(tmp_path / "c.csv")
